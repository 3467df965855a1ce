"""kvquant: the conformance suite on calibrated quantizers, and what is its own: thresholds, levels, ragged outliers."""

import json
from dataclasses import replace
from math import pi

import pytest
import torch

from kvdelta.schemes import Place, TokenStore, parse_scheme
from kvdelta.schemes.calibrated_values import without_outliers
from kvdelta.schemes.calibration_file import Calibration, CalibrationFile, as_bytes, facts_path, read
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.families.kvquant import calibrate
from kvdelta.schemes.levels import weighted_levels

from .cases import DTYPES, rebuild, sample
from .conformance import CHECKS, check_bound, check_channels_that_do_not_divide, check_zeros, claimed

TEXT = {"name": "train", "sha256": "0" * 64, "token_sha256": "1" * 64}


class Turning:
    """Rotates pairs of channels (i, i + half) by position · frequency, as RoPE does."""

    def rotate(self, keys, start, sign=1):
        half = keys.shape[-1] // 2
        angles = torch.arange(start, start + keys.shape[2])[:, None] * pi / 2 ** torch.arange(1, half + 1).float()
        cos, sin = angles.cos(), sign * angles.sin()
        first, second = keys.float().split(half, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def unrotate(self, keys, start):
        return self.rotate(keys, start, sign=-1)

    def __deepcopy__(self, memo):
        return self


def written(path, bits=3, outliers=0.01, heads=2, channels=64, **more_facts):
    """A calibration on numbers with a loud channel, for one layer, of tokens behind the fourth."""
    rng = torch.Generator().manual_seed(5)
    samples = {side: torch.randn(heads, 4000, channels, generator=rng) for side in ("key", "value")}
    samples["key"][..., 3] = 8 * samples["key"][..., 3] + 20
    weights = {side: torch.ones_like(x) for side, x in samples.items()}
    tensors = calibrate(0, samples, weights, {"bits": bits, "outliers": outliers})
    facts = {"bits": bits, "outliers": outliers, "sink_tokens": 4, "text": TEXT, "tokens": 4000} | more_facts
    content, said = as_bytes(Calibration(tensors, facts))
    path.write_bytes(content)
    facts_path(path).write_bytes(said)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return written(tmp_path_factory.mktemp("calibration") / "three.safetensors")


def bound(spec, side):
    scheme = parse_scheme(spec)
    rule = scheme.sides[side]
    return replace(rule, quantizer=rule.quantizer.bind(Place(0, side, Turning(), rule.sink_tokens)))


@pytest.mark.parametrize("place", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("which", ["tensors", "facts"])
def test_a_calibration_with_a_flipped_bit_is_refused(tmp_path, which, place, refused):
    """Though nobody gave its hash: in the numbers of a file, and in a digit of what it says."""
    path = written(tmp_path / "three.safetensors")
    damaged = path if which == "tensors" else facts_path(path)
    content = bytearray(damaged.read_bytes())
    at = int(place * len(content))
    if which == "facts":
        at = next(i for i in range(at, -1, -1) if chr(content[i]).isalnum())
    content[at] ^= 1
    damaged.write_bytes(content)
    with refused("not as it was written, or three.json beside it: make it again|is no calibration"):
        read(CalibrationFile(str(path)))


# a calibration is for one width, and its levels have no scale to bound an error by
APPLY = [check for check in CHECKS if check not in (check_channels_that_do_not_divide, check_bound)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", ["key", "value"])
@pytest.mark.parametrize("check", APPLY, ids=lambda check: check.__name__)
def test_conformance(check, side, dtype, file, request):
    scheme = bound(f"kvquant:bits=3,calibration={file},first_exact=0", side)
    claim = claimed(check, scheme)
    if (check, side) == (check_zeros, "key"):
        claim = "0 is not exact: levels are those of the calibration text"
    if claim is not True:  # of fewer heads than the calibration has: refused
        request.applymarker(pytest.mark.xfail(strict=True, raises=(AssertionError, UserError), reason=claim))
    check(scheme, dtype)


def test_keys_are_quantized_before_rotation(file):
    """A constant key before rotation has one code in every token, and what the thresholds hold is within its step."""
    side = bound(f"kvquant:bits=3,calibration={file},first_exact=0", "key")
    before = 0.4 * torch.ones(1, 2, 64, 64)
    held = side.quantizer.quantize_at(Turning().rotate(before, 100), 100)
    assert (held.codes == held.codes[:, :, :1]).all()
    rebuilt = Turning().unrotate(held.dequantize(), 100)
    _, half = side.quantizer.middle_and_half(before.device)
    levels = torch.tensor(side.quantizer.levels)
    step = (levels[1:] - levels[:-1]).max() * half  # 0.4 lies between two levels of every channel but the loud one
    assert ((rebuilt - before).abs() <= step / 2 + 1e-4)[..., 4:].all()


def test_outliers_are_exact_in_both_sides(file):
    x = sample(bound(f"kvquant:bits=3,calibration={file}", "key"), torch.float32, tokens=200).half().float()
    x[0, 1, 17, 40] = 300.0
    key = bound(f"kvquant:bits=3,calibration={file},first_exact=0", "key").quantizer
    rotated = Turning().rotate(x, 0)
    assert Turning().unrotate(rebuild(key, rotated), 0)[0, 1, 17, 40] == pytest.approx(300, rel=1e-3)
    value = bound(f"kvquant:bits=3,calibration={file}", "value").quantizer
    assert rebuild(value, x)[0, 1, 17, 40] == 300


def test_positions_go_on_behind_sinks(file):
    """Token by token equals all at once, sinks first: each run knows where it starts."""
    side = bound(f"kvquant:bits=3,calibration={file},first_exact=4", "key")
    x = sample(side, torch.float32, tokens=60)
    stores = [TokenStore(side), TokenStore(side)]
    stores[0].append(x)
    for token in x.split(1, dim=2):
        stores[1].append(token)
    assert torch.equal(stores[0].read(), stores[1].read())
    assert torch.equal(stores[0].read()[:, :, :4], x[:, :, :4])
    assert stores[0].counted_bytes() == stores[1].counted_bytes()


def test_a_store_after_crops_and_beams(file):
    side = bound(f"kvquant:bits=3,calibration={file}", "key")
    x = 3 * sample(side, torch.float32, tokens=80)  # many outliers
    store, plain = TokenStore(side), TokenStore(side)
    store.append(x[:, :, :50])
    store.crop(33)
    store.append(x[:, :, 33:])
    plain.append(x)
    assert torch.equal(store.read(), plain.read())
    assert store.counted_bytes() == plain.counted_bytes()
    rows = torch.tensor([1, 0, 1])
    store.index_select(rows)
    assert torch.equal(store.read(), plain.read()[rows])
    store.append(x[rows])
    assert store.length == 160


def test_effective_bits(tmp_path):
    """Keys b + .32 + 32/(H·D) on data like the calibration's; values the same, their range in 32 bits more."""
    file = written(tmp_path / "four.safetensors", bits=4, heads=4)
    rng = torch.Generator().manual_seed(6)
    x = torch.randn(1, 4, 2000, 64, generator=rng)
    measured = []
    for side in ("key", "value"):
        rule = bound(f"kvquant:bits=4,calibration={file},first_exact=0", side)
        data = x.clone()
        if side == "key":
            data[..., 3] = 8 * data[..., 3] + 20
            data = Turning().rotate(data, 0)
        held = rule.quantizer.quantize_at(data, 0)
        measured.append(8 * held.counted_bytes() / data.numel())
    assert measured[0] == pytest.approx(4 + 0.32 + 32 / 256, rel=0.01)
    assert measured[1] == pytest.approx(4 + 32 * 4 / 256 + 32 / 256)  # 2 outliers on each side of 256


def test_levels_are_where_the_weight_is():
    x = torch.cat([torch.full((100,), -0.5), torch.full((100,), 0.25)])
    assert weighted_levels(x, torch.ones(200), 2).tolist() == pytest.approx([-0.5, 0.25], abs=5e-4)
    normal = (torch.randn(200_000) / 3).clamp(-1, 1)
    levels = weighted_levels(normal, torch.ones(200_000), 4)
    lloyd_max = torch.tensor([-1.5104, -0.4528, 0.4528, 1.5104]) / 3
    assert torch.allclose(levels, lloyd_max, atol=0.01)
    weights = torch.where(normal > 0, 100.0, 1.0)
    assert (weighted_levels(normal, weights, 4) > 0).sum() >= 3


@pytest.mark.parametrize("side", ["key", "value"])
def test_levels_are_not_fitted_to_outliers(side):
    """They are kept exactly: however much an error of theirs would count, the levels are those of the other numbers."""
    rng = torch.Generator().manual_seed(7)
    samples = {name: torch.randn(2, 400, 64, generator=rng) for name in ("key", "value")}
    light = {name: torch.ones_like(x) for name, x in samples.items()}
    heavy = {name: torch.where(x.abs() > 3.5, 1e6, 1.0) for name, x in samples.items()}
    assert (heavy[side] > 1).sum() > 10
    tables = [calibrate(0, samples, weights, {"bits": 3, "outliers": 0.05}) for weights in (light, heavy)]
    assert torch.equal(tables[0][f"0.{side}.levels"], tables[1][f"0.{side}.levels"])


def test_outliers_of_a_token_are_its_ends():
    rows = torch.arange(256.0).flip(0)[None, None]
    inliers, values, places = without_outliers(rows, 0.01)
    assert sorted(values[0, 0].tolist()) == [0, 1, 254, 255]
    assert rows[0, 0, places[0, 0]].tolist() == values[0, 0].tolist()
    assert (inliers.amin(), inliers.amax()) == (2, 253)


def test_calibrated_schemes_are_named_by_their_file(file, tmp_path):
    scheme = parse_scheme(f"kvquant:bits=3,calibration={file}")
    assert scheme.name == f"kvquant:bits=3,calibration={CalibrationFile(str(file))}"
    assert parse_scheme(scheme.name) == scheme
    assert scheme.calibrated_on == [TEXT, TEXT]
    assert scheme.bind(1, [0], lambda layer: Turning()).calibrated_on == [TEXT] * 4


def test_a_moved_calibration_is_the_same_scheme(file, tmp_path):
    """Its tables are read once, its path is a label, and any path can be said in quotes."""
    copy = tmp_path / "a, b=(c) #1.safetensors"
    copy.write_bytes(file.read_bytes())
    facts_path(copy).write_bytes(facts_path(file).read_bytes())
    first, second = (
        parse_scheme(f"kvquant:bits=3,calibration={written}") for written in (file, f'"{copy}",first_exact=1')
    )
    assert first == second
    assert hash(first) == hash(second)
    assert first.name != second.name
    assert first.identity == second.identity == f"kvquant:bits=3,calibration=#{CalibrationFile(str(file)).digest}"
    assert parse_scheme(second.name) == second
    assert second.bind(1, [0], lambda layer: Turning()) == first.bind(1, [0], lambda layer: Turning())
    for unquoted in (copy, copy.with_name("a, b.safetensors")):
        with pytest.raises(UserError, match=r"with a comma (is given|comes) in quotes"):
            parse_scheme(f"kvquant:bits=3,calibration={unquoted}")


def test_a_calibration_that_changes_while_it_is_used(tmp_path):
    path = written(tmp_path / "changing.safetensors", heads=3)
    scheme = parse_scheme(f"kvquant:bits=3,calibration={path}")
    written(path, heads=1)
    with pytest.raises(UserError, match="has changed since"):
        scheme.bind(1, [0], lambda layer: Turning())


BAD = {
    "no file": ("kvquant:bits=3,calibration=/nowhere/x.safetensors", "cannot be read.*No such file.*kvdelta calibrate"),
    "changed": ("kvquant:bits=3,calibration={file}#00000000", "has changed since, its hash is now"),
    "first": ("kvquant:first_exact=-1", "first_exact=-1"),
    "outliers": ("kvquant:outliers=0.7", "outliers=0.7"),
    "wrapped": ("hadamard(kvquant:bits=3)", "cannot be wrapped"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_specs(case, file):
    spec, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        parse_scheme(spec.replace("{file}", str(file)))
    assert "\n" not in str(error.value)


def test_what_binding_refuses(file, tmp_path):
    with pytest.raises(ValueError, match="needs a calibration: make one with kvdelta calibrate"):
        parse_scheme("kvquant:bits=3").bind(1, [0], lambda layer: Turning())
    with pytest.raises(ValueError, match="needs the model's rotary module"):
        parse_scheme(f"kvquant:bits=3,calibration={file}").bind(1, [0])
    with pytest.raises(ValueError, match="made with bits=3, not 2"):
        parse_scheme(f"kvquant:bits=2,calibration={file}").bind(1, [0], lambda layer: Turning())
    with pytest.raises(ValueError, match=r"has no 1\.key\.lower: it was made for another model"):
        parse_scheme(f"kvquant:bits=3,calibration={file}").bind(2, [0, 1], lambda layer: Turning())
    with pytest.raises(ValueError, match=r"is for \(2, 64\) heads and channels, not \(2, 32\)"):
        bound(f"kvquant:bits=3,calibration={file}", "key").quantizer.quantize(torch.randn(1, 2, 4, 32))
    with pytest.raises(ValueError, match="use it through a SchemeCache"):
        parse_scheme(f"kvquant:bits=3,calibration={file}").value.quantizer.quantize(torch.randn(1, 2, 4, 64))
    with pytest.raises(ValueError, match=r"leaves out 4 first tokens .*keeps 5 exact"):
        parse_scheme(f"kvquant:bits=3,calibration={file},sink_tokens=5").bind(1, [0], lambda layer: Turning())
    silent = written(tmp_path / "before.safetensors", sink_tokens=None)  # as made before sinks were left out
    with pytest.raises(ValueError, match=r"leaves out 0 first tokens .*keeps 1 exact"):
        parse_scheme(f"kvquant:bits=3,calibration={silent}").bind(1, [0], lambda layer: Turning())
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(file.read_bytes())
    for said in ({}, ["text"]):
        facts_path(broken).write_text(json.dumps(said))
        with pytest.raises(ValueError, match="does not say what the calibration was made of"):
            parse_scheme(f"kvquant:bits=3,calibration={broken}").bind(1, [0], lambda layer: Turning())
    broken.write_bytes(b"no")
    facts_path(broken).write_text(json.dumps({"text": TEXT}))
    with pytest.raises(ValueError, match=r"is no calibration"):
        parse_scheme(f"kvquant:bits=3,calibration={broken}").bind(1, [0], lambda layer: Turning())


def test_a_window_that_slides_keeps_positions_and_outliers(file):
    """Keys are rotated back by their position in the text, whatever was let go before them."""
    rule = bound(f"kvquant:bits=3,calibration={file}", "key")
    x = sample(rule, torch.float32, tokens=50)
    store, whole = TokenStore(rule), TokenStore(rule)
    for part in x.split(7, dim=2):
        store.append(part)
        whole.append(part)
        store.forget(store.length - 12)
        assert torch.equal(store.read(), whole.read()[:, :, store.dropped :])
    assert store.dropped == 38
