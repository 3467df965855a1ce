"""Runs a model over a cache that is stored as a scheme says, and scores it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvdelta.harness.axes import Axes
    from kvdelta.harness.caches.scheme import SchemeCache
    from kvdelta.harness.comparison import compare
    from kvdelta.harness.data_frames import frames
    from kvdelta.harness.options import Options
    from kvdelta.harness.replaying.options import ReplayOptions
    from kvdelta.harness.replaying.replay import replay
    from kvdelta.harness.subject.model import load_model
    from kvdelta.harness.sweeping import sweep

__all__ = ["Axes", "Options", "ReplayOptions", "SchemeCache", "compare", "frames", "load_model", "replay", "sweep"]

_HOMES = {
    "SchemeCache": "caches.scheme",
    "load_model": "subject.model",
    "Options": "options",
    "compare": "comparison",
    "frames": "data_frames",
    "ReplayOptions": "replaying.options",
    "replay": "replaying.replay",
    "Axes": "axes",
    "sweep": "sweeping",
}


def __getattr__(name: str) -> Any:
    # loaded when asked for: transformers takes seconds to import, and `kvdelta --help` needs none of it
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'kvdelta.harness' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kvdelta.harness.{_HOMES[name]}"), name)
