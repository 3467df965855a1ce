"""Who may import whom: schemes ◀ harness ◀ analysis; only the command line may look up."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for package in ("schemes", "harness", "analysis") for path in (ROOT / package).rglob("*.py"))
ALLOWED = {"schemes": {"schemes"}, "harness": {"schemes", "harness"}, "analysis": {"schemes", "harness", "analysis"}}
PLUMBING = {
    "base",
    "family",
    "fields",
    "grouping",
    "packing",
    "affine",
    "calibration",
    "e2m1",
    "half_quadratic",
    "outliers",
    "ragged",
    "rotation",
    "spec",
    "window",
    "wrapping",
    "layers",
    "levels",
    "registry",
    "store",
    "__init__",
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path):
    package, names = path.relative_to(ROOT).parts[0], set(imports(path))
    tops = {name.split(".")[0] for name in names}
    allowed = ALLOWED[package] | ({"analysis"} if path.name == "cli.py" else set())
    assert (tops & {"schemes", "harness", "analysis", "tests"}) <= allowed
    if package != "harness":
        assert "transformers" not in tops
    if path.parent.name != "plots":
        assert "matplotlib" not in tops
    if package == "schemes" and path.stem != "hqq":
        assert "hqq" not in tops


FAMILIES = [path for path in FILES if path.parent.name == "schemes" and path.stem not in PLUMBING]


@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.stem)
def test_a_family_imports_no_other_family(path):
    others = {f"schemes.{other.stem}" for other in FAMILIES if other != path}
    assert not others & set(imports(path))
