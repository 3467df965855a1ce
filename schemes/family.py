"""How a family presents itself to the registry."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from kvdelta.schemes.base import TensorScheme


@dataclass(frozen=True)
class Family:
    """A factory whose keyword arguments, with their types and defaults, are the fields of the spec.

    A factory with the positional arguments `key` and `value` wraps another scheme: it is given how that stores them.
    formula, good and fails: how it works, where it is good, where it is not. short: short names and the fields that
    they set. compared: with which published code it was compared, and where it departs from that. own_residual: the family
    has its own rule for recent exact tokens, so that `keep_recent` and `flush_every` are not offered. keeps_rules: a wrapper
    that changes how a scheme is used, not its numbers, so that the inner spec may say that too. calibrate: for one that is
    calibrated on a text, (layer, samples, weights, fields) → the tables of a layer.
    """

    build: Callable[..., tuple[TensorScheme, TensorScheme]]
    summary: str
    source: str
    formula: str
    good: str
    fails: str
    short: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    own_residual: bool = False
    keeps_rules: bool = False
    called: str = ""  # where the name is no Python name
    calibrate: Callable[..., dict[str, Tensor]] | None = None
    compared: str = ""

    @property
    def name(self) -> str:
        return self.called or self.build.__name__

    @property
    def wraps(self) -> bool:
        return "key" in inspect.signature(self.build).parameters

    @property
    def example(self) -> str:
        """A spec to show it with."""
        return f"{self.name}(asym4)" if self.wraps else self.name
