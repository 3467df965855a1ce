"""Wrappers: exact inverses around an exact inner, and each does what it is for."""

import pytest
import torch

from kvdelta.schemes import TokenStore, parse_scheme
from kvdelta.schemes.families.gear import LowRankQuantizer, orthonormal
from kvdelta.schemes.rotation import rotate

from .cases import FAMILIES, rebuild

WRAPPERS = [family.name for family in FAMILIES if family.wraps]
SPARSE = f"sparse(asym2:axis=channel,group_size=32):fraction={5 / 2048}"
CHANGES_NUMBERS = "clip"  # clamps before the inner quantizer: no inverse


@pytest.mark.parametrize("channels", [64, 80, 96])
@pytest.mark.parametrize("name", [name for name in WRAPPERS if name != CHANGES_NUMBERS])
def test_exact_around_exact(name, channels):
    """To float32's rounding, or, where a mean or an outlier is stored, that of float16."""
    x = torch.randn(1, 2, 256, channels) * torch.randn(1, 2, 256, 1).exp()
    x[..., 3] += 20
    x = x.half().float()
    scheme = parse_scheme(f"{name}(exact)")
    for side in scheme.sides.values():
        assert torch.allclose(rebuild(side.quantizer, x), x, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 2, 64, 80, 128])
@pytest.mark.parametrize("kind", ["hadamard", "signed-hadamard", "orthogonal"])
def test_rotations_keep_lengths_and_come_back(kind, channels):
    x = torch.randn(1, 1, 50, channels)
    rotated = rotate(x, kind, 3)
    assert torch.allclose(rotated.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
    assert torch.allclose(rotate(rotated, kind, 3, back=True), x, atol=1e-5)
    eye = torch.eye(channels)[None, None]
    assert torch.allclose(rotate(eye, kind, 3)[0, 0] @ rotate(eye, kind, 3)[0, 0].T, eye[0, 0], atol=1e-5)


def test_sylvester():
    expected = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    assert torch.equal(rotate(torch.eye(4)[None, None], "hadamard", 0)[0, 0], expected)


def test_a_rotation_spreads_a_loud_channel():
    x = torch.randn(1, 1, 64, 64)
    x[..., 5] += 30
    errors = [(rebuild(parse_scheme(spec).key.quantizer, x) - x).norm() for spec in ("asym2", "hadamard(asym2)")]
    assert errors[1] < 0.6 * errors[0]


def test_the_largest_numbers_are_exact():
    x = torch.randn(1, 2, 64, 64).half().float()
    x[0, 1, 7, 9] = -300.0
    held = parse_scheme("sparse(asym2:axis=channel,group_size=32):fraction=0.02").key.quantizer.quantize(x)
    count = round(0.02 * 32 * 64)
    for block in range(2):
        part, rebuilt = (y[0, 1, 32 * block : 32 * block + 32].flatten() for y in (x, held.dequantize()))
        largest = part.abs().topk(count).indices
        assert torch.equal(rebuilt[largest], part[largest])
    assert held.outlier_index.shape == (1, 2, 2, count)
    assert held.nbytes()["outlier_value"] == held.nbytes()["outlier_index"] == 2 * 2 * 2 * count


def test_a_mean_is_subtracted_from_keys_alone():
    scheme = parse_scheme("centred(asym2)")
    assert scheme.key.flush_every == 128
    assert scheme.value == parse_scheme("asym2").value
    x = torch.randn(1, 1, 256, 64)
    x[..., ::2] += 9
    errors = [(rebuild(parse_scheme(spec).key.quantizer, x) - x).norm() for spec in ("asym2", "centred(asym2)")]
    assert errors[1] < 0.5 * errors[0]


def test_a_mean_is_that_of_a_channel_over_a_block():
    x = torch.randn(1, 2, 256, 64) + 9 * torch.randn(1, 2, 1, 64)
    mean = x.unflatten(2, (2, 128)).mean(3, keepdim=True).half().float().expand(1, 2, 2, 128, 64).flatten(2, 3)
    inner, outer = (parse_scheme(spec).key.quantizer for spec in ("asym2", "centred(asym2)"))
    assert torch.allclose(rebuild(outer, x), rebuild(inner, x - mean) + mean, rtol=0, atol=1e-5)


def test_the_rest_is_what_the_inner_scheme_makes_of_it():
    """With the median of a channel over the block in the place of what is kept."""
    x = torch.randn(1, 1, 32, 64)
    x[0, 0, 3, :5] = 50.0
    inner, outer = (parse_scheme(spec).key.quantizer for spec in ("asym2:axis=channel,group_size=32", SPARSE))
    kept = torch.zeros(32 * 64, dtype=torch.bool).index_fill(0, x.abs().flatten().topk(5).indices, True).view(32, 64)
    filled = torch.where(kept, x[0, 0].median(0).values, x[0, 0])[None, None]
    assert torch.equal(rebuild(outer, x)[0, 0][~kept], rebuild(inner, filled)[0, 0][~kept])
    assert torch.equal(rebuild(outer, x)[0, 0][kept], x[0, 0][kept])


def test_clipping_is_clamping():
    x = torch.randn(1, 1, 4, 64)
    inner = parse_scheme("asym3").key.quantizer
    low, high = 0.9 * x.amin(-1, keepdim=True), 0.9 * x.amax(-1, keepdim=True)
    expected = rebuild(inner, x.clamp(low, high))
    assert torch.equal(rebuild(parse_scheme("clip(asym3):c=0.9").key.quantizer, x), expected)


def test_gear_takes_a_coherent_error_away():
    """An error of rank 1 beyond what the inner quantizer holds: values that it clips."""
    x = 0.01 * torch.randn(1, 1, 128, 64)
    x += torch.randn(1, 1, 128, 1) @ torch.randn(1, 1, 1, 64)
    plain, geared = (
        rebuild(parse_scheme(s).key.quantizer, x) - x for s in ("int2", "gear(int2):rank=4,outliers=0.001")
    )
    assert geared.norm() < 0.7 * plain.norm()


def test_gear_is_near_the_best_of_its_rank():
    """The rest after rank 4, against the least that any rank-4 part leaves (singular values 5 and on)."""
    x = torch.randn(1, 1, 128, 64)
    rest = x - rebuild(parse_scheme("int2").key.quantizer, x)
    best = torch.linalg.svdvals(rest[0, 0])[4:].norm()
    left = (rebuild(LowRankQuantizer(parse_scheme("int2").key.quantizer, 128, 4), x) - x).norm()
    assert best <= left < 1.03 * best


def test_what_wraps_gear_wraps_its_prompt():
    """Both in front of the rest: the first tokens as a scheme of that block alone has them."""
    x = torch.randn(1, 2, 192, 64)
    store = TokenStore(parse_scheme("hadamard(gear(asym2:axis=channel):prompt=128)").key)
    store.append(x)
    first, rest = (
        rebuild(parse_scheme(spec).key.quantizer, part)
        for spec, part in zip(
            ("hadamard(gear(asym2:axis=channel):block=128,rank=4)", "hadamard(gear(asym2:axis=channel))"),
            x.split([128, 64], dim=2),
            strict=True,
        )
    )
    assert torch.equal(store.read(), torch.cat([first, rest], dim=2))


def test_prompts_of_one_side():
    scheme = parse_scheme("gear(asym4):prompt=128,sides=key")
    assert (scheme.key.first_tokens, scheme.value.first_tokens) == (128, 0)
    assert parse_scheme("gear(asym4):prompt=128,sides=value,prompt_rank=3").value.first.rank == 3


@pytest.mark.parametrize("spec", ["turboquant:bits=2", "hadamard(asym2):signs=random", "gear(asym2)"])
def test_what_is_drawn_is_drawn_with_the_seed_of_the_spec(spec):
    """Whatever torch's own generator is at, and another seed draws another thing."""
    x, numbers = torch.randn(1, 1, 128, 64), []
    for seed in (0, 0, 1):
        torch.rand(3)
        joined = ":" if spec.endswith(")") else ","
        numbers.append(rebuild(parse_scheme(f"{spec}{joined}seed={seed}").key.quantizer, x))
    assert torch.equal(numbers[0], numbers[1])
    assert not torch.equal(numbers[0], numbers[2])


def test_orthonormal_columns():
    x = torch.randn(3, 40, 4, dtype=torch.float64)
    x[1, :, 2] = 2 * x[1, :, 0]
    basis = orthonormal(x)
    gram = basis.mT @ basis
    expected = torch.eye(4, dtype=torch.float64).expand(3, 4, 4).clone()
    expected[1, 2, 2] = 0
    assert torch.allclose(gram, expected, atol=1e-12)


def test_kitty_boosts_the_loud_channels():
    x = torch.randn(1, 1, 128, 64)
    x[..., [4, 9, 30]] *= 20
    held = parse_scheme("kitty").key.quantizer.quantize(x)
    assert {4, 9, 30} <= set(held.boosted.flatten().tolist())
    assert held.boosted.shape[-1] == 8
    error = (held.dequantize() - x).norm(dim=2)[0, 0] / x.norm(dim=2)[0, 0]
    assert error[[4, 9, 30]].max() < 0.15 < error[[0, 1, 2]].min()


@pytest.mark.parametrize(
    ("boost", "channels", "boosted"),
    [(0.14, 64, 8), (0.125, 64, 8), (0.3, 10, 3), (0.9, 4, 3), (0.99, 4, 3), (0.1, 4, 1)],
)
def test_kitty_boosts_a_share_of_the_channels_rounded_down_never_none_and_never_all(boost, channels, boosted):
    held = parse_scheme(f"kitty:boost={boost}").key.quantizer.quantize(torch.randn(1, 1, 128, channels))
    assert held.boosted.shape[-1] == boosted


def test_a_range_beyond_a_float16_scale_is_cut_and_spills_into_no_other_code():
    """Scale and offset saturate at ±65504, so the largest code of 4 bits stands for 14 of them, of 2 bits for 2."""
    x = torch.tensor([-1.0, 1.0]).repeat(64)[None, None, :, None] * torch.tensor([1e6] + [3e5] * 7)
    rebuilt = rebuild(parse_scheme("kitty").key.quantizer, x)
    assert rebuilt[0, 0, :2].T.tolist() == [[-65504.0, 14 * 65504.0]] + 7 * [[-65504.0, 2 * 65504.0]]


def test_an_outlier_of_a_token_does_not_widen_its_range():
    x = torch.randn(1, 1, 8, 64)
    loud = x.clone()
    loud[..., 7] = 300
    plain, sparse = (parse_scheme(spec).key.quantizer for spec in ("asym2", f"sparse(asym2):fraction={1 / 64}"))
    kept = torch.arange(64) != 7
    assert (rebuild(sparse, loud) - loud)[..., kept].norm() < 1.1 * (rebuild(plain, x) - x)[..., kept].norm()


@pytest.mark.parametrize(("signs", "kind"), [("none", "hadamard"), ("random", "signed-hadamard")])
def test_hadamard_quantizes_what_its_matrix_gives(signs, kind):
    x = torch.randn(1, 2, 4, 64)
    inner, outer = (parse_scheme(spec).key.quantizer for spec in ("asym4", f"hadamard(asym4):signs={signs},seed=0"))
    codes = [quantizer.quantize(y).parts()["codes"] for quantizer, y in ((outer, x), (inner, rotate(x, kind, 0)))]
    assert torch.equal(codes[0].flatten(), codes[1].flatten())


def test_at_least_one_number_of_a_block_is_exact():
    held = parse_scheme("sparse(asym2):fraction=1e-6").key.quantizer.quantize(torch.randn(1, 1, 256, 64))
    assert held.outlier_value.shape[-1] == 1


def test_fp8_counts_what_saturates():
    x = torch.ones(1, 1, 4, 64)
    x[0, 0, 0, :3] = torch.tensor([460.0, 470.0, -1e4])  # 460 still rounds to 448
    store = TokenStore(parse_scheme("fp8:scale=none").key)
    store.append(x)
    assert store.saturated == 2
    assert store.read()[0, 0, 0, :3].tolist() == [448.0, 448.0, -448.0]
    scaled = TokenStore(parse_scheme("fp8:scale=token").key)
    scaled.append(x)
    assert scaled.saturated == 0


BITS = {  # of the packed part, D = 64 unless said: what the measurement must give for keys and values
    "asym2:group_size=32": (3.0, 3.0),
    "asym4": (4.5, 4.5),
    "hqq4": (4.5, 4.5),
    "int4": (4.25, 4.25),
    "q8_0": (8.5, 8.5),
    "q5_1": (6.0, 6.0),
    "q5_0": (5.5, 5.5),
    "q4_1": (5.0, 5.0),
    "q4_0": (4.5, 4.5),
    "iq4_nl": (4.5, 4.5),
    "nvfp4": (4.5, 4.5),
    "mxfp4": (4.25, 4.25),
    "turboquant:bits=3": (3.25, 3.25),
    "kvarn": (4.5, 2.625),
    "hadamard(asym4)": (4.5, 4.5),
    "clip(asym4)": (4.5, 4.5),
    "centred(asym4)": (4.5 + 16 / 128, 4.5),
    "oscar": (3.0 + 16 / 128, 3.0),  # two heads share a token's norm
    "fp8:scale=none": (8.0, 8.0),
    "kivi2": (3.0, (3.0 * 1920 + 16 * 128) / 2048),
    "gear(asym2:key_axis=channel)": (2.5 + 0.75 + 1, 2.5 + 0.375 + 1),
    "gear(asym2:key_axis=channel):prompt=1536": (  # 15 + 15 numbers of a channel's 1536, of 32 bits; 512 tokens in blocks of 64
        2.5 + (1536 * (30 * 32 / 1536 + 1 + 64 / 1536) + 512 * (0.75 + 1)) / 2048,
        2.5 + 0.375 + (1536 * (1 + 64 / 1536) + 512 * 1) / 2048,
    ),
    "ott": tuple(((b + 3 * (16 + 8 / 64) / 128) * 1920 + 16 * 128) / 2048 for b in (2.25, 2.5)),
}


@pytest.mark.parametrize("spec", BITS)
def test_effective_bits_are_the_measured_bytes(spec):
    measured = []
    for side in parse_scheme(spec).sides.values():
        store = TokenStore(side)
        store.append(torch.randn(1, 2, 2048, 64))
        measured.append(8 * store.counted_bytes() / store.elements)
    assert measured == pytest.approx(BITS[spec], abs=1e-9)


def test_kvarn_at_128_channels():
    store = TokenStore(parse_scheme("kvarn:bits=4").value)
    store.append(torch.randn(1, 2, 2048, 128))
    assert 8 * store.counted_bytes() / store.elements == 4.375
