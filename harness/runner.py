"""compare: windows × contenders, each window prefilled once; finished windows are on disk before the next begins."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness import controls
from harness.audit import Observer, Reads, total
from harness.caches.contenders import Contender
from harness.failures import failures
from harness.protocols import (
    NotFinite,
    Scores,
    check_finite,
    log_probabilities,
    prefill,
    score,
    single_pass_logits,
    suffix_logits,
)
from harness.records.run import ContenderRecord, Run, WindowRecord, save_run, save_tokens
from harness.subject.errors import one_line
from harness.subject.probing import kv_shapes
from harness.subject.windows import Window
from schemes.errors import UserError

LayersRead = dict[int, Reads]  # by layer


@dataclass
class Progress:
    """What a run tells while it goes: one call per scored pass."""

    on_pass: Callable[[int, int, str, float], None] = lambda window, contender, label, nll: None
    on_note: Callable[[str], None] = lambda text: None


@dataclass
class Runner:
    """Scores contenders on windows with one model. `contenders[0]` is the exact baseline."""

    model: Any
    model_name: str
    contenders: Sequence[Contender]
    run: Run
    folder: Path
    progress: Progress = field(default_factory=Progress)
    timings: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._full_layers = list(kv_shapes(self.model))

    def go(self, windows: Sequence[Window]) -> Run:
        """Score every window that the record does not have yet; save after each. Returns the complete run."""
        done = {window.index for window in self.run.windows}
        if not done:
            self.progress.on_note(
                "the first window takes longer: it also runs the controls; the first 3 measure the noise floor"
            )
        for window in windows:
            if window.index not in done:
                self._window(window)
        self.run.status = "complete"
        save_run(self.run, self.folder)
        return self.run

    def _window(self, window: Window) -> None:
        torch.manual_seed(self.run.settings.seed)
        started = time.perf_counter()
        prefilled = prefill(self.model, window.prefix)
        self._time("prefill", started)
        scored: list[Scores] = []
        reads: list[LayersRead] = []
        log_p: Tensor | None = None
        for position, contender in enumerate(self.contenders):
            outcome = None
            if not self._failed(position):
                try:
                    outcome = self._score(position, contender, window, prefilled, log_p)
                except Exception as error:
                    if position == 0 and isinstance(error, NotFinite):
                        raise UserError(
                            f"{self.model_name} in {self.run.settings.dtype}, exact cache: {error}"
                        ) from None
                    if not contender.foreign and not isinstance(error, NotFinite):
                        raise
                    self._fail(position, contender, error)
            scores, observed, log_q = outcome or (Scores.none(len(window.targets)), {}, None)
            log_p = log_q if log_p is None else log_p
            scored.append(scores)
            reads.append(observed)
            self.progress.on_pass(len(self.run.windows), position, contender.label, scores.nll.double().mean().item())
        self._keep(window, scored, reads)

    def _score(
        self, position: int, contender: Contender, window: Window, prefilled: Any, log_p: Tensor | None
    ) -> tuple[Scores, LayersRead, Tensor]:
        """Against log p, or against itself where there is none yet; its own log-probabilities too. On the first window
        with the contender's record and the controls."""
        first, settings = not self.run.windows, self.run.settings
        logits, observed, record = self._pass(contender, window, prefilled)
        if record:
            self.run.contenders.append(record)
        check_finite(logits, "logits", window, settings.dtype)
        if first and position == 0:
            controls.check_identity(self.run.audit, self.model, window, logits, settings)
        if first and not (contender.lossless or contender.foreign) and settings.protocol != "single-pass":
            controls.check_zeroed_codes(self.run.audit, contender, self.model, window, prefilled, settings.step)
        log_q = log_probabilities(logits)
        log_p = log_q if log_p is None else log_p
        scores = score(log_q, log_p, window.targets)
        check_finite(torch.stack([scores.nll, scores.kl]), "losses or KL", window, settings.dtype)
        if position == 0 and len(self.run.windows) < controls.FLOOR_WINDOWS:
            self.run.noise_floor = controls.noise_floor(
                self.run.noise_floor, self.model, window, prefilled, log_p, scores, settings
            )
        return scores, observed, log_q

    def _failed(self, position: int) -> bool:
        return position < len(self.run.contenders) and self.run.contenders[position].error is not None

    def _fail(self, position: int, contender: Contender, error: Exception) -> None:
        """The row's record says why; the contender is not run again."""
        if position == len(self.run.contenders):
            self.run.contenders.append(contender.record(self.model, None, None))
        kind = "" if isinstance(error, NotFinite) else f"{type(error).__name__}: "
        self.run.contenders[position].error = reason = f"{kind}{one_line(error)}"
        self.progress.on_note(f"{contender.label} failed, the others go on: {reason}")

    def _pass(
        self, contender: Contender, window: Window, prefilled: Any
    ) -> tuple[Tensor, LayersRead, ContenderRecord | None]:
        settings = self.run.settings
        cache = contender.empty(self.model)
        # what says that it changes nothing is tested row by row; the exact baseline has a control of its own
        by_value = contender.foreign or (contender.lossless and contender is not self.contenders[0])
        observer = Observer(cache, settings.score_length - 1, self._full_layers, declared=not by_value)
        record = None
        if settings.protocol == "single-pass":
            observer.watch()
            started = time.perf_counter()
            logits = single_pass_logits(self.model, cache, window)
            if not self.run.windows:
                record = contender.record(self.model, cache, None)
        else:
            started = time.perf_counter()
            contender.fill(cache, self.model, window, prefilled)
            self._time(f"{contender.name} fill", started)
            if not self.run.windows:
                record = contender.record(self.model, cache, prefilled)
            observer.watch()
            started = time.perf_counter()
            logits = suffix_logits(self.model, cache, window.suffix, settings.step)
        self._time(f"{contender.name} score", started)
        return logits, observer.stop().reads, record

    def _time(self, what: str, started: float) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self.timings.setdefault(what, []).append(round(time.perf_counter() - started, 4))

    def _keep(self, window: Window, scored: list[Scores], reads: list[LayersRead]) -> None:
        arrays = {
            "nll": np.stack([scores.nll.numpy() for scores in scored]),
            "kl": np.stack([scores.kl.numpy() for scores in scored]),
            "top1": np.stack([scores.top1.numpy() for scores in scored]),
        }
        save_tokens(self.folder, window.index, arrays)
        record = window_sums(arrays, window.index, window.start, [total(layers.values()) for layers in reads])
        self.run.windows = [*self.run.windows, record]
        for contender, layers in zip(self.contenders, reads, strict=True):
            controls.add_reads(self.run.audit, contender.label, layers)
        self.run.audit.failures = failures(self.run)
        save_run(self.run, self.folder)


def window_sums(arrays: dict[str, np.ndarray], index: int, start: int, reads: Sequence[Reads]) -> WindowRecord:
    """The sums of a window from its per-token arrays, in float64."""
    return WindowRecord(
        index=index,
        start=start,
        count=arrays["nll"].shape[1],
        nll=[float(x) for x in arrays["nll"].astype(np.float64).sum(axis=1)],
        kl=[float(x) for x in arrays["kl"].astype(np.float64).sum(axis=1)],
        top1=[int(x) for x in arrays["top1"].sum(axis=1)],
        probability=[float(x) for x in np.exp(-arrays["nll"].astype(np.float64)).sum(axis=1)],
        key_pairs=[r.key for r in reads],
        value_pairs=[r.value for r in reads],
        pairs=[r.pairs for r in reads],
    )
