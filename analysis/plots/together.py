"""Figures drawn in several processes: one takes a second or two, and none needs another."""

import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

JobT = TypeVar("JobT")
FEW = 4  # figures that are drawn sooner than a process starts
MOST = 8  # processes


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def draw_together(draw: Callable[[JobT], list[Path]], jobs: Sequence[JobT]) -> Iterator[Path]:
    """The files of every job, in the order of the jobs, each job's as soon as they and those before are there.

    draw: a function of a module; what it raises is raised here.
    """
    workers = min(cores(), len(jobs), MOST)
    if workers < 2 or len(jobs) < FEW:
        for job in jobs:
            yield from draw(job)
        return
    # spawned, since the process may hold threads and a GPU, which a fork does not survive
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin)
    try:
        for paths in pool.map(draw, jobs):
            yield from paths
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears of interrupts
    gc.set_threshold(200_000)  # else an eighth of the time goes into looking for garbage among a figure's many parts
