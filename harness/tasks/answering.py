"""One sample: what the exact model alone makes of it, and what each scheme does over its cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache

from kvdelta.harness.audit import Observer, Reads, common
from kvdelta.harness.protocols import suffix_logits
from kvdelta.harness.scoring import Reference
from kvdelta.harness.subject.forward import forward
from kvdelta.harness.tasks.samples import Sample


@dataclass(frozen=True, eq=False)
class Answer:
    """Sums over the answer's tokens: loss, and KL from exact, in nats. match: all tokens are the likeliest; found: so many answers."""

    nll: float
    kl: float
    match: bool
    found: int


@dataclass
class ContextReads(Observer):
    """Counts pairs of a query and a token of the context alone: what comes after it is no retrieval. context: its tokens."""

    context: int = 0

    def _count(self, layer: int, held: Any, queries: int) -> None:
        past, rows, read = held.get_seq_length(), self._rows(layer, queries), held.past_read()
        window, counted = getattr(held, "sliding_window", None), Reads()
        for end in range(past + rows.start + 1, past + rows.stop + 1):  # behind each query
            seen = range(max(0, end - window) if window else 0, min(end, self.context))
            counted.add(Reads(len(seen), common(seen, read["key"]), common(seen, read["value"])))
        self.reads.setdefault(layer, Reads()).add(counted)

    def _count_rows(self, layer: int, past: int, queries: int, lost: list[Tensor]) -> None:
        rows = len(self._rows(layer, queries))
        key, value = (rows * int(side[: self.context].sum()) for side in lost)
        self.reads.setdefault(layer, Reads()).add(Reads(rows * self.context, key, value))


def answer_logits(model: Any, cache: Any, sample: Sample, step: int | None) -> Float[Tensor, "1 answer vocabulary"]:
    """Over a cache that holds the context: the question and the answer are fed, and these logits predict the answer."""
    logits = suffix_logits(model, cache, sample.window.suffix, step)
    return logits[:, len(sample.question) - 1 :].clone()


@torch.inference_mode()
def likeliest(logits: Float[Tensor, "1 answer vocabulary"], sample: Sample) -> Bool[Tensor, "answer"]:
    """Which tokens of the answer are those that greedy decoding would take."""
    return (logits[0].argmax(dim=-1).cpu() == torch.tensor(sample.answer)).cpu()


def answered(
    logits: Float[Tensor, "1 answer vocabulary"], sample: Sample, reference: Reference | None
) -> tuple[Answer, Reference]:
    """reference: of the exact cache; None: these logits are its. Numbers that are not finite give what is not finite."""
    hits, targets = likeliest(logits, sample), torch.tensor([sample.answer])
    if reference is None:
        reference = Reference(logits)
        scores = reference.itself(targets)
    else:
        scores = reference.score(logits, targets)
    found = sum(bool(hits[start:stop].all()) for start, stop in sample.spans)
    nll, kl = scores.nll.double().sum().item(), scores.kl.double().sum().item()
    return Answer(nll, kl, bool(hits.all()), found), reference


@torch.inference_mode()
def exactly(model: Any, sample: Sample) -> Answer:
    """What the model makes of it in one forward, with nothing between context and answer."""
    tokens, count = sample.window.tokens[None], len(sample.answer)
    logits = forward(model, tokens[:, :-1], DynamicCache(config=model.config), logits_to_keep=count).logits
    return answered(logits.clone(), sample, None)[0]


def mean_answer(answers: Sequence[Answer]) -> tuple[int, float]:
    """How many match, and the mean loss of an answer."""
    return sum(one.match for one in answers), sum(one.nll for one in answers) / len(answers)
