"""A scheme that a file says is the same scheme wherever the file lies; people read where it lay."""

import json
from pathlib import Path

import pytest

from kvdelta.analysis.plots.style import scheme_label
from kvdelta.analysis.reading import summary
from kvdelta.harness.caches.contenders import contenders_of
from kvdelta.harness.comparison import compare
from kvdelta.harness.records.hashes import hashed
from kvdelta.harness.records.run_folder import load_run
from kvdelta.harness.runner import Progress
from kvdelta.schemes import parse_scheme

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture
def moved(tmp_path):
    """The spec of one map at two places."""
    specs = []
    for folder in ("here", "there, moved"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "map.json"
        path.write_text(json.dumps({"default": "asym2:group_size=16", "layers": {"0": "int8:group_size=16"}}))
        specs.append(f'@"{path}"')
    return specs


def test_it_is_taken_once(moved):
    notes = []
    contenders = contenders_of(["exact", *moved, f"hadamard({moved[0]})", f"hadamard({moved[1]})"], notes.append)
    assert [contender.label for contender in contenders] == ["exact", moved[0], f"hadamard({moved[0]})"]
    assert len(notes) == 2


def test_a_run_goes_on_after_its_map_was_moved(moved, subject, options):
    """The settings know no path; the row tells it."""
    first, folder = compare([moved[0]], options, subject=subject)
    assert "here/map.json#" in first.contenders[1].name
    assert "here" not in folder.joinpath("run.json").read_text().partition('"contenders": [')[2].partition("]")[0]
    notes = []
    again, _ = compare([moved[1]], options, subject=subject, progress=Progress(on_note=notes.append))
    assert "holds this run already" in notes[0]
    assert (again.settings, again.windows) == (first.settings, first.windows)
    assert summary.find(first, moved[1]) == 1
    assert summary.find(first, parse_scheme(moved[1]).name) == 1


def test_records_that_named_paths_in_their_settings_are_read_and_found(tmp_path):
    """Early ones do: their settings lose the path, their rows keep it, and both find the map where it is now."""
    record = json.loads((RESULTS / "allocate-h100" / "run.json").read_text())
    identity = record["settings"]["contenders"][1]
    named = f"@alloc4/maps/map.json{identity.removeprefix('@')}"
    record["settings"]["contenders"][1] = record["contenders"][1]["name"] = named
    (tmp_path / "run.json").write_text(json.dumps(hashed(record)))
    run = load_run(tmp_path)
    assert run.settings.contenders[1] == identity
    assert run.contenders[1].name == named
    for spec in (f"@{RESULTS}/allocate-h100/maps/map.json", named, run.contenders[1].label):
        assert summary.find(run, spec) == 1
    families = load_run(RESULTS / "families-h200/smollm2/packaged_wiki.test_1536+512/two-pass")
    for contender in families.contenders:
        assert families.contenders[summary.find(families, contender.label)] == contender
        assert families.contenders[summary.find(families, contender.name)] == contender
    at = next(i for i, one in enumerate(families.contenders) if "calibration=" in one.name)
    fields, _, path = families.contenders[at].name.partition("calibration=")
    assert summary.find(families, f"{fields}calibration=/gone/elsewhere.safetensors#{path.partition('#')[2]}") == at


def test_labels_of_figures():
    assert scheme_label("@alloc4/maps/map.json#24688d92") == "map.json#24688d92"
    assert scheme_label('hadamard(@"my maps/a, b.json"#24688d92)') == "hadamard(a, b.json#24688d92)"
    assert scheme_label("@#24688d92") == "map #24688d92"
