"""Files that map layers to schemes."""

import json

import pytest

from schemes import parse_scheme
from schemes.maps import one_side


def written(tmp_path, content):
    path = tmp_path / "map.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return f"@{path}"


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
    "twice": ({"default": "int4", "layers": {"0-3": "int8", "2": "asym4"}}, "layer 2 is named twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path, case):
    content, message = BAD[case]
    spec = "@" + str(tmp_path / "nowhere.json") if content is None else written(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        parse_scheme(spec)
    assert "\n" not in str(error.value)


def fitted(name):
    return {"name": name, "sha256": "0" * 64, "token_sha256": "1" * 64, "windows": [1, 2]}


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
