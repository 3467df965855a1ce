"""The processes that a launcher (torchrun, accelerate) started for one run, over torch.distributed.

They exchange records, never tensors, so gloo serves on GPUs too: no process holds GPU memory for it, and a wait may be as
long as a batch takes.
"""

import atexit
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from kvdelta.schemes.errors import UserError

T = TypeVar("T")

PATIENCE = timedelta(days=7)  # a launcher ends all processes when one ends; until then one may wait for long


def rank() -> int:
    """Which of the processes this is; 0 where there is one."""
    return int(os.environ.get("RANK", 0)) if size() > 1 else 0


def size() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", 1))


class OthersGone(UserError):
    """Another process of the run has ended, and this one cannot go on."""

    def __init__(self) -> None:
        super().__init__(
            "another process of this run ended; what it said is above or in its log; finished windows are kept: the same command "
            "goes on"
        )


class Processes:
    """What they say to each other. All processes call the same methods in the same order."""

    def __init__(self) -> None:
        import torch.distributed

        self.rank, self.size = rank(), size()
        self._distributed: Any = torch.distributed
        self._counters = 0
        self._store: Any = None
        self._group: Any = None
        if self.size > 1:
            with _others_alive():
                self._join()

    def _join(self) -> None:
        distributed = self._distributed
        if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise UserError(
                f"WORLD_SIZE is {self.size}, and {', '.join(missing)} is not set: start the command with torchrun or accelerate "
                "launch, or take WORLD_SIZE out of the environment"
            )
        store, _, _ = next(iter(distributed.rendezvous("env://")))
        self._store = distributed.PrefixStore("kvdelta", store)
        if distributed.is_initialized():  # by the program that calls; its backend may want tensors on a GPU
            self._group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        else:
            distributed.init_process_group(
                "gloo", store=self._store, rank=self.rank, world_size=self.size, timeout=PATIENCE
            )
            atexit.register(distributed.destroy_process_group)  # else its threads abort a process that ends early

    def gather(self, mine: T) -> list[T]:
        """What each process has, by rank, in every process."""
        if self.size == 1:
            return [mine]
        given: list[Any] = [None] * self.size
        with _others_alive():
            self._distributed.all_gather_object(given, mine, group=self._group)
        return given

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, in every process; only the first calls it."""
        given: list[Any] = [make() if self.rank == 0 else None]
        if self.size > 1:
            with _others_alive():
                self._distributed.broadcast_object_list(given, src=0, group=self._group)
        return given[0]

    def deal(self, things: Sequence[T], first: int) -> Iterator[tuple[int, T]]:
        """Each thing, with its position, to one process: the first few to the first, then each of the others to whichever
        asks next."""
        self._counters += 1
        if self.rank == 0:
            yield from enumerate(things[:first])
        while (at := first + self._next(f"dealt {self._counters}")) < len(things):
            yield at, things[at]

    def _next(self, counter: str) -> int:
        with _others_alive():
            return self._store.add(counter, 1) - 1


@contextmanager
def _others_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's DistError too; in many words it says that the other end is gone
        raise OthersGone from error


def of_others(error: BaseException) -> bool:
    """Whether a process ended since another had: in an exchange, or in a forward that they share, where gloo has no error of its own."""
    import torch.distributed

    return isinstance(error, OthersGone | torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


@functools.cache
def processes() -> Processes:
    """Those of this program; joins them at the first call."""
    return Processes()
