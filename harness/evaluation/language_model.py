"""lm-evaluation-harness's model for transformers, over a cache that is stored as a scheme says. Imports lm_eval (the extra lm-eval)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kvdelta.harness.audit import Reads
from kvdelta.harness.caches.contenders import Contender, SchemeContender, contender_of
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.evaluation.answers import Answer, Answers, Tokens, told_apart
from kvdelta.harness.evaluation.library import EXTRA, ROLLING, quiet
from kvdelta.harness.subject.forward import cache_keyword
from kvdelta.harness.subject.model import LoadedModel
from kvdelta.schemes.errors import UserError

try:
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise ImportError(f"SchemeLM is a model of lm-evaluation-harness, which is not installed: {EXTRA}") from error

Item = tuple[str | None, int | None]
"""Task and document."""
NAMED = 3  # tasks of a message
Stock: Any = HFLM  # its decorator says no type


class SchemeLM(Stock):
    """For `lm_eval.simple_evaluate(model=SchemeLM(load_model(), "kivi4"), tasks=[…])`.

    A context is prefilled exactly and stored as the scheme says, and what follows reads it; requests go one by one, so there is no
    padding. feed_last: so many of a context's last tokens are fed after it was stored, so that they read it too. answers: shared
    with models of other schemes (`several`), so that all of them are answered over one prefill; scheme: then its position in it.
    After an evaluation `answered` has, by task and document, what was answered.

    UserError: a scheme that cannot be used with this model; while evaluating, a task that would read nothing from storage.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        scheme: str | Contender | int = "exact",
        *,
        feed_last: int = 0,
        answers: Answers | None = None,
    ):
        if loaded.tokenizer.eos_token_id is None:  # lm_eval ends texts with it, and begins those without a context
            raise UserError(
                f"the tokenizer of {loaded.name} has no token that ends a text, which lm-evaluation-harness needs"
            )
        with quiet():
            super().__init__(pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=1)  # type: ignore[arg-type]
        self.loaded = loaded
        if answers is None:
            assert not isinstance(scheme, int)
            scheme, answers = 0, Answers(loaded.model, [ours(scheme)], check_feed_last(feed_last))
        assert isinstance(scheme, int)
        self.answers, self.scheme = answers, scheme
        self.answered: dict[Item, list[Answer]] = {}
        self.silent: dict[str | None, tuple[int, int]] = {}
        self._asked: list[Item] = []
        self._nth = 0

    @classmethod
    def several(
        cls,
        loaded: LoadedModel,
        schemes: Sequence[str | Contender],
        *,
        feed_last: int = 0,
        on_answer: Callable[[int, int], None] = lambda done, planned: None,
    ) -> "list[SchemeLM]":
        """One for each scheme; each context is prefilled once for all of them, when the first is asked."""
        answers = Answers(loaded.model, [ours(one) for one in schemes], check_feed_last(feed_last), on_answer)
        return [cls(loaded, position, answers=answers) for position in range(len(schemes))]

    @property
    def label(self) -> str:
        return self.answers.contenders[self.scheme].label

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval puts beside its results. Asks no hub."""
        source = self.loaded.source
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "model_revision": source.get("revision", ""),
            "model_sha": source.get("sha256", ""),
            "kv_cache_scheme": self.answers.contenders[self.scheme].name,
            "feed_last": self.answers.feed_last,
        }

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self._asked = [(request.task_name, request.doc_id) for request in requests]
        try:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        finally:
            self._asked = []

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise UserError(f"task {_some({request.task_name for request in requests})} {ROLLING}")

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitting(context, continuation) for _, context, continuation in requests]
        asked = self._asked or [(None, None)] * len(pairs)
        self._check_that_some_read(asked, pairs)
        self.answers.planned += 0 if self.scheme else len(set(pairs))
        by_context: dict[Tokens, list[Tokens]] = {}
        for context, continuation in pairs:
            by_context.setdefault(context, []).append(continuation)
        found = {}
        for context, continuations in by_context.items():
            scored = self.answers.scored(self.scheme, context, continuations)
            found |= {(context, one): answer for one, answer in zip(continuations, scored, strict=True)}
        for item, pair in zip(asked, pairs, strict=True):
            self.answered.setdefault(item, []).append(found[pair])
        return [(found[pair].loglikelihood, found[pair].greedy) for pair in pairs]

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[Tokens, Tokens]:
        """As HFLM cuts what is too long: from the left, the last token being one that is only predicted."""
        if len(continuation) > self.max_length:
            raise UserError(
                f"a continuation of {len(continuation)} tokens is longer than the model's {self.max_length} positions; leave its task out"
            )
        room = self.max_length + 1 - len(continuation)
        return tuple(context[-room:]), tuple(continuation)

    def _check_that_some_read(self, asked: Sequence[Item], pairs: Sequence[tuple[Tokens, Tokens]]) -> None:
        """UserError for tasks none of whose requests would read what is stored."""
        self.silent = {}
        for (task, _), (context, continuation) in zip(asked, pairs, strict=True):
            fed = min(self.answers.feed_last, len(context) - 1) + len(continuation) - 1
            silent, count = self.silent.get(task, (0, 0))
            self.silent[task] = (silent + (fed == 0), count + 1)
        if nothing := {task for task, (silent, count) in self.silent.items() if silent == count}:
            raise UserError(
                f"task {_some(nothing)} reads nothing from storage: each continuation is one token, as a choice by its letter is, whose "
                "only logit comes from the exact prefill of its context, the same for every scheme; feed the last tokens of the context "
                "after it was stored: --feed-last 1 (or more)"
            )

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """One by one: HFLM pads what goes together."""
        written, asked = [], {}
        self.answers.planned += 0 if self.scheme else len(requests)
        for request in requests:
            key = told_apart(request=request.args)
            self._nth = asked[key] = asked.get(key, -1) + 1  # a task may repeat a request, to draw another answer
            self._asked = [(request.task_name, request.doc_id)]
            written += super().generate_until([request], disable_tqdm=True)
        self._asked = []
        return written

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        """HFLM's own settings and stop sequences, over our cache."""
        assert context.shape[0] == 1
        keyword = cache_keyword(self.model)
        assert keyword is not None

        def generate(cache: SchemeCache) -> Tensor:
            own = {**generation_kwargs, keyword: cache}
            return super(SchemeLM, self)._model_generate(context=context, max_length=max_length, stop=stop, **own)

        how = told_apart(max_length=max_length, stop=stop, nth=self._nth, **_settings(generation_kwargs))
        answer = self.answers.written(self.scheme, tuple(context[0].tolist()), how, generate)
        for item in self._asked:
            self.answered.setdefault(item, []).append(answer)
        return torch.tensor([answer.tokens], device=context.device)


def ours(scheme: str | Contender) -> SchemeContender:
    """A scheme of ours; UserError for any other cache, which has no state that several continuations could start from."""
    contender = contender_of(scheme) if isinstance(scheme, str) else scheme
    if not isinstance(contender, SchemeContender):
        raise UserError(
            f"{contender.label} is no scheme of ours: tasks are answered from a context that is stored once and read by each of its "
            "continuations; kvdelta compare scores any cache"
        )
    return contender


def check_feed_last(count: int) -> int:
    if count < 0:
        raise UserError(
            f"feed_last is {count}: give how many of a context's last tokens are fed after it was stored, 0 or more"
        )
    return count


def total_reads(answers: Sequence[Answer]) -> dict[int, Reads]:
    """By layer, over answers."""
    sums: dict[int, Reads] = {}
    for answer in answers:
        for layer, reads in answer.reads.items():
            sums.setdefault(layer, Reads()).add(reads)
    return sums


def _settings(generation_kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in generation_kwargs.items() if not isinstance(value, Tensor)}


def _some(tasks: set[str | None]) -> str:
    names = sorted(name or "(of no name)" for name in tasks)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
