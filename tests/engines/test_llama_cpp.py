"""The cache that does what llama.cpp does, and the table of both, without llama.cpp."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kvdelta.harness import SchemeCache
from kvdelta.harness.protocols import fill_live, prefill, suffix_logits
from kvdelta.schemes import parse_scheme
from kvdelta.schemes.rotated_runs import rotated
from tests.engines import llama_cpp as script
from tests.engines.matched_cache import (
    MatchedCache,
    exact_own_token,
    in_halves,
    in_pairs,
    quantized_queries,
    round_trip,
)

HEADS_OF_64 = {"hidden_size": 256, "head_dim": 64}  # llama.cpp rotates runs of 64


@pytest.fixture(scope="module")
def wide():
    from transformers import LlamaForCausalLM

    from tests.conftest import tiny_config

    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(**HEADS_OF_64)).eval().requires_grad_(False)


@pytest.fixture
def window(tokens):
    return tokens[None, :96], tokens[None, 96:128]


def matched(model, window, *types, rotated=True):
    cache = MatchedCache(model.config, *types, rotated=rotated)
    fill_live(model, window[0], cache)
    return cache, suffix_logits(model, cache, window[1])


@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("type", ["q8_0", "q4_0"])
def test_every_row_that_is_read_is_a_round_trip(wide, type, rotates):
    """The newest token's too, in a forward of one token and in one of many."""
    cache = MatchedCache(wide.config, type, type, rotated=rotates)
    given = {"key": torch.randn(1, 2, 9, 64), "value": torch.randn(1, 2, 9, 64)}
    scheme = parse_scheme(f"llama.cpp:type={type}" if rotates else type)
    for past, end in ((0, 7), (7, 8), (8, 9)):
        read = cache.update(given["key"][:, :, past:end], given["value"][:, :, past:end], 1)
        for side, x in zip(("key", "value"), read, strict=True):
            expected = scheme.sides[side].quantizer.quantize(given[side][:, :, :end]).dequantize()
            assert torch.equal(x, expected)
            assert not torch.equal(x, given[side][:, :, :end])


def test_rotation_and_its_absence_store_different_numbers():
    x = torch.randn(1, 2, 5, 64)
    assert not torch.equal(round_trip("q4_0", "key", True)(x), round_trip("q4_0", "key", False)(x))


def test_scores_of_rotated_queries_and_keys_are_the_scores():
    """What lets llama.cpp leave keys rotated in its cache: H is orthogonal, in 64 channels and in 128."""
    for channels in (64, 128):
        q, k = torch.randn(2, 1, 2, 50, channels)
        assert torch.allclose(rotated(q, channels) @ rotated(k, channels).mT, q @ k.mT, atol=1e-4)
        assert not torch.allclose(rotated(q, channels), q, atol=0.1)
        assert torch.allclose(rotated(rotated(q, channels), channels), q, atol=1e-6)


def test_pairs_of_rope_lie_side_by_side_when_they_are_stored(wide):
    """In Llama models' GGUF files: which 32 channels share a scale is another question there."""
    x = torch.arange(64.0).expand(1, 1, 1, 64)
    assert in_pairs(x)[0, 0, 0, :4].tolist() == [0, 32, 1, 33]
    assert torch.equal(in_halves(in_pairs(x)), x)
    loud = torch.randn(1, 2, 5, 64)
    loud[..., :32] *= 100  # of transformers' first block, of half of each block of pairs
    read = {paired: round_trip("q4_0", "key", False, paired)(loud)[..., 32:] for paired in (False, True)}
    assert (read[False] - loud[..., 32:]).abs().mean() < 0.1 * (read[True] - loud[..., 32:]).abs().mean()
    cache = MatchedCache(wide.config, "q4_0", "q4_0", rotated=False, paired=True)
    keys, values = cache.update(loud, loud, 0)
    assert torch.equal(keys[..., 32:], read[True])
    assert torch.equal(values[..., 32:], read[False])  # values have no RoPE


def test_how_the_tokens_are_cut_into_forwards_changes_nothing(wide, window):
    """As in llama.cpp, where the size of a forward moves no more than rounding does; a SchemeCache's own tokens are exact."""
    _, logits = matched(wide, window, "q4_0", "q4_0")
    for step in (1, 5):
        cache = MatchedCache(wide.config, "q4_0", "q4_0", rotated=True)
        for chunk in window[0].split(17, dim=1):
            fill_live(wide, chunk, cache)
        close = suffix_logits(wide, cache, window[1], step)
        assert (close - logits).abs().mean() < 1e-3 * logits.std()
    theirs = SchemeCache.for_model(parse_scheme("llama.cpp:type=q4_0"), wide).fill(prefill(wide, window[0]))
    assert (suffix_logits(wide, theirs, window[1]) - logits).abs().mean() > 1e-2 * logits.std()


def test_f32_is_the_exact_cache_and_f16_nearly(wide, window):
    from transformers import DynamicCache

    exact = wide(torch.cat(window, dim=1), cache=DynamicCache(config=wide.config)).logits[:, 96:-1]
    f32, f16 = (matched(wide, window, type, type)[1] for type in ("f32", "f16"))
    assert torch.allclose(f32, exact, atol=1e-4)
    assert 0 < (f16 - exact).abs().mean() < 1e-2 * exact.std()


def test_an_exact_prefill_leaves_its_damage_out(wide, window):
    _, whole = matched(wide, window, "q4_0", "q4_0")
    cache = MatchedCache(wide.config, "q4_0", "q4_0", rotated=True).written(prefill(wide, window[0]))
    assert cache.get_seq_length() == 96
    assert not torch.allclose(suffix_logits(wide, cache, window[1]), whole, atol=1e-2)


@pytest.mark.parametrize(
    "cell", [script.Cell("q4_0", "q4_0"), script.Cell("q4_0", "f16"), script.Cell("f16", "q4_0", False)]
)
def test_exact_own_tokens_are_decoding_with_a_scheme_cache(wide, window, cell):
    """One forward in place of one a token; sides in f16 are exact in a SchemeCache, so they are f32 here."""
    prefilled = prefill(wide, window[0])
    stepwise = SchemeCache.for_model(parse_scheme(cell.spec), wide).fill(prefilled)
    expected = suffix_logits(wide, stepwise, window[1], 1)
    types = (cell.key.replace("f16", "f32"), cell.value.replace("f16", "f32"))
    cache = MatchedCache(wide.config, *types, rotated=cell.rotated).written(prefilled)
    before = wide.config._attn_implementation
    with exact_own_token(wide, cache):
        got = suffix_logits(wide, cache, window[1])
    assert wide.config._attn_implementation == before
    off = (got - expected).abs().mean()
    assert off < 1e-3 * expected.std()
    own = MatchedCache(wide.config, *types, rotated=cell.rotated).written(prefilled)
    assert (suffix_logits(wide, own, window[1]) - expected).abs().mean() > 4 * off  # as read with the own token decoded


def test_queries_are_rounded_only_within(wide, window):
    _, plain = matched(wide, window, "q4_0", "q4_0")
    with quantized_queries(wide, rotated=True):
        _, rounded = matched(wide, window, "q4_0", "q4_0")
    assert not torch.equal(rounded, plain)
    assert (rounded - plain).abs().mean() < 0.2 * plain.std()
    assert torch.equal(matched(wide, window, "q4_0", "q4_0")[1], plain)


def test_jitter_moves_codes_at_a_boundary_and_little_else(wide):
    keys = torch.randn(1, 2, 400, 64)
    plain, moved = (MatchedCache(wide.config, "q4_0", "q4_0", rotated=False, jitter=one) for one in (0, 1e-3))
    off = (plain.update(keys, keys, 0)[0] - moved.update(keys, keys, 0)[0]).abs()
    assert 0 < (off > 0.1).float().mean() < 0.1


def test_it_refuses_what_is_no_full_attention():
    from transformers import MistralConfig

    config = MistralConfig(num_hidden_layers=2, sliding_window=8)
    with pytest.raises(ValueError, match="full attention"):
        MatchedCache(config, "q4_0", "q4_0", rotated=True)


def test_specs_of_cells():
    specs = {cell.name: cell.spec for cell in script.CELLS}
    assert specs["q4_0/q4_0 rotated"] == "llama.cpp:type=q4_0"
    assert specs["q4_0/q4_0 bare"] == "q4_0"
    assert specs["q8_0/q4_0 rotated"] == "llama.cpp:key_type=q8_0,value_type=q4_0"
    assert specs["q4_0/f16 rotated"] == "llama.cpp:type=q4_0,only=key"
    assert specs["f16/q4_0 rotated"] == "llama.cpp:type=q4_0,only=value"
    assert script.Cell("f16", "q4_0", False).spec == "q4_0:only=value"
    assert all(parse_scheme(spec) for spec in specs.values())


def test_kl_of_the_engines_half_is_the_harness_kl():
    from kvdelta.harness.divergence import kl_and_tvd

    p, q = (torch.randn(2, 4, 300) * 3).log_softmax(-1)
    assert np.allclose(script.kl_from(p.numpy(), q.numpy()), kl_and_tvd(q - p, p.exp(), q.exp)[0], rtol=1e-4)
    assert np.allclose(script.log_softmax((p + 3).numpy()), p, atol=1e-5)


def written(path, exact, rows, **meta):
    collected = {f"nll {script.EXACT}": [np.float32(exact)], f"kl {script.EXACT}": [np.zeros_like(np.float32(exact))]}
    for name, (delta, kl) in rows.items():
        collected[f"nll {name}"], collected[f"kl {name}"] = [np.float32(exact) + np.float32(delta)], [np.float32(kl)]
    script.save(str(path), {key: list(rows[0]) for key, rows in collected.items()}, {"tokens_sha256": "1", **meta})
    return str(path)


def test_table_joins_two_files(tmp_path, capsys):
    """Three windows of two tokens in one file, two in the other: the two that both have."""
    exact = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    mine = written(
        tmp_path / "ours.npz",
        exact,
        {
            "q4_0/q4_0 rotated, matched": ([[0.1, 0.3], [0.2, 0.6], [9, 9]], [[0.1, 0.1], [0.1, 0.1], [9, 9]]),
            "q4_0/q4_0 rotated, two-pass": ([[0.0, 0.1], [0.1, 0.0], [9, 9]], [[0.0, 0.1], [0.1, 0.0], [9, 9]]),
        },
    )
    theirs = written(
        tmp_path / "engine.npz",
        [[1.5, 2.5], [3.5, 4.5]],
        {"q4_0/q4_0 rotated": ([[0.2, 0.4], [0.3, 0.7]], [[0.2, 0.2], [0.2, 0.2]])},
        gguf="model.gguf",
    )
    out = tmp_path / "summary.json"
    script.table(SimpleNamespace(ours=mine, engine=[theirs], out=str(out)))
    summary = json.loads(out.read_text())
    one = summary["engines"][0]
    assert (one["exact_from_ours"]["windows"], summary["scored_a_window"]) == (2, 2)
    assert (summary["ours"]["exact_nll"], one["exact_nll"]) == (3.5, 3.0)  # of three windows, of two
    assert one["exact_from_ours"] == pytest.approx({"windows": 2, "mean": 0.5, "rms": 0.5, "correlation": 1.0})
    row = one["rows"]["q4_0/q4_0 rotated"]
    assert row == pytest.approx({"windows": 2, "delta": 0.4, "se": 0.1, "kl": 0.2}, abs=1e-5)  # windows of 0.3 and 0.5
    mine_row = summary["ours"]["rows"]["q4_0/q4_0 rotated, two-pass"]
    assert mine_row["windows"] == 3
    assert mine_row["delta"] == pytest.approx(18.2 / 6, abs=1e-5)
    beside = one["against"]["q4_0/q4_0 rotated"]
    assert set(beside) == {"matched", "two-pass"}
    assert beside["matched"]["more"] == pytest.approx(0.1, abs=1e-5)
    assert beside["matched"]["high"] - beside["matched"]["low"] < 1e-4  # the same in each window
    assert beside["matched"]["correlation"] == pytest.approx(1.0, abs=1e-5)
    assert beside["matched"]["kl_ratio"] == pytest.approx(2.0, abs=1e-5)
    assert beside["matched"]["kl_more"] == pytest.approx(0.1, abs=1e-5)
    assert beside["two-pass"]["more"] == pytest.approx(0.35, abs=1e-5)
    assert "| q4_0/q4_0 rotated | 2 | +0.40000 ± 0.10000 | 0.2 | matched |" in capsys.readouterr().out


def test_files_of_one_run_are_joined_and_their_units_are_pieces_of_a_window(tmp_path):
    rng, exact = np.random.default_rng(0), np.ones((2, 14))
    noise, other = rng.normal(size=(2, 2, 14))
    a = written(tmp_path / "a.npz", exact, {"q8_0/q8_0 bare": (noise, np.abs(noise))})
    b = written(tmp_path / "b.npz", exact[:1], {"q4_0/q4_0 bare": (other[:1], np.abs(other[:1]))})
    meta, rows = script.loaded_rows(f"{b},{a}")
    assert meta["tokens_sha256"] == "1"
    assert {row: len(rows[f"nll {row}"]) for row in script.names(rows)} == {
        script.EXACT: 2,
        "q8_0/q8_0 bare": 2,
        "q4_0/q4_0 bare": 1,
    }
    pieces = noise.reshape(14, 2).mean(axis=1)  # seven of two tokens a window
    got = script.figures(rows, "q8_0/q8_0 bare", 2)
    assert got["delta"] == pytest.approx(noise.mean(), abs=1e-6)
    assert got["se"] == pytest.approx(pieces.std(ddof=1) / 14**0.5, rel=1e-5)
    assert script.figures(rows, "q4_0/q4_0 bare", 2)["windows"] == 1
    c = written(tmp_path / "c.npz", exact + 1, {})
    with pytest.raises(SystemExit, match="another exact run"):
        script.loaded_rows(f"{a},{c}")


def test_a_run_goes_on_behind_its_last_window(tmp_path):
    path = written(tmp_path / "engine.npz", [[1.0], [2.0]], {"q8_0/q8_0 bare": ([[0.1], [0.2]], [[0.0], [0.0]])})
    held = script.resumed(path, {"tokens_sha256": "1"}, [script.EXACT, "q8_0/q8_0 bare"])
    assert [number for number, _ in script.remaining(np.zeros((4, 8)), held)] == [3, 4]
    assert script.resumed(str(tmp_path / "none.npz"), {}, []) == {}
    for meta, rows in (
        ({"tokens_sha256": "2"}, [script.EXACT]),
        ({"tokens_sha256": "1"}, [script.EXACT, "q4_0/q4_0 bare"]),
    ):
        with pytest.raises(SystemExit, match="something else"):
            script.resumed(path, meta, rows)


def test_table_refuses_other_tokens(tmp_path):
    a, b = ({"tokens_sha256": name} for name in "ab")
    with pytest.raises(ValueError, match="other tokens"):
        script.joined((a, {}), [(b, {})])
