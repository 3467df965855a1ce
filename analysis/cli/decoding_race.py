"""The races of `recommend`: who is left is scored on the next windows by decoding; each round is a run record."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kvdelta.analysis.cli.runs import make_runs
from kvdelta.analysis.cli.starting import note
from kvdelta.analysis.measuring.candidates import Candidate
from kvdelta.analysis.reading import recommending
from kvdelta.analysis.reading.cells import By, Cell
from kvdelta.analysis.reading.racing import Standing, race, rounds
from kvdelta.analysis.reading.recommending import VerifiedRow
from kvdelta.analysis.reading.verifying import Verified
from kvdelta.harness.caches.contenders import contenders_of
from kvdelta.harness.options import Options
from kvdelta.harness.records.run import Run, named
from kvdelta.harness.records.tokens import load_each
from kvdelta.harness.subject.prepared import Subject
from kvdelta.schemes import parse_scheme


@dataclass(frozen=True)
class Race:
    """What is asked for. specs, engine: candidates in place of all."""

    budget: float
    by: By
    step: int
    windows: int
    keep: int
    specs: tuple[str, ...] = ()
    engine: str | None = None

    @property
    def measure(self) -> str:
        return "KL" if self.by == "kl" else "ΔNLL"


class Scorer:
    """Scores candidates by decoding, and keeps the runs."""

    def __init__(self, asked: Race, options: Options, folder: Path, models: list[str]):
        self.asked, self.options, self.folder, self.models = asked, options, folder, models
        self.runs: list[Run] = []

    def race(
        self, ran: Sequence[Candidate], subjects: Sequence[Subject]
    ) -> tuple[list[Standing], list[str], list[list[tuple[float, float]]]]:
        """How each stands, why one that failed did, and by candidate and model 1 − TVD in % and the 99.9 % quantile of KL over
        all tokens that it was scored on."""
        refused = [""] * len(ran)
        tokens = [[([], []) for _ in subjects] for _ in ran]

        def score(left: Sequence[int], first: int, last: int) -> np.ndarray:
            specs = [ran[s].spec for s in left]
            note(f"race, windows {first + 1} to {last} of {self.asked.windows}: {len(left)} left")
            losses = []
            for model, subject in enumerate(subjects):
                some = replace(subject, windows=sorted(subject.windows[first:last], key=lambda window: window.index))
                (cell,) = self._cells(specs, some, model, f"race/{first + 1}-{last}", ["stepwise"])
                names = [parse_scheme(spec).identity for spec in specs]
                losses.append(cell.losses(names, self.asked.by))
                scored = [load_each(cell.folder, cell.run, what) for what in ("tvd", "kl")]
                for s, name in zip(left, names, strict=True):
                    refused[s] = refused[s] or cell.why_not(name)
                    if name in cell.rows:
                        for kept, each in zip(tokens[s][model], scored, strict=True):
                            kept.append(each[cell.rows[name][0]])
            return np.stack(losses, axis=1)

        standings = race(len(ran), score, rounds(self.asked.windows))
        agreement = [[agreement_of(*kept) for kept in models] for models in tokens]
        return standings, refused, agreement

    def verify(
        self, bits: dict[str, float], baseline: Candidate | None, subjects: Sequence[Subject]
    ) -> tuple[list[Verified], list[VerifiedRow], list[str]]:
        """The best of the race, and the baseline, in two passes and in decoding; and of those that failed, why.

        bits: of the best, by spec.
        """
        bits = bits | ({baseline.spec: baseline.bits} if baseline else {})
        note(f"verifying {', '.join(bits)} on {len(subjects[0].windows)} fresh windows")
        by_model = [
            self._cells(list(bits), subject, model, "verify", ["two-pass", "stepwise"])
            for model, subject in enumerate(subjects)
        ]
        verified: list[Verified] = []
        rows: list[VerifiedRow] = []
        failed: list[str] = []
        for spec, size in bits.items():
            name = parse_scheme(spec).identity
            losses, nll = (
                np.stack([cells[-1].losses([name], by)[0] for cells in by_model]) for by in (self.asked.by, "nll")
            )
            if np.isnan(losses).any():
                failed.append(f"{spec}: {next(filter(None, (cells[-1].why_not(name) for cells in by_model)))}")
                continue
            verified.append(Verified(spec, size, losses, nll))
            what = "uniform KIVI" if baseline and spec == baseline.spec else ""
            for model, cells in enumerate(by_model):
                rows += [
                    recommending.verified_row(spec, size, what, self.models[model], cell, name, self.asked.by)
                    for cell in cells
                ]
        return verified, rows, failed

    def _cells(
        self, specs: Sequence[str], subject: Subject, model: int, place: str, protocols: Sequence[str]
    ) -> list[Cell]:
        name = re.sub(r"[^\w.+-]+", "-", self.models[model])
        out = self.folder / place / f"{model + 1}-{name}"
        options = replace(self.options, out=str(out), windows=len(subject.windows))
        ways = options.by(protocols, [self.asked.step])
        runs = make_runs(contenders_of(specs), ways, subject)
        self.runs += [run for run, _ in runs]
        return [Cell(folder, run, named(run.settings), {}) for run, folder in runs]


def agreement_of(tvd: Sequence[np.ndarray], kl: Sequence[np.ndarray]) -> tuple[float, float]:
    """1 − TVD in %, and the 99.9 % quantile of KL, over the tokens of all rounds; NaN of what failed or was not scored."""
    if not tvd:
        return math.nan, math.nan
    return 100 * (1 - float(np.concatenate(tvd).mean())), float(np.quantile(np.concatenate(kl), 0.999))
