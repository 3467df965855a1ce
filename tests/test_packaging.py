"""What an installation brings: every module, and the command."""

import importlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_module_is_shipped():
    """A new folder needs an __init__.py and nothing else; one that is forgotten would be missing only where installed."""
    setuptools = pytest.importorskip("setuptools")
    find = PROJECT["tool"]["setuptools"]["packages"]["find"]
    assert find["namespaces"] is False
    shipped = set(setuptools.find_packages(ROOT, include=find["include"]))
    modules = [
        Path("kvdelta") / path.relative_to(ROOT)
        for top in ("schemes", "harness", "analysis")
        for path in (ROOT / top).rglob("*.py")
    ]
    assert shipped == {"kvdelta", *(".".join(path.parent.parts) for path in modules)}
    assert len(shipped) > 10


def test_the_command_is_there():
    module, _, function = PROJECT["project"]["scripts"]["kvdelta"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from what git tracks, in a folder of its own; unpacked as an installation unpacks it."""
    pytest.importorskip("build")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    source, installed = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith(("results/", "tests/", "docs/")):
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name, follow_symlinks=False)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source / "made"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = (source / "made").glob("*.whl")
    with zipfile.ZipFile(made) as file:
        file.extractall(installed)
    return installed


def test_a_wheel_holds_one_package_and_all_of_it(wheel):
    """Names such as schemes or analysis, which others have too, stay inside it."""
    tops = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"kvdelta"}
    shipped = {path.relative_to(wheel / "kvdelta") for path in wheel.rglob("*.*") if "dist-info" not in str(path)}
    tracked = subprocess.run(
        ["git", "ls-files", "schemes", "harness", "analysis"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shipped == {Path("__init__.py"), *map(Path, tracked.stdout.split())}


def test_it_works_outside_the_checkout(wheel, tmp_path):
    """From the wheel alone, beside packages of the same names."""
    for name in ("schemes", "harness", "analysis"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('of somebody else')")
    here = {**os.environ, "PYTHONPATH": str(wheel), "PYTHONDONTWRITEBYTECODE": "1"}
    code = "import kvdelta.harness.records.provenance as p; print(p.__file__, p.commit())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=here, capture_output=True, text=True)
    assert done.stdout.split() == [str(wheel / "kvdelta/harness/records/provenance.py"), "None"], done.stderr
    command = [sys.executable, "-m", "kvdelta.analysis.cli.main", "show", str(ROOT / "results/demo"), "--format", "csv"]
    done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("scheme,ppl,")
