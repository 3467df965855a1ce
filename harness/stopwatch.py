"""Seconds by what they were spent on."""

import time
from typing import Any

import torch


class Stopwatch:
    """On a GPU the seconds are its own, between events in its stream, so that nobody waits for it: they are there from `settle` on.

    model: a `torch.nn.Module`; of one that is spread over several GPUs each measure waits for all of them."""

    def __init__(self, model: Any):
        self.device = model.device
        self.spread = hasattr(model, "hf_device_map")
        self.seconds: dict[str, list[float]] = {}
        self._pending: list[tuple[list[float], int, Any, Any]] = []

    def start(self) -> Any:
        """A moment, for `stop`."""
        if self.device.type != "cuda":
            return time.perf_counter()
        if self.spread:
            _wait_for_all()
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def stop(self, what: str, started: Any) -> None:
        """`what` has taken the time since `started`."""
        now, taken = self.start(), self.seconds.setdefault(what, [])
        if isinstance(now, float):
            taken.append(round(now - started, 4))
        else:
            self._pending.append((taken, len(taken), started, now))
            taken.append(0.0)

    def settle(self) -> None:
        """Wait for the device, and know all seconds."""
        for taken, i, started, ended in self._pending:
            ended.synchronize()
            taken[i] = round(started.elapsed_time(ended) / 1000, 4)
        self._pending.clear()


def _wait_for_all() -> None:
    for index in range(torch.cuda.device_count()):
        torch.cuda.synchronize(index)
