"""Taking turns: A B C A, A B C A, …, after a warm-up of each; and the clock that waits for the device."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch

from kvdelta.harness.no_memory import out_of_memory
from kvdelta.harness.raising import RAISED, reason_of
from kvdelta.harness.records.bench import AGAIN, BASELINE, PREFILL, Times
from kvdelta.harness.time_limit import at_most, check_time_limit

Parts = Mapping[str, float]  # seconds by part


class Clock:
    """Seconds from lap to lap, with all that the device was given to do."""

    def __init__(self, device: torch.device):
        self.device = device
        self.lap()

    def lap(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        seconds, self._last = now - getattr(self, "_last", now), now
        return seconds


@dataclass
class Turns:
    """What competes, by name, each a function that does its work once and returns what its parts took.

    What raises, or takes longer than time_limit (seconds), is left out from then on; `left_out` says why.
    """

    rounds: int
    on_note: Callable[[str], None] = lambda text: None
    left_out: dict[str, str] = field(default_factory=dict)
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if self.time_limit is not None:
            check_time_limit()

    def take(
        self,
        tasks: Mapping[str, Callable[[], Parts]],
        context: int,
        *,
        warm_up: int = 1,
        needed: Collection[str] = (PREFILL, BASELINE, AGAIN),
    ) -> list[Times]:
        """context: tokens in the cache. needed: those that all others are compared with; what they raise ends the bench."""
        times: dict[tuple[str, str], Times] = {}
        for turn in range(-warm_up, self.rounds):
            for name, task in tasks.items():
                if name in self.left_out:
                    continue
                try:
                    with at_most(None if name in needed else self.time_limit):
                        parts = task()
                except RAISED as error:  # a large context is too much for some
                    if name in needed:
                        raise
                    self.leave_out(name, context, error)
                    times = {key: one for key, one in times.items() if key[0] != name}
                    continue
                for part, seconds in parts.items() if turn >= 0 else ():
                    fresh = Times(name=name, part=part, context=context, seconds=[])
                    times.setdefault((name, part), fresh).seconds.append(round(seconds, 7))
        return list(times.values())

    def leave_out(self, name: str, context: int, error: BaseException) -> None:
        """From here on, and why."""
        self.left_out[name] = f"{context} tokens: {reason_of(error)}"
        self.on_note(f"{name} is left out from here on, {self.left_out[name]}")
        if out_of_memory(error):
            torch.cuda.empty_cache()
