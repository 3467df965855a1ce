"""What competes in a run: a scheme in our cache, one that evicts (harness.caches.eviction), or any other (harness.caches.foreign)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from transformers import DynamicCache

from kvdelta.harness.caches.eviction import EvictingContender
from kvdelta.harness.caches.foreign import stock_cache
from kvdelta.harness.caches.heads import Gather, bytes_of_all, own, why_together
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.caches.specs import parse_cache_spec
from kvdelta.harness.records.run import Bytes, ContenderRecord
from kvdelta.harness.subject.probing import kv_shapes
from kvdelta.harness.subject.windows import Batch
from kvdelta.schemes import Quantizer, Scheme, parse_scheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.references import identity_of


@runtime_checkable
class Contender(Protocol):
    """One row of a comparison."""

    @property
    def label(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def lossless(self) -> bool: ...
    @property
    def foreign(self) -> bool:
        """Code that is not ours: filled live, and without the controls that change what ours store."""
        ...

    @property
    def mixes_rows(self) -> bool:
        """Whether what is stored of one window depends on those beside it, so that each goes alone."""
        ...

    @property
    def mixes_heads(self) -> str | None:
        """Why what is stored of one head may depend on the others; None where it does not."""
        ...

    @property
    def calibrated_for(self) -> Sequence[Mapping[str, Any]]:
        """The models that it was calibrated on, as records name them."""
        ...

    @property
    def calibrated_on(self) -> Sequence[Mapping[str, Any]]:
        """The texts it has seen: name, sha256 of the text, token_sha256 of its tokens; runs, where they were kept."""
        ...

    def empty(self, model: Any) -> Any:
        """A fresh cache."""
        ...

    def fill(self, cache: Any, model: Any, batch: Batch, prefilled: DynamicCache) -> None:
        """Pass 1 into `cache`."""
        ...

    def check(self, model: Any, prefix_length: int) -> None:
        """ValueError, before any forward, where this model or window cannot be used."""
        ...

    def zero_codes(self, cache: Any) -> bool:
        """The destructive control: set every stored code to 0; False where there is none that we know of."""
        ...

    def record(self, model: Any, cache: Any, prefilled: DynamicCache | None, gather: Gather = own) -> ContenderRecord:
        """What it is, and what `cache`, filled with one prefix, holds.

        prefilled: the same tokens' exact keys and values, None where the cache was filled with others. cache: None where it
        failed before anything was measured. gather: over the processes that share the model's heads.
        """
        ...


@dataclass(frozen=True)
class SchemeContender:
    """A scheme; the shared exact prefill fills its cache."""

    label: str
    scheme: Scheme
    foreign: bool = False

    @classmethod
    def of(cls, spec: str) -> "SchemeContender":
        return cls(spec.strip(), parse_scheme(spec))

    @property
    def name(self) -> str:
        return self.scheme.name

    @property
    def lossless(self) -> bool:
        return self.scheme.lossless

    @property
    def mixes_rows(self) -> bool:
        rules = [rule for one in self.scheme.variants for rule in one.sides.values()]
        return any(rule.quantizer.rows_independent is not True for rule in rules)

    @property
    def mixes_heads(self) -> str | None:
        return why_together(rule for one in self.scheme.variants for rule in one.sides.values())

    @property
    def calibrated_for(self) -> list[Mapping[str, Any]]:
        return self.scheme.calibrated_for

    @property
    def calibrated_on(self) -> list[Mapping[str, Any]]:
        return self.scheme.calibrated_on

    def empty(self, model: Any) -> SchemeCache:
        return SchemeCache.for_model(self.scheme, model)

    def fill(self, cache: SchemeCache, model: Any, batch: Batch, prefilled: DynamicCache) -> None:
        cache.fill(prefilled)

    def check(self, model: Any, prefix_length: int) -> None:
        empty, shapes = self.empty(model), kv_shapes(model, "all")
        for layer in empty.quantized_layers:
            if layer not in shapes:  # a recurrent layer, say, that older transformers give a cache layer all the same
                raise UserError(
                    f"scheme {self.label}: layer {layer} of this {model.config.model_type} model is no layer that keeps keys and values"
                )
            here, shape = empty.scheme.for_layer(layer), shapes[layer]
            here.check(shape.key_channels, shape.value_channels)
            self._check_window(here, layer, shape.window, prefix_length)
        for side, rule in [pair for variant in self.scheme.variants for pair in variant.sides.items()]:
            if not rule.packed_tokens(prefix_length):
                kept = rule.keep_recent + rule.sink_tokens + (rule.first_tokens or rule.flush_every)
                raise UserError(
                    f"scheme {self.label}: a prefix of {prefix_length} tokens would leave every {side} exact, since its "
                    f"residual rule packs nothing under {kept} tokens; use a longer window or a shorter residual (or --match-tail)"
                )

    def _check_window(self, here: Scheme, layer: int, window: int | None, prefix_length: int) -> None:
        """UserError where a layer's window holds no packed token behind a prefix."""
        for side in here.quantized_sides if window else ():
            rule = here.sides[side]
            exact = prefix_length - rule.sink_tokens - rule.packed_tokens(prefix_length)
            if window is not None and exact >= window - 1:
                raise UserError(
                    f"scheme {self.label}: layer {layer} attends to a window of {window} tokens, and behind a prefix of "
                    f"{prefix_length} the newest {exact} are exact on the {side} side, so it would read nothing from packed "
                    "storage; use a shorter residual, or layers=full"
                )

    def zero_codes(self, cache: SchemeCache) -> bool:
        cache.zero_codes()
        return not self.lossless

    def record(
        self, model: Any, cache: SchemeCache | None, prefilled: DynamicCache | None, gather: Gather = own
    ) -> ContenderRecord:
        filled = cache is not None
        cache = cache if cache is not None else self.empty(model)
        sides: dict[str, Bytes] = {side: Bytes(held={}, counted=0.0, elements=0) for side in self.scheme.sides}
        for layer, side, store in cache.stores():
            total = sides[side]
            for part, size in store.nbytes().items():
                total.held[part] = total.held.get(part, 0) + size
            total.counted += store.counted_bytes()
            if filled:
                total.elements += cache.layer(layer).numbers(side)
        return ContenderRecord(
            label=self.label,
            name=self.name,
            lossless=self.lossless,
            quantized_sides=self.scheme.quantized_sides,
            spec=self._spec(),
            quantized_layers=cache.quantized_layers,
            lossy_layers=cache.lossy_layers,
            bytes=bytes_of_all(sides, gather) if filled else None,
            note=self._note(sum(gather(sum(int(store.saturated) for _, _, store in cache.stores())))),
        )

    def _spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = {side: _described(rule) for side, rule in self.scheme.sides.items()}
        if self.scheme.layers:
            spec["layers"] = {index: other.name for index, other in self.scheme.layers}
        if self.scheme.kinds != "full":
            spec["kinds"] = self.scheme.kinds
        if self.calibrated_on:
            spec["calibrated_on"] = {name: said for name, said in self.calibrated_on[0].items() if name != "runs"}
        return spec

    def _note(self, saturated: int) -> str:
        sentences = [f"calibrated on {name}" for name in sorted({text["name"] for text in self.calibrated_on})]
        if saturated:
            sentences.append(f"{saturated} numbers of the first prefix were beyond the format's largest and became it")
        return "; ".join(sentences)


def stores_sliding(contender: Contender) -> bool:
    """Whether it stores layers with a sliding window, and so is filled from a prefill that is whole."""
    return isinstance(contender, SchemeContender) and contender.scheme.kinds != "full"


def goes_alone(contender: Contender) -> bool:
    """Whether it takes the windows of a batch one after another: it mixes them, or may."""
    return contender.foreign or contender.mixes_rows


def check_heads_apart(contenders: Sequence[Contender]) -> None:
    """UserError for what would be another row where each process stores some of the heads."""
    for contender in contenders:
        if why := contender.mixes_heads:
            raise UserError(
                f"{contender.label}: {why}; with --tensor-parallel each process has some of the heads, and it would be another row; "
                "leave one of them out"
            )


def _described(value: Any) -> Any:
    """A dataclass as its fields, with the kind of a quantizer."""
    if not is_dataclass(value):
        return value
    described = {field.name: _described(getattr(value, field.name)) for field in fields(value)}
    return {"kind": type(value).__name__, **described} if isinstance(value, Quantizer) else described


def contender_of(spec: str) -> Contender:
    """A contender from a spec: of a scheme, of a cache that evicts ("sink-window:bits=4"), or of one of transformers'
    own ("hf-hqq:bits=4"). ValueError for what is none of these."""
    label, cache = spec.strip(), parse_cache_spec(spec)
    if cache is None:
        return SchemeContender.of(spec)
    return stock_cache(label, cache) if cache.kind.startswith("hf-") else EvictingContender.of(label, cache)


ContenderT = TypeVar("ContenderT", bound=Contender)


def contenders_of(schemes: Sequence[str | Contender], note: Any = lambda text: None) -> list[Contender]:
    """Contenders of specs, or as they are, exact first; equal canonical specs are merged with a notice."""
    given: list[Contender] = [contender_of(one) if isinstance(one, str) else one for one in schemes]
    once = merged(given, note)
    baseline: list[Contender] = [c for c in once if c.name == "exact"] or [SchemeContender.of("exact")]
    return [*baseline, *(c for c in once if c.name != "exact")]


def merged(contenders: Sequence[ContenderT], note: Callable[[str], None]) -> list[ContenderT]:
    """Without those whose canonical name came before, wherever its files lie, or that store alike under another; each says
    so."""
    once: list[ContenderT] = []
    for contender in contenders:
        twin = next((other for other in once if _same(other, contender)), None)
        if twin:
            note(f"{contender.label} is the same scheme as {twin.label}: taken once")
        else:
            once.append(contender)
    return once


def _same(one: Contender, other: Contender) -> bool:
    if isinstance(one, SchemeContender) and isinstance(other, SchemeContender):
        if one.lossless or other.lossless:  # a control is a row, whatever it is called
            return identity_of(one.name) == identity_of(other.name)
        if one.scheme.kinds != other.scheme.kinds:
            return False
        a, b = ([(i, rule.key, rule.value) for i, rule in [(None, s), *s.layers]] for s in (one.scheme, other.scheme))
        return a == b
    return identity_of(one.name) == identity_of(other.name)
