"""KL by position in the suffix, from runs that kept the figures of every token."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from kvdelta.analysis.reading.replays import mean_interval
from kvdelta.analysis.reading.rows import Row
from kvdelta.harness.records.run import Run
from kvdelta.harness.records.tokens import load_tokens

BINS = 8


@dataclass(frozen=True)
class SuffixRow(Row):
    """One scheme over the scored positions first to last of the suffix, from 1. kl: nats a token, with its 95 % t interval over windows,
    NaN of one window and of windows that share scored tokens."""

    scheme: str
    name: str
    first: int
    last: int
    kl: float
    kl_low: float
    kl_high: float


def suffix_rows(run: Run, folder: Path, bins: int = BINS) -> list[SuffixRow]:
    """One row a scheme and bin; lossless schemes and those without a score are left out. UserError where a file of tokens is gone."""
    kl = np.stack([load_tokens(folder, window.index)["kl"] for window in run.windows]).astype(np.float64)
    ends = np.unique(np.linspace(0, kl.shape[2], min(bins, kl.shape[2]) + 1).round().astype(int))
    rows = []
    for i, contender in enumerate(run.contenders):
        if contender.lossless or contender.error or run.audit.failures.get(contender.label):
            continue
        for first, last in pairwise(ends):
            mean, low, high = mean_interval(kl[:, i, first:last].mean(axis=1))
            if not run.settings.independent:
                low = high = np.nan
            rows.append(
                SuffixRow(contender.label, contender.name, int(first) + 1, int(last), mean, float(low), float(high))
            )
    return rows
