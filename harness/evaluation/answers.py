"""What a model answers to a request of a task, by every scheme over one exact prefill of its context.

A context is prefilled once, exactly (pass 1), and stored as each scheme says; what follows it is fed over that (pass 2). The logit that
predicts the first token of a continuation is that of the context's last token, and so exact, unless that token is fed in pass 2 too.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.harness.audit import Observer, Reads, declaring_layers
from kvdelta.harness.caches.contenders import SchemeContender, stores_sliding
from kvdelta.harness.caches.layers import SchemeLayer
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.protocols import prefilled_with_logits
from kvdelta.harness.raising import RAISED, reason_of
from kvdelta.harness.scoring import losses
from kvdelta.harness.subject.forward import forward
from kvdelta.harness.subject.probing import check_continues

Tokens = tuple[int, ...]
Generate = Callable[[SchemeCache], Tensor]
Result = TypeVar("Result")
ENDLESS = 1 << 62  # more tokens than are written


@dataclass(frozen=True)
class Answer:
    """Of one scheme. reads: by layer that is stored, attended pairs of the queries that count. counted, elements: bytes of the stored context
    with exact tokens at 16 bits, and the numbers that they stand for. context: its tokens."""

    reads: dict[int, Reads]
    context: int
    counted: float
    elements: int


@dataclass(frozen=True)
class Scored(Answer):
    """A continuation's log-likelihood in nats; greedy: whether each of its tokens is the likeliest."""

    loglikelihood: float
    greedy: bool


@dataclass(frozen=True)
class Written(Answer):
    """What was generated: token ids, those of the context first."""

    tokens: list[int]


@dataclass
class Answers:
    """The answers of several schemes, each request's computed when the first of them asks and kept for the others.

    failed: by position of a scheme, why it has no answers: what raises, but for exact, is not asked again, and the others go on.
    feed_last: so many of the context's last tokens are fed in pass 2, as far as one is left for pass 1. on_answer: called with the
    number of requests that have been answered, and of those that were `planned` until then.
    """

    model: Any
    contenders: Sequence[SchemeContender]
    feed_last: int = 0
    on_answer: Callable[[int, int], None] = lambda done, planned: None
    planned: int = 0
    first_context: Tokens | None = None  # that was answered, for controls
    failed: dict[int, str] = field(default_factory=dict)
    _kept: dict[Any, list[Any]] = field(default_factory=dict)
    _reads: dict[Any, dict[int, Reads]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_continues(self.model)
        for contender in self.contenders:
            contender.check(self.model, ENDLESS)  # whether a context is long enough its coverage says

    def scored(self, scheme: int, context: Tokens, continuations: Sequence[Tokens]) -> list[Scored]:
        """Of continuations of one context, by the scheme at this position."""
        missing = [one for one in dict.fromkeys(continuations) if (context, one) not in self._kept]
        if missing:
            for one, answers in zip(missing, self._score(context, missing), strict=True):
                self._keep((context, one), answers)
        return [self._kept[context, one][scheme] for one in continuations]

    def written(self, scheme: int, context: Tokens, how: str, generate: Generate) -> Written:
        """What the scheme at this position writes after a context. how: what tells this request from others of the context; generate:
        writes over a cache, which has all of the context but the tokens that are fed, and gives token ids [1, tokens]."""
        key = (context, how)
        if key not in self._kept:
            self._keep(key, self._write(context, how, generate))
        return self._kept[key][scheme]

    def _keep(self, key: Any, answers: list[Any]) -> None:
        self._kept[key] = answers
        self.first_context = self.first_context or key[0]
        self.on_answer(len(self._kept), self.planned)

    def _tried(self, scheme: int, work: Callable[[], Result]) -> Result | None:
        """None of a scheme that has failed, or fails now."""
        if scheme in self.failed:
            return None
        try:
            return work()
        except RAISED as error:
            if scheme == 0:  # without exact there is nothing to compare with
                raise
            self.failed[scheme] = reason_of(error)
            return None

    @torch.inference_mode()
    def _score(self, context: Tokens, continuations: Sequence[Tokens]) -> list[list[Scored | None]]:
        """By continuation, then by scheme: None where it has failed."""
        fed = min(self.feed_last, len(context) - 1)
        fill, first = self._filled(context[: len(context) - fed])

        def of_scheme(scheme: int) -> list[Scored]:
            cache = fill(scheme)
            counted, elements = held(cache)
            answers = []
            for continuation in continuations:
                rows, reads = self._rows(cache, context, fed, continuation, first)
                targets = torch.tensor(continuation, device=rows.device)
                nll = losses(rows, targets)
                greedy = bool((rows.argmax(-1) == targets).all())
                answers.append(Scored(reads, len(context), counted, elements, -float(nll.sum()), greedy))
            return answers

        found = [self._tried(scheme, partial(of_scheme, scheme)) for scheme in range(len(self.contenders))]
        return [[None if answers is None else answers[i] for answers in found] for i in range(len(continuations))]

    def _rows(
        self, cache: SchemeCache, context: Tokens, fed: int, continuation: Tokens, first: Float[Tensor, "1 vocabulary"]
    ) -> tuple[Float[Tensor, "continuation vocabulary"], dict[int, Reads]]:
        """The logits that predict a continuation, and what their queries read. The cache is left as it was."""
        chunk = [*context[len(context) - fed :], *continuation[:-1]]
        exact = int(fed == 0)  # logits that pass 1 gives
        scored = len(continuation) - exact
        reads = self._nothing_read(cache, len(context) if exact else 0)
        rows = first[:exact]
        if scored:
            tokens = torch.tensor([chunk])
            observer = Observer(cache, scored, declaring_layers(cache), True, skipped=len(chunk) - scored)
            with others_kept(cache):
                for part in cache.feed([tokens]):  # one forward reads what is stored, and stores nothing
                    observer.watch()
                    logits = forward(self.model, part, cache, logits_to_keep=scored).logits[0]
                    rows = torch.cat([rows, logits])
            for layer, more in observer.stop().reads.items():
                reads[layer].add(more)
        return rows, self._once(reads)

    def _once(self, reads: dict[int, Reads]) -> dict[int, Reads]:
        """The same object for the same counts: a large task has 100,000s of answers, and few that differ in what they read."""
        return self._reads.setdefault(tuple((i, one.pairs, one.key, one.value) for i, one in reads.items()), reads)

    def _nothing_read(self, cache: SchemeCache, tokens: int) -> dict[int, Reads]:
        """By stored layer, the pairs of one query that attends to so many tokens, all exact."""
        windows = {i: getattr(cache.layers[i], "sliding_window", None) or tokens for i in declaring_layers(cache)}
        return {layer: Reads(pairs=min(tokens, window)) for layer, window in windows.items()}

    def _write(self, context: Tokens, how: str, generate: Generate) -> list[Written | None]:
        fed = max(1, min(self.feed_last, len(context) - 1))  # generate goes on from one token at least
        fill, _ = self._filled(context[: len(context) - fed], mirrored=True)

        def of_scheme(scheme: int) -> Written:
            cache = fill(scheme)
            counted, elements = held(cache)
            observer = Observer(cache, ENDLESS, declaring_layers(cache), True, skipped=fed - 1)
            observer.watch()
            with drawn_alike(f"{context} {how}"):
                tokens = generate(cache)
            reads = self._once(self._nothing_read(cache, 0) | observer.stop().reads)
            return Written(reads, len(context), counted, elements, tokens[0].tolist())

        return [self._tried(scheme, partial(of_scheme, scheme)) for scheme in range(len(self.contenders))]

    def _filled(self, prefix: Tokens, *, mirrored: bool = False) -> tuple[Callable[[int], SchemeCache], Tensor]:
        """What gives the cache of the scheme at a position, filled, and the logits of what follows the prefix; of an empty one there are
        none. mirrored: for many steps, each of which then decodes only what is new."""

        def empty(scheme: int) -> SchemeCache:
            return SchemeCache.for_model(self.contenders[scheme].scheme, self.model, mirrored=mirrored)

        if not prefix:
            return empty, torch.empty(0)
        whole = any(map(stores_sliding, self.contenders))
        prefilled, first = prefilled_with_logits(self.model, torch.tensor([prefix]), whole=whole)
        return lambda scheme: empty(scheme).fill(prefilled), first

    @torch.inference_mode()
    def zeroed_codes_move(self) -> dict[str, bool]:
        """The destructive control, on the first context: by lossy scheme that packs something of it, whether with every stored code 0
        the logits of its last token move."""
        context, moved = self.first_context, {}
        if context is None or len(context) < 2:
            return {}
        fill, _ = self._filled(context[:-1])
        last = torch.tensor([context[-1:]])
        for scheme, contender in enumerate(self.contenders):
            cache = None if contender.lossless else self._tried(scheme, partial(fill, scheme))
            if cache is None or not any(store.packed_until > store.packed_from for _, _, store in cache.stores()):
                continue
            zeroed = copy.deepcopy(cache)
            zeroed.zero_codes()
            logits = [forward(self.model, last, one, logits_to_keep=1).logits for one in (cache, zeroed)]
            moved[contender.label] = not torch.equal(*logits)
        return moved


def held(cache: SchemeCache) -> tuple[float, int]:
    """Bytes of what a cache stores, exact tokens at 16 bits, and the numbers that they stand for."""
    stores = list(cache.stores())
    counted = sum(store.counted_bytes() for _, _, store in stores)
    return counted, sum(cache.layer(layer).numbers(side) for layer, side, _ in stores)


@contextmanager
def others_kept(cache: SchemeCache) -> Iterator[None]:
    """Layers that the scheme does not store (a sliding window, a state) are changed by a forward: it gets copies of them."""
    mine = {i: layer for i, layer in enumerate(cache.layers) if not isinstance(layer, SchemeLayer)}
    for i, layer in mine.items():
        cache.layers[i] = copy.deepcopy(layer)
    try:
        yield
    finally:
        for i, layer in mine.items():
            cache.layers[i] = layer


@contextmanager
def drawn_alike(request: str) -> Iterator[None]:
    """Where tokens are sampled every scheme draws alike, and a request as if it were alone."""
    seed = int.from_bytes(hashlib.sha256(request.encode()).digest()[:7], "big")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def told_apart(**request: Any) -> str:
    """A request's settings as a key."""
    return json.dumps(request, sort_keys=True, default=repr)
