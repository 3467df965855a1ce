"""Fixtures of the harness's tests."""

import shutil
from types import SimpleNamespace

import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("KVDELTA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def free_bytes(monkeypatch):
    """Pretend that so many bytes are free on every disk."""

    def pretend(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))

    return pretend
