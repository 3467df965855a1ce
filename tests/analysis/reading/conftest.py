"""Records of a tiny model that belong together."""

from dataclasses import replace

import pytest

from analysis.measuring.errors import measure_errors
from analysis.measuring.sensitivity import measure_sensitivity
from harness.comparison import compare

from ..rows import GRID


@pytest.fixture
def folders(subject, options, tmp_path):
    """Errors, an ablation and a comparison of the same windows."""
    places = {name: str(tmp_path / name) for name in ("errors", "ablation", "run")}
    measure_errors(GRID, replace(options, out=places["errors"]), subject)
    measure_sensitivity(GRID[:1], replace(options, out=places["ablation"]), subject)
    compare(GRID, replace(options, out=places["run"]), subject=subject)
    return places
