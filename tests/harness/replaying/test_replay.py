"""Replay against direct computation: the sampled text, its scores by position, and what coupled samples do."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import DynamicCache

from kvdelta.harness import ReplayOptions, replay
from kvdelta.harness.options import Options
from kvdelta.harness.records.replay import SAMPLED_FILE, Sampling, load_log_probabilities, load_replay, load_texts
from kvdelta.harness.records.run_folder import load_run
from kvdelta.harness.records.tokens import load_tokens
from kvdelta.harness.records.verify import verify
from kvdelta.harness.replaying import sums
from kvdelta.harness.replaying.free_run import compared
from kvdelta.harness.replaying.prompts import load_prompts
from kvdelta.harness.replaying.sampling import picker, probabilities, sampling_of, written
from kvdelta.harness.subject.forward import forward
from kvdelta.harness.subject.model import load_model
from kvdelta.harness.subject.windows import Batch, Window

SPECS = ["asym2:group_size=16", "int8:group_size=16"]
HOW = ReplayOptions(prompt_count=3, prompt_length=40, tokens=24)


@pytest.fixture
def loaded(files):
    return load_model(str(files / "model"))


@pytest.fixture
def prompts(tmp_path):
    """40 prompts of 50 words, and a short one, as JSON lines."""
    rng = np.random.default_rng(0)
    texts = ["w1 w2", *(" ".join(f"w{i}" for i in rng.integers(0, 127, 50)) for _ in range(40))]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def done(loaded, prompts, tmp_path):
    options = Options(device="cpu", out=str(tmp_path / "run"))
    return replay(SPECS, options, replace(HOW, prompts=prompts), loaded=loaded)


def windows(ids, length=40):
    return [Window(i, i * len(row), row, length) for i, row in enumerate(torch.as_tensor(ids))]


@torch.inference_mode()
def test_exact_by_steps_is_one_forward_within_the_floor(done, loaded):
    """And the losses are those of the sampled text in one ordinary forward, at the positions said."""
    record, folder = done
    ids = torch.from_numpy(load_texts(record, folder, SAMPLED_FILE))
    assert ids.shape == (3, 40 + 24 + 1)
    kept = load_log_probabilities(record, folder)
    assert kept.shape == (3, 25)
    first = loaded.model(ids[:, :40]).logits[:, -1].double().log_softmax(-1).gather(1, ids[:, 40:41])
    assert np.abs(kept[:, :1] - first.numpy()).max() < 2e-5
    whole = loaded.model(ids).logits[:, 40:-1].double().log_softmax(-1)
    expected = -whole.gather(2, ids[:, 41:, None])[..., 0]
    for protocol in ("stepwise", "two-pass"):
        nll = np.stack([load_tokens(folder / protocol, i)["nll"][0] for i in range(3)])
        assert np.abs(nll - expected.numpy()).max() < 2e-5  # float32 round-off of a loss near 5
    assert np.abs(kept[:, 1:] + expected.numpy()).max() < 2e-5
    steps = load_run(folder / "stepwise")
    assert steps.noise_floor.kl < 1e-9
    assert steps.audit.failures == {}
    assert np.sum(record.rows[0].kl) == 0


def test_the_record_is_that_of_the_tokens(done):
    """Sums, slope and S(t) again from the raw arrays, in float64."""
    record, folder = done
    kl, tvd, top1 = (
        np.stack([load_tokens(folder / "stepwise", i)[what][1] for i in range(3)]).astype(np.float64)
        for what in ("kl", "tvd", "top1")
    )
    row = record.rows[1]
    assert record.edges == [3, 6, 9, 12, 15, 18, 21, 24]
    assert np.array(row.kl)[2, 7] == pytest.approx(kl[2, 21:].sum())
    assert np.array(row.top1).sum() == top1.sum()
    assert row.slope == pytest.approx([np.polyfit(np.arange(24), one, 1)[0] for one in kl])
    agree = np.array([np.prod(1 - tvd[:, :t], axis=1).mean() for t in range(1, 25)])
    assert record.grid == list(range(1, 25))
    assert row.agree == pytest.approx(agree.tolist())
    assert row.departs == int(np.argmax(agree <= 0.5)) + 1
    assert np.sum(row.one_forward_kl) < np.sum(row.kl)
    assert record.rows[2].departs is None  # int8
    assert row.departs_interval == sums.departure_interval(np.cumprod(1 - tvd, axis=1))


def test_agreement_is_that_of_coupled_samples():
    """Draws from p and q, as alike as they can be, whose first difference is looked at: five standard errors."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, 20, generator=generator).double().softmax(-1) for _ in range(2))
    shared = torch.minimum(p, q)
    draws, agree = 20_000, torch.ones(20_000, dtype=torch.bool)
    found = []
    for step in range(6):
        first = torch.multinomial(p[step], draws, replacement=True, generator=generator)
        kept = torch.rand(draws, generator=generator, dtype=torch.float64) < (shared / p)[step][first]
        second = torch.multinomial((q - shared)[step], draws, replacement=True, generator=generator)
        agree &= torch.where(kept, first, second) == first
        found.append(agree.double().mean().item())
    tvd = ((p - q).abs().sum(-1) / 2).numpy()[None]
    assert sums.agreement(tvd)[0] == pytest.approx(np.array(found), abs=5 * 0.5 / draws**0.5)


def test_bins_slopes_departures():
    assert sums.edges_of(5) == [1, 2, 3, 4, 5]
    assert sums.edges_of(64)[0] == 8
    values = np.arange(10.0)[None] * 3 + 1
    assert sums.by_bin(values, [3, 10]) == [[12.0, 133.0]]
    assert sums.slopes(values) == pytest.approx([3.0])
    assert np.isnan(sums.slopes(np.ones((1, 1)))[0])
    assert sums.departure(np.array([0.9, 0.5, 0.4])) == 2
    assert sums.departure(np.array([0.9, 0.6])) is None


@pytest.mark.parametrize("how", [Sampling(temperature=None), Sampling(temperature=0.7, top_p=0.9)])
@torch.inference_mode()
def test_a_prompts_text_does_not_depend_on_the_others(model, tokens, how):
    prompts = windows(tokens[:120].reshape(3, 40))
    together = written(model, Batch(tuple(prompts)), 12, picker(how, 0, [0, 1, 2]))
    alone = [written(model, Batch((one,)), 12, picker(how, 0, [one.index])) for one in prompts]
    assert torch.equal(together, torch.cat(alone))
    if how.temperature is not None:
        assert not torch.equal(together, written(model, Batch(tuple(prompts)), 12, picker(how, 1, [0, 1, 2])))
        return
    cache = DynamicCache(config=model.config)
    ids = prompts[0].prefix
    for token in together[0]:
        assert forward(model, ids, cache).logits[0, -1].argmax() == token
        ids = token[None, None]


def test_draws_follow_the_distribution():
    """Cut to the likeliest that make up top-p, and normalised: five standard errors of 4,000 draws."""
    logits = torch.tensor([[2.0, 1.5, 1.0, 0.0, -1.0]])
    how = Sampling(temperature=1.0, top_p=0.8)
    p = probabilities(logits, how)[0]
    assert (p > 0).tolist() == [True, True, True, False, False]
    drawn = torch.cat([picker(how, seed, [0])(logits, 0) for seed in range(4000)])
    share = torch.bincount(drawn, minlength=5) / 4000
    assert torch.allclose(share, p / p.sum(), atol=5 * 0.5 / 4000**0.5)
    assert (probabilities(logits, Sampling(temperature=1.0, top_k=2))[0] > 0).sum() == 2


def test_own_sampling_settings(loaded):
    assert sampling_of(HOW, loaded.model) == Sampling(temperature=1.0)
    config = loaded.model.generation_config
    config.do_sample, config.temperature, config.top_p, config.top_k = True, 0.6, 0.95, 20
    assert sampling_of(HOW, loaded.model) == Sampling(temperature=0.6, top_p=0.95, top_k=20)
    assert sampling_of(replace(HOW, temperature=0.5), loaded.model) == Sampling(temperature=0.5)
    assert sampling_of(replace(HOW, greedy=True), loaded.model) == Sampling(temperature=None)


def test_free_run_and_a_complete_replay(loaded, prompts, tmp_path):
    options, notes = Options(device="cpu", out=str(tmp_path / "run")), []
    how = replace(HOW, prompts=prompts, prompt_length=48, free_run=True)
    record, folder = replay([*SPECS, "kivi:bits=2,group_size=8,residual_length=40"], options, how, loaded=loaded)
    assert record.rows[0].free_run.departs == [None] * 3
    own = record.rows[1].free_run
    assert all(at is None or at > 1 for at in own.departs)  # the first token is exact's
    assert own.length == [25] * 3  # the tiny model has no stop token
    assert [bool(row.note) for row in record.rows] == [False, False, False, True]
    replay([*SPECS, "kivi:bits=2,group_size=8,residual_length=40"], options, how, loaded=loaded, on_note=notes.append)
    assert any("complete" in note for note in notes)
    assert load_replay(folder) == record
    text, other = np.array([[1, 2, 3, 4, 1, 2, 3, 4, 9, 0]]), np.array([[1, 2, 3, 4, 1, 7, 3, 4, 9, 0]])
    found = compared(text, other, {9})
    assert (found.length, found.departs, found.distinct) == ([8], [6], [4 / 5])


def test_the_text_of_another_replay(done, loaded, prompts, tmp_path, refused):
    """Taken with its log-probabilities, not sampled again; the same schemes then have the same scores."""
    record, folder = done
    notes = []
    how = replace(HOW, prompts=prompts, sampled=str(folder / SAMPLED_FILE))
    options = Options(device="cpu", out=str(tmp_path / "more"))
    again, place = replay([*SPECS, "int4:group_size=16"], options, how, loaded=loaded, on_note=notes.append)
    assert not [note for note in notes if "the exact model writes" in note]
    assert np.array_equal(load_texts(again, place, SAMPLED_FILE), load_texts(record, folder, SAMPLED_FILE))
    assert np.array_equal(load_log_probabilities(again, place), load_log_probabilities(record, folder))
    assert [row.kl for row in again.rows[:3]] == [row.kl for row in record.rows]
    for changed, message in (
        (replace(how, tokens=20), "other lengths"),
        (replace(how, greedy=True), "other sampling"),
        (replace(how, prompts=None), "other prompts"),
        (replace(how, sampled=str(tmp_path)), "no run folder"),
    ):
        with refused(message):
            replay(SPECS, replace(options, out=str(tmp_path / "other")), changed, loaded=loaded)
    with refused("other seed"):
        replay(SPECS, replace(options, seed=1, out=str(tmp_path / "other")), how, loaded=loaded)


def test_a_long_chat_keeps_its_first_token_and_its_end(loaded, tmp_path):
    """Which the model takes for a sink; what is lost is said."""
    tokenizer = loaded.tokenizer
    tokenizer.chat_template = "w9 {% for one in messages %}{{ one.content }} {% endfor %}w8"
    long, short = (
        {"messages": [{"role": "user", "content": " ".join(f"w{i}" for i in range(10, 10 + n))}]} for n in (60, 38)
    )
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (long, short)))
    found = load_prompts(str(path), 2, 40, tokenizer)
    words = [tokenizer.convert_ids_to_tokens(row) for row in found.tokens.tolist()]
    assert words[0] == ["w9", *(f"w{i}" for i in range(32, 70)), "w8"]
    assert words[1] == ["w9", *(f"w{i}" for i in range(10, 48)), "w8"]
    assert (found.cut, found.skipped) == (1, 0)
    assert load_prompts(str(path), 1, 1, tokenizer).tokens.shape == (1, 1)


def test_the_interval_of_a_departure():
    """Where a t interval of S(t) over prompts still holds ½, by direct computation."""
    rng = np.random.default_rng(0)
    agree = sums.agreement(rng.uniform(0, 0.05, (8, 60)))
    low, high = sums.departure_interval(agree)
    ends = [stats.t.interval(0.95, 7, one.mean(), stats.sem(one)) for one in agree.T]
    assert low == next(t for t, (below, _) in enumerate(ends, 1) if below <= 0.5)
    assert high == next(t for t, (_, above) in enumerate(ends, 1) if above <= 0.5)
    assert low < sums.departure(agree.mean(axis=0)) < high
    assert sums.departure_interval(agree[:1]) is None
    assert sums.departure_interval(agree[:, :5]) == (None, None)


def test_prompts(loaded, files, prompts, tmp_path, refused):
    tokenizer = loaded.tokenizer
    found = load_prompts(prompts, 3, 40, tokenizer)
    assert (found.tokens.shape, found.skipped) == ((3, 40), 1)
    assert load_prompts(prompts, 3, 40, tokenizer, bos=5).tokens[:, 0].tolist() == [5] * 3
    words = [f"w{i}" for i in range(100)]
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(words[i : i + 10]) for i in range(0, 100, 10)))
    spread = load_prompts(str(tmp_path / "text.txt"), 2, 15, tokenizer).tokens
    assert (spread - spread[0, 0]).tolist() == [list(range(15)), list(range(40, 55))]  # of 5 that there are
    with refused("gives 5 prompts of 15 tokens, not 6"):
        load_prompts(str(tmp_path / "text.txt"), 6, 15, tokenizer)
    with refused("longest of the others has 50"):
        load_prompts(prompts, 3, 60, tokenizer)
    for line, message in (
        ("{", "line 1 is no JSON"),
        ('{"a": 1}', "no text in text or prompt"),
        ('{"messages": [1]}', "chat"),
    ):
        (tmp_path / "bad.jsonl").write_text(line)
        with refused(message):
            load_prompts(str(tmp_path / "bad.jsonl"), 1, 5, tokenizer)


def test_prompts_of_a_data_set(loaded, monkeypatch, refused):
    import datasets

    from kvdelta.harness.subject import hub

    rows = [{"question": " ".join(["w3"] * 30)}]
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, config, split, **options: {"org/set test": rows}[f"{name} {split}"]
    )
    monkeypatch.setattr(hub, "answers", lambda: True)
    found = load_prompts("org/set:test:question", 1, 20, loaded.tokenizer)
    assert (found.name, found.tokens.shape) == ("org/set:test", (1, 20))
    with refused(r"no such file, and .* tried datasets.load_dataset"):
        load_prompts("org/other", 1, 20, loaded.tokenizer)


def test_prompts_of_a_data_set_on_disk(loaded, monkeypatch, tmp_path, refused):
    """Through the package itself, which takes a folder as it does a hub id."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "questions").mkdir()
    rows = [{"question": f"w{i} " * 30, "other": ""} for i in range(5)]
    (tmp_path / "questions/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_prompts(f"{tmp_path / 'questions'}:test:question", 3, 20, loaded.tokenizer)
    assert (found.name, found.tokens.shape) == ("questions:test", (3, 20))
    assert len(found.tokens[:, 0].unique()) == 3
    with refused("has no text in answer; it has question, other"):
        load_prompts(f"{tmp_path / 'questions'}:test:answer", 3, 20, loaded.tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_count": 0}, "0 prompts"),
        ({"tokens": 0}, "0 tokens after each prompt"),
        ({"prompt_length": 0}, "prompts of 0 tokens"),
        ({"step": 0}, "step is 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"greedy": True, "top_p": 0.9}, "greedy takes the likeliest"),
    ],
)
def test_bad_input(refused, changes, message):
    with refused(message):
        replace(HOW, **changes)


def test_prompts_longer_than_the_positions(loaded, prompts, refused, tmp_path):
    with refused("prompts of 500 tokens and 24 after them, with the first, take 525 positions, the model has 512"):
        replay(SPECS, Options(device="cpu"), replace(HOW, prompts=prompts, prompt_length=500), loaded=loaded)


def test_damage_of_a_replay_is_named_and_made_whole(done, loaded, prompts, tmp_path):
    """In the text that was sampled, and in the tokens of a run that its sums are from."""
    record, folder = done
    options = Options(device="cpu", out=str(folder))
    window = next((folder / "stepwise" / "tokens").iterdir())
    for path, named in ((folder / SAMPLED_FILE, "replay.json"), (window, "stepwise/run.json")):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert [str(one.file.relative_to(folder)) for one in verify(folder) if one.damage] == [named]
        again, _ = replay(SPECS, options, replace(HOW, prompts=prompts), loaded=loaded)
        assert again == record
        assert not [one for one in verify(folder) if one.damage]
