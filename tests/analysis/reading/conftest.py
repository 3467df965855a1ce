"""Records of a tiny model that belong together."""

import shutil

import pytest

from kvdelta.analysis.measuring.errors import measure_errors
from kvdelta.analysis.measuring.sensitivity import measure_sensitivity
from kvdelta.harness.comparison import compare

from ...conftest import one_thread, tiny_options, tiny_subject, tiny_tokens
from ..rows import GRID


@pytest.fixture(scope="session")
def measured(model, tmp_path_factory):
    place, subject = tmp_path_factory.mktemp("measured"), tiny_subject(model, tiny_tokens())
    with one_thread():
        measure_errors(GRID, tiny_options(place / "errors"), subject)
        measure_sensitivity(GRID[:1], tiny_options(place / "ablation"), subject)
        compare(GRID, tiny_options(place / "run"), subject=subject)
    return place


@pytest.fixture
def folders(measured, tmp_path):
    """Errors, an ablation and a comparison of the same windows: copies, which a test may change."""
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    return {name: str(tmp_path / name) for name in ("errors", "ablation", "run")}
