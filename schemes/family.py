"""How a family presents itself to the registry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from schemes.base import TensorScheme


@dataclass(frozen=True)
class Family:
    """A factory whose keyword arguments, with their types and defaults, are the fields of the spec.

    short: short names and the fields that they set. own_residual: the family has its own rule for recent exact
    tokens, so that `keep_recent` and `flush_every` are not offered.
    """

    build: Callable[..., tuple[TensorScheme, TensorScheme]]
    summary: str
    source: str
    short: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    own_residual: bool = False

    @property
    def name(self) -> str:
        return self.build.__name__
