"""The whole recipe: how keys and values are stored, layer by layer."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from kvdelta.schemes.base import Place, Rotary, TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.references import identity_of

LayerKinds = Literal["full", "sliding", "all"]


@dataclass(frozen=True)
class Scheme:
    """The whole recipe. `name` is the canonical spec, for people: parse_scheme(scheme.name) == scheme. It names files by
    path and hash; `identity` by the hash alone, so that equal content at another path gives an equal scheme.

    layers: rules, (index, scheme), of layers that are stored in another way. The last rule for a layer counts, and what it
    names may have rules of its own; until `bind`, −1 is the last layer. kinds: of a model that has layers with a sliding window
    too, which are stored so; the others stay as they are. fitted_on: the texts that a map of layers was
    fitted on, as the map names them; those of quantizers come beside them in `calibrated_on`.
    """

    name: str = field(compare=False)
    key: TensorScheme
    value: TensorScheme
    layers: tuple[tuple[int, "Scheme"], ...] = ()
    fitted_on: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)  # part of the map, and so of its hash
    kinds: LayerKinds = "full"
    identity: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", identity_of(self.name))

    def for_layer(self, index: int, layers: int | None = None) -> "Scheme":
        """How layer `index` of `layers` is stored. Where it is not known how many there are, the rules that count from the
        end stay open."""
        from_end: list[tuple[int, Scheme]] = []
        here = replace(self, layers=())
        for named, scheme in reversed(self.layers):
            if named < 0 and layers is None:
                from_end.insert(0, (named, scheme.for_layer(index)))
            elif index == (named if named >= 0 else named + (layers or 0)):
                here = scheme.for_layer(index, layers)
                break
        return replace(here, layers=(*here.layers, *from_end)) if from_end else here

    def bind(
        self,
        layers: int,
        stored: Collection[int],
        rotary: Callable[[int], Rotary] | None = None,
        key_bias: Callable[[int], Tensor | None] | None = None,
    ) -> "Scheme":
        """The scheme for a model of so many layers: every quantizer that asks for its place has it.

        stored: the layers that are stored, of `kinds`; rotary: the rotary embedding of a layer; key_bias: the bias [heads,
        channels] of its key projection. UserError where the
        scheme would quantize a layer that there is not, or leaves none to quantize, or needs a rotary embedding and none
        is given.
        """
        named = [index if index >= 0 else index + layers for index, _ in self.layers]
        # looked for first: a map may name thousands, each with thousands of rules before it
        beyond = [i for i in named if not 0 <= i < layers]
        rules = {} if beyond else {index: self.for_layer(index, layers) for index in named}
        unknown = beyond or [i for i, scheme in rules.items() if i not in stored and scheme.quantized_sides]
        if unknown:
            raise UserError(
                f"scheme {self.name} names layer {unknown[0]}, which the model has not, or not among those with the kind of "
                f"attention that it is for (layers={self.kinds})"
            )
        whole = replace(self, layers=())
        if self.quantized_sides and not any(rules.get(i, whole).quantized_sides for i in stored):
            raise UserError(f"scheme {self.name} leaves all {len(stored)} layers of the model exact")
        if any(q.needs_place for one in self.variants for side in one.sides.values() for q in side.quantizers):
            rules = {i: _placed(rules.get(i, whole), i, rotary, key_bias) for i in stored}
        bound = tuple(sorted(rules.items(), key=lambda rule: rule[0]))
        return self if bound == self.layers else replace(self, layers=bound)

    @property
    def sides(self) -> dict[str, TensorScheme]:
        return {"key": self.key, "value": self.value}

    @property
    def variants(self) -> "list[Scheme]":
        """What may occur in a layer: the scheme itself, and those of the layers that differ."""
        return [self, *(variant for _, scheme in self.layers for variant in scheme.variants)]

    @property
    def lossless(self) -> bool:
        return not self.quantized_sides

    @property
    def quantized_sides(self) -> list[str]:
        """ "key", "value", or both: what some layer does not keep exactly."""
        return [side for side in self.sides if not all(one.sides[side].quantizer.lossless for one in self.variants)]

    @property
    def calibrated_for(self) -> list[Mapping[str, Any]]:
        """Which models its quantizers were calibrated on, as records name them."""
        seen = [side.quantizer.calibrated_for for one in self.variants for side in one.sides.values()]
        return [model for model in seen if model is not None]

    @property
    def calibrated_on(self) -> list[Mapping[str, Any]]:
        """Which texts its quantizers have seen, and its maps of layers were fitted on: name, sha256 of the text,
        token_sha256 of its tokens, and whatever else the file says of it."""
        seen = [side.quantizer.calibrated_on for one in self.variants for side in one.sides.values()]
        return [text for text in seen if text is not None] + [text for one in self.variants for text in one.fitted_on]

    def check(self, channels: int, value_channels: int | None = None) -> None:
        """Raise UserError where heads of `channels` channels (values: of `value_channels`, if these are others) cannot be
        encoded."""
        widths = {"key": channels, "value": value_channels or channels}
        for scheme in self.variants:
            for name, side in scheme.sides.items():
                try:
                    for quantizer in side.quantizers:
                        quantizer.check(widths[name])
                except UserError as error:
                    raise UserError(
                        f"scheme {scheme.name}, {name}s with {widths[name]} channels a head: {error}"
                    ) from None


def _placed(
    scheme: Scheme,
    layer: int,
    rotary: Callable[[int], Rotary] | None,
    key_bias: Callable[[int], Tensor | None] | None,
) -> Scheme:
    sides: dict[str, TensorScheme] = {}
    for name, side in scheme.sides.items():
        place = Place(layer, name, rotary(layer) if rotary else None, side.sink_tokens, key_bias)
        first = None if side.first is None else side.first.bind(place)
        sides[name] = replace(side, quantizer=side.quantizer.bind(place), first=first)
    return replace(scheme, **sides)
