"""Files that map layers to schemes."""

import json

import pytest

from kvdelta.schemes import UserError, parse_scheme
from kvdelta.schemes.maps import one_side


def written(tmp_path, content):
    path = tmp_path / "map.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return f"@{path}"


def fitted(name):
    return {"name": name, "sha256": "0" * 64, "token_sha256": "1" * 64, "windows": [1, 2]}


def test_layers_ranges_and_sides(tmp_path):
    content = {"default": "int4", "layers": {"0-1": "exact", "5": {"key": "asym4", "value": "asym2"}}}
    scheme = parse_scheme(written(tmp_path, content))
    assert [scheme.for_layer(i).key.quantizer == parse_scheme("exact").key.quantizer for i in range(3)] == [
        True,
        True,
        False,
    ]
    assert scheme.for_layer(2).key == parse_scheme("int4").key
    assert (scheme.for_layer(5).key, scheme.for_layer(5).value) == (
        parse_scheme("asym4").key,
        parse_scheme("asym2").value,
    )
    assert parse_scheme(scheme.name) == scheme
    assert not scheme.lossless
    assert scheme.quantized_sides == ["key", "value"]
    keys = {"default": "exact", "layers": {"3": {"key": "int8", "value": "exact"}}}
    assert parse_scheme(written(tmp_path, keys)).quantized_sides == ["key"]
    assert parse_scheme(written(tmp_path, {"default": "exact"})).lossless


def by_layer(scheme, layers):
    """Bits of keys and of values, 16 where exact, layer by layer."""
    bound = scheme.bind(layers, range(layers))
    return [
        tuple(getattr(side.quantizer, "bits", 16) for side in bound.for_layer(i).sides.values()) for i in range(layers)
    ]


NESTED = {  # a map, and the bits of keys and values in a model of 5 layers
    "of the default": ({"default": "int4:exact_first_layers=2"}, [16, 16, 4, 4, 4]),
    "from the end": ({"default": "int4:exact_last_layers=2"}, [4, 4, 4, 16, 16]),
    "named ones come first": (
        {"default": "int4:exact_first_layers=2,exact_last_layers=1", "layers": {"1": "int2", "4": "int8"}},
        [16, 2, 4, 4, 8],
    ),
    "of an entry": ({"default": "int8", "layers": {"0-2": "int4:exact_first_layers=1"}}, [16, 4, 4, 8, 8]),
    "of an entry, from the end": ({"default": "int8", "layers": {"2-4": "int4:exact_last_layers=1"}}, [8, 8, 4, 4, 16]),
    "of a map": ({"default": "@inner", "layers": {"0": "int4"}}, [4, 2, 8, 8, 8]),
    "of a map, in some layers": ({"default": "int4", "layers": {"1-2": "@inner"}}, [4, 2, 8, 4, 4]),
    "of one side": (
        {"default": {"key": "int4:exact_first_layers=1", "value": "int8"}},
        [(16, 8), (4, 8), (4, 8), (4, 8), (4, 8)],
    ),
    "of both sides": (
        {"default": {"key": "int4:exact_first_layers=1,exact_last_layers=2", "value": "@inner"}},
        [(16, 3), (4, 2), (4, 8), (16, 8), (16, 8)],
    ),
    "of both sides, at the same layer": (
        {"default": {"key": "@inner", "value": "int4:exact_last_layers=4"}},
        [(3, 4), (2, 16), (8, 16), (8, 16), (8, 16)],
    ),
}


@pytest.mark.parametrize("case", NESTED)
def test_layer_rules_inside_a_map_go_on(tmp_path, case):
    content, expected = NESTED[case]
    inner = tmp_path / "inner.json"
    inner.write_text(json.dumps({"default": "int8", "layers": {"0": "int3", "1": "int2"}}))
    spec = written(tmp_path, json.dumps(content).replace("@inner", f"@{inner}"))
    bits = [one if isinstance(one, tuple) else (one, one) for one in expected]
    assert by_layer(parse_scheme(spec), 5) == bits
    assert parse_scheme(parse_scheme(spec).name) == parse_scheme(spec)


def test_rules_of_a_wrapper_come_before_those_of_its_map(tmp_path):
    spec = written(tmp_path, {"default": "int4:exact_last_layers=1", "layers": {"0": "int8", "3": "int2"}})
    scheme = parse_scheme(f"hadamard({spec}):exact_first_layers=1")
    kinds = [type(scheme.bind(5, range(5)).for_layer(i).key.quantizer).__name__ for i in range(5)]
    assert kinds == ["ExactQuantizer", *["RotatedQuantizer"] * 4]
    bits = [getattr(scheme.bind(5, range(5)).for_layer(i).key.quantizer.inner, "bits", 16) for i in range(1, 5)]
    assert bits == [4, 4, 2, 16]
    assert scheme.for_layer(3).name == "hadamard(symmetric:bits=2)"


def test_equal_content_is_an_equal_scheme_wherever_it_lies(tmp_path):
    content = {"default": "int4", "layers": {"1": "int8"}}
    here, there = (tmp_path / name for name in ("here", "there"))
    schemes = []
    for folder in (here, there):
        folder.mkdir()
        schemes.append(parse_scheme(written(folder, content)))
    assert schemes[0] == schemes[1]
    assert len(set(schemes)) == 1
    assert schemes[0].name != schemes[1].name
    assert str(there) in schemes[1].name
    assert schemes[0].identity == schemes[1].identity == "@#" + schemes[0].name.partition("#")[2]
    wrapped = [parse_scheme(f"hadamard({scheme.name}):sink_tokens=4") for scheme in schemes]
    assert wrapped[0] == wrapped[1]
    assert str(tmp_path) not in wrapped[0].identity
    assert schemes[0] != parse_scheme(written(here, {**content, "fitted_on": [fitted("a")]}))


def test_a_map_of_maps_is_what_those_say(tmp_path):
    """Its identity follows their content, not their paths."""
    schemes = []
    for folder, inside in (("a", "int8"), ("b", "int8"), ("c", "int3")):
        (tmp_path / folder).mkdir()
        inner = tmp_path / folder / "inner.json"
        inner.write_text(json.dumps({"default": inside}))
        schemes.append(parse_scheme(written(tmp_path / folder, {"default": "int4", "layers": {"1": f"@{inner}"}})))
    assert schemes[0] == schemes[1] != schemes[2]
    assert schemes[0].identity != schemes[2].identity
    assert all(parse_scheme(scheme.name) == scheme for scheme in schemes)
    inner.write_text(json.dumps({"default": "int2"}))
    with pytest.raises(UserError, match="the file has changed since"):
        parse_scheme(schemes[2].name)


@pytest.mark.parametrize("name", ["a b.json", "a,b.json", "a#1.json", "a=1.json", "a(1.json", "a)(.json", "a#12345678"])
def test_any_path_works_in_quotes(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps({"default": "int4", "layers": {"1": "int8"}}))
    scheme = parse_scheme(f'@"{path}"')
    assert scheme.name.startswith(f'@"{path}"#')
    wrapped = parse_scheme(f"hadamard(clip({scheme.name}):c=0.9):only=key")
    for one in (scheme, wrapped):
        assert parse_scheme(one.name) == one
        assert name not in one.identity
    outer = written(tmp_path, {"default": f'@"{path}"'})
    assert by_layer(parse_scheme(outer), 2) == [(4, 4), (8, 8)]


@pytest.mark.parametrize("name", ["a b.json", "a,b.json", "a=1.json", "a(1).json"])
def test_paths_that_need_no_quotes(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps({"default": "int4"}))
    assert parse_scheme(f"@{path}") == parse_scheme(f'@"{path}"')


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("@a#1.json", "a path that has a # itself is given in quotes"),
        ('@"a.json', "a.json' names no file"),
        ("@", "'' names no file"),
        ('@a"b".json', "one that has quotes cannot be given: rename it"),
        ('hadamard(@"a.json)', "a quote is not closed"),
    ],
)
def test_paths_that_cannot_be_meant(spec, message):
    with pytest.raises(UserError, match=message):
        parse_scheme(spec)


def test_a_map_inside_itself(tmp_path):
    spec = written(tmp_path, {"default": f"hadamard(@{tmp_path}/map.json)"})
    with pytest.raises(UserError, match="the map names itself"):
        parse_scheme(spec)


def test_a_changed_file_is_another_scheme(tmp_path):
    first = parse_scheme(written(tmp_path, {"default": "int4"}))
    second = parse_scheme(written(tmp_path, {"default": "int8"}))
    assert first.name != second.name
    with pytest.raises(ValueError, match="the file has changed since"):
        parse_scheme(first.name)


BAD = {
    "no file": (None, "cannot be read"),
    "no json": ("{", "is not JSON"),
    "no default": ({"layers": {}}, 'has "default" and "layers"'),
    "more": ({"default": "int4", "layer": {}}, 'has "default" and "layers", and "fitted_on".*nothing else'),
    "no texts": ({"default": "int4", "fitted_on": "train"}, '"fitted_on" is a list of texts'),
    "a text": ({"default": "int4", "fitted_on": [{"name": "train"}]}, "each with name, sha256, token_sha256"),
    "a side": ({"default": {"key": "int4"}}, 'default: give a spec, or {"key"'),
    "spec": ({"default": "int4", "layers": {"3": "int5"}}, "layers 3: scheme 'int5'.*did you mean"),
    "span": ({"default": "int4", "layers": {"a": "int8"}}, "'a' is no layer"),
    "backwards": ({"default": "int4", "layers": {"7-4": "int8"}}, "'7-4' is no layer"),
    "beyond any model": ({"default": "int4", "layers": {"0-99999999": "int8"}}, "is no layer"),
    "no table": ({"default": "int4", "layers": ["int8"]}, '"layers" has a scheme for each layer'),
    "a number": ({"default": {"key": 4, "value": "int4"}}, 'default: give a spec, or {"key"'),
    "twice": ({"default": "int4", "layers": {"0-3": "int8", "2": "asym4"}}, "layer 2 is named twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path, case):
    content, message = BAD[case]
    spec = "@" + str(tmp_path / "nowhere.json") if content is None else written(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        parse_scheme(spec)
    assert "\n" not in str(error.value)


def test_a_map_tells_the_texts_that_it_was_fitted_on(tmp_path):
    """Under wrappers, on one side alone, in one layer, and as a map inside a map too."""
    inner, layer = (tmp_path / f"{name}.json" for name in ("inner", "layer"))
    inner.write_text(json.dumps({"default": "asym2", "layers": {"1": "asym4"}, "fitted_on": [fitted("inner")]}))
    layer.write_text(json.dumps({"default": {"key": f"@{inner}", "value": "int4"}, "fitted_on": [fitted("layer")]}))
    content = {"default": f"@{inner}", "layers": {"3": f"@{layer}"}, "fitted_on": [fitted("a"), fitted("b")]}
    spec = written(tmp_path, content)
    for used in (spec, f"hadamard({spec})", f"hadamard({spec}):only=key"):
        assert parse_scheme(f"hadamard(@{inner})").calibrated_on == [fitted("inner")]
        names = [text["name"] for text in parse_scheme(used).calibrated_on]
        assert set(names) == {"a", "b", "inner", "layer"}
        assert parse_scheme(used).calibrated_on[0] == fitted("a")
        assert {text["name"] for text in parse_scheme(used).bind(4, range(4)).calibrated_on} == set(names)
    assert not parse_scheme("int4").calibrated_on


def test_channels_are_checked_in_every_layer(tmp_path):
    scheme = parse_scheme(written(tmp_path, {"default": "exact", "layers": {"1": "asym3:group_size=16"}}))
    with pytest.raises(ValueError, match="whole bytes"):
        scheme.check(20)


def test_one_side():
    scheme = parse_scheme("kivi2")
    keys = one_side(scheme, "key")
    assert keys.key == scheme.key
    assert keys.value.quantizer.lossless
    assert one_side(scheme, "value").quantized_sides == ["value"]
    assert one_side(scheme, "both") is scheme


@pytest.mark.parametrize(
    ("rule", "stored", "named"),
    [
        ("exact_first_layers=1", [1, 2, 3], None),  # layer 0 has no full cache, and would not be quantized
        ("exact_last_layers=1", [0, 1, 2], None),
        ("exact_first_layers=5", range(4), 4),
        ("exact_last_layers=5", range(4), -1),
    ],
)
def test_a_layer_without_a_full_cache_may_be_named_where_it_stays_exact(rule, stored, named):
    scheme = parse_scheme(f"int4:{rule}")
    if named is None:
        assert [layer for layer in stored if scheme.bind(4, stored).for_layer(layer).lossless] == []
    else:
        with pytest.raises(UserError, match=f"names layer {named}, which the model has not"):
            scheme.bind(4, stored)
