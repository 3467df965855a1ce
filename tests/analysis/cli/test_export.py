"""allocate --export: refused before anything is measured, or a file that says the map that was chosen."""

import json

import pytest
import yaml

CANDIDATES = ["--scheme", "exact", "--scheme", "vllm/fp8"]


@pytest.fixture
def allocate(kvdelta):
    def run(*words):
        return kvdelta("allocate", "--windows", "2", "--fit-windows", "1", "--out", "a", *words)

    return run


def test_the_file_says_the_map(allocate, unrendered, tmp_path):
    code, _, err = allocate("--budget", "12.5", *CANDIDATES, "--export", "vllm")
    assert code == 0, err
    layers = json.loads((tmp_path / "a/maps/map.json").read_text())["layers"]
    kept = [index for index, sides in layers.items() if sides["key"] == "exact"]
    assert all(sides["key"] == sides["value"] for sides in layers.values())
    assert len(kept) == 1
    said = yaml.safe_load((tmp_path / "a/export/vllm.yaml").read_text())
    assert said == {"kv-cache-dtype": "fp8", "kv-cache-dtype-skip-layers": kept}
    assert "for vllm: a/export/vllm.yaml; vllm serve MODEL --config vllm.yaml" in err


def test_the_map_is_one_that_the_engine_can_store(allocate, unrendered, tmp_path):
    words = ["--scheme", "exact", "--scheme", "sglang/fp8_e4m3", "--export", "sglang"]
    code, _, err = allocate("--budget", "12.5", *words)
    assert code == 0, err
    assert yaml.safe_load((tmp_path / "a/export/sglang.yaml").read_text()) == {"kv-cache-dtype": "fp8_e4m3"}


def test_a_candidate_without_a_name_is_refused_at_once(allocate, tmp_path):
    code, out, err = allocate("--budget", "4", "--export", "vllm")
    assert (code, out) == (2, "")
    assert "vllm has no name for keys stored as asymmetric" in err
    assert "--scheme vllm/fp8 " in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "a").exists()
