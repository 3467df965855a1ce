"""Specs: the same scheme from the same settings, and a clear answer to any other."""

from inspect import isabstract
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from kvdelta.schemes import SCHEMES, Quantizer, Scheme, TensorScheme, parse_scheme
from kvdelta.schemes.affine import MinMaxQuantizer
from kvdelta.schemes.calibration_file import CalibrationFile
from kvdelta.schemes.families.symmetric import SymmetricQuantizer
from kvdelta.schemes.fields import shown
from kvdelta.schemes.registry import SHORT_NAMES, build_scheme, fields_of, shorthands


def values_of(annotation):
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if annotation is float:
        return st.floats(-0.5, 2)
    if annotation is int:
        return st.sampled_from([-1, 0, 1, 3, 8, 16, 20, 32, 64, 128])
    if annotation is bool:
        return st.booleans()
    if annotation is CalibrationFile:
        return st.nothing()
    return st.one_of([values_of(option) for option in get_args(annotation)])  # a union


@st.composite
def settings_of_a_family(draw):
    family = draw(st.sampled_from(sorted(SCHEMES.values(), key=lambda family: family.name)))
    fields = {name: values_of(field.type) for name, field in fields_of(family).items() if field.default != ""}
    return family, draw(st.fixed_dictionaries({}, optional=fields)), draw(st.randoms(use_true_random=False))


def draw_inner(order):
    inner = order.choice(
        ["asym2", "int4:group_size=32", "asym3:axis=channel,group_size=16", "kivi2", "hqq4", "nf4", "q4_0"]
    )
    return f"{order.choice(['clip', 'hadamard', 'sparse'])}({inner})" if order.random() < 0.5 else inner


@given(settings_of_a_family())
def test_canonical_round_trip(case):
    """Any settings that go together: the name says them all, in any order of the spec."""
    family, settings, order = case
    try:
        inner = parse_scheme(draw_inner(order)) if family.wraps else None
        scheme = build_scheme(family, settings, "settings", inner)
    except ValueError:
        reject()
    again = parse_scheme(scheme.name)
    assert again == scheme
    assert hash(again) == hash(scheme)
    assert again.name == scheme.name
    items = [f"{name}={shown(value)}" for name, value in settings.items()]
    order.shuffle(items)
    head = f"{family.name}( {inner.name} )" if inner else family.name
    shuffled = parse_scheme(head + ":" * bool(items) + " , ".join(items))
    assert shuffled == scheme
    assert len({scheme, again, shuffled}) == 1


@given(settings_of_a_family())
def test_refusals_are_one_kind_of_error(case):
    """ValueError that quotes the spec: never an error from the inside."""
    family, settings, _ = case
    items = ",".join(f"{name}={shown(value)}" for name, value in settings.items())
    spec = f"{family.example}:{items}" if items else family.example
    try:
        parse_scheme(spec)
        answer = ""
    except ValueError as error:
        answer = str(error)
    assert not answer or answer.startswith(f"scheme {spec!r}: ")


def test_nesting_reads_from_outside_in():
    scheme = parse_scheme("centred( hadamard(clip(asym2:group_size=128):c=0.9) ):sink_tokens=4,only=key")
    quantizers = [scheme.key.quantizer]
    while hasattr(quantizers[-1], "inner"):
        quantizers.append(quantizers[-1].inner)
    kinds = ["CentredQuantizer", "RotatedQuantizer", "ClippedQuantizer", "MinMaxQuantizer"]
    assert [type(quantizer).__name__ for quantizer in quantizers] == kinds
    assert scheme.key.sink_tokens == 4
    assert scheme.value == parse_scheme("exact").value
    inside = "asymmetric:bits=2,group_size=128"
    assert scheme.name == f"centred(hadamard(clip({inside}):c=0.9)):sink_tokens=4,only=key"
    assert parse_scheme(scheme.name) == scheme


def test_a_wrapper_of_one_side_leaves_the_other():
    scheme = parse_scheme("hadamard(asym2):sides=value")
    assert scheme.key == parse_scheme("asym2").key
    assert scheme.value.quantizer.inner == parse_scheme("asym2").value.quantizer


def test_a_wrapper_keeps_the_residual_rule():
    kivi, wrapped = parse_scheme("kivi2"), parse_scheme("hadamard(kivi2)")
    for side in ("key", "value"):
        rules = [(s.sides[side].keep_recent, s.sides[side].flush_every) for s in (kivi, wrapped)]
        assert rules[0] == rules[1]
    blocks = parse_scheme("centred(kivi2:residual_length=96):block=64")
    assert blocks.key.flush_every == 192  # both the window and the block divide it


def test_a_rule_that_says_0_is_told_where_it_changes_something():
    """Around a scheme with a rule of its own; where it changes nothing it is no other scheme."""
    kivi = parse_scheme("hadamard(kivi2)")
    without = parse_scheme("hadamard(kivi2):keep_recent=0")
    assert (kivi.value.keep_recent, without.value.keep_recent) == (128, 0)
    assert without.name == "hadamard(kivi:bits=2):keep_recent=0"
    assert parse_scheme(without.name) == without != kivi
    assert parse_scheme("oscar:flush_every=0").key.flush_every == 32 != parse_scheme("oscar").key.flush_every
    assert parse_scheme(parse_scheme("oscar:flush_every=0").name) == parse_scheme("oscar:flush_every=0")
    assert parse_scheme("int4:flush_every=1,keep_recent=0,sink_tokens=0") == parse_scheme("int4")


def test_a_wrapper_around_a_map_of_layers(tmp_path):
    (tmp_path / "map.json").write_text('{"default": "asym2", "layers": {"1": {"key": "asym4", "value": "asym2"}}}')
    scheme = parse_scheme(f"hadamard(@{tmp_path / 'map.json'})")
    assert [scheme.for_layer(i).key.quantizer.inner.bits for i in (0, 1, 2)] == [2, 4, 2]
    assert parse_scheme(scheme.name) == scheme


@pytest.mark.parametrize("short", sorted(SHORT_NAMES))
def test_short_names(short):
    family, values = SHORT_NAMES[short]
    spelled = f"{family.name}:" + ",".join(f"{name}={value}" for name, value in values.items())
    assert parse_scheme(short) == parse_scheme(spelled)
    assert short not in SCHEMES


def test_what_the_usual_names_stand_for():
    """Per token, groups of 64 channels, both sides, no residual; `int4` is symmetric. KIVI: K (0, R), V (R, 1)."""
    int4 = TensorScheme(SymmetricQuantizer(4, 64, "token"), keep_recent=0, flush_every=1, sink_tokens=0)
    assert parse_scheme("int4") == Scheme("symmetric:bits=4", int4, int4)
    kivi = parse_scheme("kivi:bits=2,group_size=32,residual_length=128,sink_tokens=4")
    assert kivi.key == TensorScheme(MinMaxQuantizer(2, 32, "channel"), 0, 128, 4)
    assert kivi.value == TensorScheme(MinMaxQuantizer(2, 32, "token"), 128, 1, 4)
    layout = parse_scheme("asymmetric:bits=2,key_axis=channel,value_axis=token,group_size=32")
    assert layout.key == TensorScheme(MinMaxQuantizer(2, 32, "channel"), 0, 32)  # a block is one group by default
    assert layout.value == TensorScheme(MinMaxQuantizer(2, 32, "token"), 0, 1)
    assert parse_scheme("exact").lossless
    assert not kivi.lossless


def test_bits_sets_both_sides_and_a_short_name_gives_way():
    for family in SCHEMES.values():
        for short, pair in shorthands(family).items():
            assert pair == (f"key_{short}", f"value_{short}")
            assert set(pair) <= fields_of(family).keys()
    assert parse_scheme("kivi2:value_bits=4") == parse_scheme("kivi:key_bits=2,value_bits=4")
    assert parse_scheme("int4:key_bits=8").key.quantizer.bits == 8
    assert parse_scheme(" int4 ") == parse_scheme("symmetric: bits = 4")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("kivy", ["no scheme 'kivy'", "did you mean 'kivi'?", *SCHEMES, *SHORT_NAMES]),
        ("int5", ["no scheme 'int5'", "did you mean 'int", "symmetric"]),
        ("", ["no scheme ''", "known: asymmetric, centred"]),
        ("asymetric:bits=2", ["no scheme 'asymetric'", "did you mean 'asymmetric'?"]),
        ("kivi:groupsize=32", ["no field 'groupsize'", "did you mean 'group_size'?", "residual_length", "bits"]),
        ("kivi:keep_recent=4", ["no field 'keep_recent'", "residual_length"]),  # it has its own rule
        ("exact:bits=4", ["no field 'bits'", "keep_recent, flush_every, sink_tokens"]),
        ("symmetric:bits=1", ["key_bits='1' is not one of 2, 3, 4, 8"]),
        ("kivi:bits=5", ["key_bits='5' is not one of 1, 2, 3, 4, 8"]),
        ("int4:key_axis=tokens", ["key_axis='tokens' is not one of token, channel", "did you mean token?"]),
        ("asym4:zero=int", ["zero='int' is not one of float, integer", "did you mean integer?"]),
        ("int4:group_size=al", ["group_size='al' is not one of all, a whole number", "did you mean all?"]),
        ("int4:group_size=6.5", ["group_size='6.5' is not one of all, a whole number"]),
        ("hqq4:beta=big", ["beta='big' is not one of a number"]),
        ("hqq4:iters=0", ["iters=0", "at least 1"]),
        ("hqq4:solver=library,iters=5", ["takes no iters", "20, 0.7, 10", "solver=batched"]),
        ("hqq4:solver=library,stop=reference", ["takes no iters, p, beta, normalize or stop"]),
        ("int4:sink_tokens=-1", ["sink_tokens=-1", "not negative"]),
        ("int4:keep_recent=-1", ["keep_recent=-1", "not negative"]),
        ("int4:flush_every=-8", ["flush_every=-8", "not negative"]),
        ("int4:group_size=0", ["group_size=0", "at least 1"]),
        ("kivi:residual_length=0", ["residual_length=0", "at least one group"]),
        ("kivi", None),
        (
            "kivi:group_size=48",
            ["group_size=48 tokens does not divide the block of 128", "residual_length", "multiple of 48"],
        ),
        (
            "asym4:key_axis=channel,flush_every=96",
            ["group_size=64 tokens does not divide the block of 96", "flush_every"],
        ),
        ("asym4:axis=channel,group_size=all", ["group_size=all with axis=channel", "such as group_size=32"]),
        ("asym3:group_size=20", ["group of 20 codes of 3 bits is 60 bits", "a group that 8 divides"]),
        ("kivi:value_bits=3,group_size=4", ["group of 4 codes of 3 bits"]),
        ("int4:bits=4,key_bits=8", ["key_bits is set twice"]),
        ("int4:bits", ["'bits' is not field=value", "a spec is int4:field=value,field=value"]),
        ("int4:bits=", ["'bits=' is not field=value"]),
        ("int4:", ["'' is not field=value"]),
        ("int4:bits=4,", ["'' is not field=value"]),
        ("hadamard", ["hadamard wraps another scheme: give it in parentheses, as hadamard(asym4)"]),
        ("hadamard()", ["wraps another scheme"]),
        ("hadamard(asym4", ["the ( at character 9 is not closed"]),
        ("hadamard(asym4))", ["the ) at character 16 closes nothing"]),
        ("hadamard(asym4)x", ["'x' follows the )", "hadamard(asym4):field=value"]),
        ("int4(asym4)", ["int4 wraps no other scheme; those that do: centred, clip, gear"]),
        ("hadamard(asim4)", ["scheme 'asim4'", "did you mean 'asym4'?"]),
        ("clip(hadamard(asym4:bit=2))", ["scheme 'asym4:bit=2'", "no field 'bit'; did you mean 'bits'?"]),
        ("hadamard(asym4:sink_tokens=4)", ["give it outside, as hadamard(…):sink_tokens=4"]),
        ("hadamard(asym4):seed=3", ["seed=3 draws random signs; add signs=random"]),
        ("hadamard(asym4):sides=keys", ["sides='keys' is not one of both, key, value"]),
        ("clip(asym4):c=2", ["c=2.0", "0 < c ≤ 1"]),
        ("sparse(asym4):fraction=0", ["fraction=0.0", "between 0 and 1"]),
        ("centred(asym2:axis=channel,group_size=64):block=96", ["block=96", "takes 64"]),
        ("gear(asym4):rank=0", ["rank=0"]),
        ("gear(asym4):seed=-1", ["seed=-1: a seed is not negative"]),
        ("gear(asym4):prompt=-64", ["prompt=-64", "at least 1 token"]),
        ("gear(asym4):prompt_rank=8", ["prompt_rank=8", "belongs to prompt=N"]),
        ("gear(asym2:axis=channel):prompt=96", ["prompt=96", "takes 64 tokens"]),
        ("gear(gear(asym4):prompt=64):prompt=64", ["prompt=64", "has a prompt of its own"]),
        ("ott:outliers=128", ["outliers=128", "at least one is quantized"]),
        ("turboquant:block=64", ["block=64", "belongs to bits=2.5 and 3.5"]),
        ("turboquant:bits=2.5,block=-1", ["block=-1", "at least 1 token"]),
        ("nvfp4:block=64", ["block=64", "add scales=2"]),
        ("llama.cpp:type=q6_0", ["key_type='q6_0' is not one of q8_0, q5_1", "did you mean"]),
        ("turboquant:seed=-1", ["seed=-1: a seed is not negative"]),
        ("turboquant:seed=9223372036854775808", ["below 2^63"]),
        ("hadamard(asym4):signs=random,seed=-3", ["seed=-3: a seed is not negative"]),
        ("kvarn:tile=1", ["tile=1", "at least 2 tokens"]),
        ("kvarn:tile=0", ["group_size=0", "at least 1"]),
        ("kitty:boost=1", ["boost=1.0", "between 0 and 1"]),
        ("fp8:block=64,scale=token", ["block=64", "belongs to scale=head or tensor"]),
        ("nf4:asymmetric=yes", ["asymmetric='yes' is not one of false, true"]),
        ("int4:only=k", ["only='k' is not one of both, key, value"]),
        ("int4:exact_first_layers=-1", ["exact_first_layers=-1", "not negative"]),
        ("int4:exact_last_layers=10001", ["exact_last_layers=10001", "nor over 10000"]),
    ],
)
def test_bad_specs(spec, parts):
    """The answer names what was got, what is allowed and the nearest match."""
    if parts is None:
        parse_scheme(spec)  # the control: a good one
        return
    with pytest.raises(ValueError, match="scheme ") as caught:
        parse_scheme(spec)
    assert str(caught.value).startswith(f"scheme {spec!r}: ")
    for part in parts:
        assert part in str(caught.value)


def _quantizers(kind: type = Quantizer) -> list[type]:
    return [kind, *(deeper for one in kind.__subclasses__() for deeper in _quantizers(one))]


def test_a_quantizer_is_the_interface_one_tier_or_final():
    """Interface or final class, at most one tier between; what is tweaked is wrapped."""
    for kind in _quantizers():
        if "schemes." in kind.__module__:
            assert len([one for one in kind.__mro__ if issubclass(one, Quantizer)]) <= 3, kind
            assert isabstract(kind) or not kind.__subclasses__(), kind


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("hadamard(" * 17 + "int4" + ")" * 17, "17 parentheses, and wrappers nest 16 deep"),
        ("hadamard(" * 1000 + "int4" + ")" * 1000, "10004 characters"),
        ("x" * 5000, "5000 characters"),
    ],
)
def test_a_spec_that_nobody_means_is_refused_in_one_short_line(spec, why):
    with pytest.raises(ValueError, match=why) as refused:
        parse_scheme(spec)
    assert len(str(refused.value)) < 200
