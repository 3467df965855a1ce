"""Who may import whom, what must stay light, and that no two files import each other, however far round."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOPS = ("schemes", "harness", "analysis")
FILES = sorted(path for package in TOPS for path in (ROOT / package).rglob("*.py"))


def module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}

# what a room may import, beside itself; the nearest entry counts
ROOMS = {
    "schemes": set(),
    "schemes.families": {"schemes"},
    "harness": {"schemes", "harness"},
    "harness.subject": {"schemes", "harness.options", "harness.records"},
    "harness.caches": {
        "schemes",
        "harness.protocols",
        "harness.subject",
        "harness.records",
        "harness.raising",
        "harness.time_limit",
    },
    "harness.conformance": {"schemes.errors", "harness.caches", "harness.subject"},
    "harness.tasks": {"schemes.errors", "schemes.given", "harness"},
    "harness.evaluation": {"schemes.errors", "harness"},
    "harness.records": {"schemes.errors", "schemes.given", "schemes.references"},
    "analysis.measuring": {"schemes", "harness", "analysis.reading"},
    "analysis.reading": {"schemes", "harness"},
    "analysis.plots": {"schemes", "harness.records", "analysis.reading"},
    "analysis.pages": {"schemes", "harness.records", "analysis.reading", "analysis.plots.style"},
    "analysis.cli": {"schemes", "harness", "analysis"},
}
LIGHT = ("analysis.reading", "analysis.plots", "analysis.pages", "harness.records")
"""Rooms that read files and import neither torch nor transformers."""


def imports(path, top_level=False):
    """Modules that a file imports; the names of a package that are modules are these modules."""
    tree = ast.parse(path.read_text())
    typing = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {id(n) for one in typing for n in ast.walk(one)}
    for node in tree.body if top_level else ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("kvdelta.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            assert node.module.split(".")[0] not in TOPS, f"{path.name}: what is ours is imported from kvdelta"
            for alias in node.names:
                full = f"{node.module}.{alias.name}".removeprefix("kvdelta.")
                yield full if full in MODULES else node.module.removeprefix("kvdelta.")


def within(name, room):
    return name == room or name.startswith(room + ".")


def room_of(name):
    return max((room for room in ROOMS if within(name, room)), key=len, default="")


@pytest.mark.parametrize("name", MODULES)
def test_arrows(name):
    room, path = room_of(name), MODULES[name]
    ours = {other for other in imports(path) if other.split(".")[0] in (*TOPS, "tests")}
    wrong = {other for other in ours if not any(within(other, one) for one in {room, *ROOMS.get(room, set())})}
    assert not wrong
    tops = {other.split(".")[0] for other in imports(path)}
    if not within(name, "harness"):
        assert "transformers" not in tops or within(name, "analysis.cli")
    if not within(name, "analysis.plots"):
        assert "matplotlib" not in tops
    if within(name, "schemes") and name != "schemes.families.hqq":
        assert "hqq" not in tops


def test_no_model_brings_code_that_is_run():
    """Each from_pretrained is called where it is named, and the call itself says that the model's own code is not run, or only where
    the user asked for it."""
    named, safe = [], []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "from_pretrained":
                named.append(f"{path.relative_to(ROOT)}:{node.lineno}")
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if said.get("trust_remote_code") in ("False", "place.trusted"):
                    safe.append(f"{path.relative_to(ROOT)}:{node.func.lineno}")
    assert named
    assert named == safe


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, "schemes.families")])
def test_a_family_imports_no_other_family(name):
    assert not {other for other in imports(MODULES[name]) if within(other, "schemes.families")}


@pytest.mark.parametrize("name", [name for name in MODULES if not within(name, "schemes.families")])
def test_no_other_file_names_a_family(name):
    """The registry looks into the folder; so a new scheme is one new file and no other line."""
    named = {other for other in imports(MODULES[name]) if within(other, "schemes.families")}
    assert named <= ({"schemes.families"} if name == "schemes.registry" else set())


def test_no_circle_between_any_two_files():
    graph = {name: {other for other in imports(path) if other in MODULES} - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize("name", [name for name in MODULES if any(within(name, room) for room in LIGHT)])
def test_what_reads_records_loads_no_model_code(name):
    heavy = [
        other for other in imports(MODULES[name], top_level=True) if other.split(".")[0] in ("torch", "transformers")
    ]
    assert not heavy


def test_reading_and_plots_load_no_model_code():
    names = [name for name in MODULES if any(within(name, room) for room in LIGHT)]
    code = f"import sys\nfor name in {names!r}: __import__(name)\nprint({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
