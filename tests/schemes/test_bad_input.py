"""What people may give by mistake, or fuzzing found: one line that says what is wrong, soon, and before a model is loaded."""

import json
import time

import pytest

from kvdelta.schemes import UserError, parse_scheme
from kvdelta.schemes.given import parse_json


@pytest.fixture
def one_line():
    """A refusal of one line, within a second of computing."""

    def refused(spec, message):
        started = time.process_time()
        with pytest.raises(UserError, match=message) as error:
            parse_scheme(spec)
        assert len(str(error.value).splitlines()) == 1
        assert time.process_time() - started < 1

    return refused


def write(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return f"@{path}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "a map of layers has"),
        ("5", "a map of layers has"),
        ({"layers": {}}, "a map of layers has"),
        ({"default": "int4", "layers": [1]}, '"layers" has a scheme for each'),
        ({"default": "int4", "layers": {"3-2": "int8"}}, "'3-2' is no layer"),
        ({"default": "int4", "layers": {"": "int8"}}, "'' is no layer"),
        ({"default": "int4", "layers": {"1-3": "int8", "2": "int3"}}, "layer 2 is named twice"),
        ('{"default": "int4", "default": "int8"}', '"default" stands twice'),
        ('{"default": "int4", "de\\nfault": 1, "de\\nfault": 2}', r'"de\\nfault" stands twice'),
        ("[" * 100_000, "nested too deep"),
        ('{"default":' * 100_000, "nested too deep"),
        ('{"default": "\\ud800"}', "can't encode character"),
        ({"default": "ki\nvi:bits=2,x"}, "one line of text|is not field=value"),
    ],
)
def test_maps_that_cannot_be_meant(tmp_path, one_line, content, message):
    one_line(write(tmp_path, "map.json", content), message)


def test_a_name_that_stands_twice_is_found_at_once():
    """Not by going through all names before each."""
    names = ",".join(f'"{i}": 1' for i in range(50_000))
    started = time.process_time()
    with pytest.raises(ValueError, match='"49999" stands twice'):
        parse_json(f'{{{names}, "49999": 2}}')
    assert time.process_time() - started < 2


def test_half_a_character_is_refused_and_a_whole_one_is_not():
    with pytest.raises(ValueError, match="surrogates"):
        parse_json('["\\udc00"]')
    with pytest.raises(ValueError, match="invalid continuation byte"):
        parse_json(b'["\xed\xa0\x80"]')
    assert parse_json(b'["\\ud83d\\ude00"]') == ["😀"]


def test_maps_that_name_each_other(tmp_path, one_line):
    write(tmp_path, "a.json", {"default": f"@{tmp_path}/b.json"})
    one_line(write(tmp_path, "b.json", {"default": f"@{tmp_path}/a.json"}), "the map names itself")


def test_a_chain_of_maps_ends(tmp_path, one_line):
    for i in range(1000):
        write(tmp_path, f"{i}.json", {"default": f"@{tmp_path}/{i + 1}.json"})
    write(tmp_path, "1000.json", {"default": "int4"})
    one_line(f"@{tmp_path}/0.json", "maps name maps 16 deep at most")
    assert parse_scheme(f"@{tmp_path}/990.json").key == parse_scheme("int4").key


def test_maps_that_name_maps_many_times_are_read_once_each(tmp_path):
    """Else fifteen maps that name the next one three times would be fourteen million."""
    for i in range(14):
        next_one = f"@{tmp_path}/{i + 1}.json"
        write(tmp_path, f"{i}.json", {"default": {"key": next_one, "value": next_one}, "layers": {"0": next_one}})
    write(tmp_path, "14.json", {"default": "int4"})
    started = time.process_time()
    assert parse_scheme(f"@{tmp_path}/0.json").key == parse_scheme("int4").key
    assert time.process_time() - started < 2


def test_a_map_of_thousands_of_layers_is_refused_soon(tmp_path):
    scheme = parse_scheme(write(tmp_path, "map.json", {"default": "int4", "layers": {"0-9999": "int8"}}))
    started = time.process_time()
    with pytest.raises(UserError, match="names layer 4, which the model has not"):
        scheme.bind(4, range(4))
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hadamard(" * 1000 + "int4" + ")" * 1000, "characters; none that can be meant"),
        ("hadamard(" * 17 + "int4" + ")" * 17, "wrappers nest 16 deep at most"),
        ("x" * 4096, "no scheme"),
        ("@" + "n" * 300, "File name too long"),
        ("@/dev/zero", "a pipe or a device"),
        ("kivi\n:bits=2,x", "a spec is one line of text"),
        ("@a\nb.json", "a spec is one line of text"),
        ("@\udcff.json", "a spec is one line of text"),
        ("int4:\u2028=1", "a spec is one line of text"),
        ("hqq4:iters=999999999999", "at most 1000"),
        ("int4:group_size=" + "9" * 20, "not whole bytes"),
        ("clip(int4):c=nan", "c=nan"),
    ],
)
def test_specs_that_cannot_be_meant(one_line, spec, message):
    one_line(spec, message)
