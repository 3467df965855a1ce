"""What an installation brings: every module, and the command."""

import importlib
import tomllib
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
