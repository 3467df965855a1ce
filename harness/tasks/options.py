"""What a user asks of tasks, beside model and device. Light: no torch."""

from dataclasses import dataclass, replace

from kvdelta.harness.options import Options
from kvdelta.harness.tasks.levels import LADDERS
from kvdelta.schemes.errors import UserError

DEPTHS = 5
SEARCHED = 8  # samples that exact is tried on at a level
SHORTEST = 128  # tokens of a context


@dataclass(frozen=True)
class TaskOptions:
    """tasks: by name; None is all, or none where there is a task_file (JSON lines of the user's own). lengths: tokens of a context.
    depths: places that what is asked for is put at, spread from the beginning to the end. samples: of each task and length.
    difficulty: a level from 1, or "auto": found for each task and length by `search` samples that are not scored."""

    tasks: tuple[str, ...] | None = None
    lengths: tuple[int, ...] = (1024,)
    depths: int = DEPTHS
    samples: int = 20
    difficulty: str = "auto"
    search: int = SEARCHED
    task_file: str | None = None

    def __post_init__(self) -> None:
        if self.task_file is not None and not self.task_file.strip():
            raise UserError("the name of the task file is empty; give --task-file mine.jsonl, or leave it out")
        for name in self.tasks or ():
            if name not in LADDERS:
                raise UserError(f"task {name!r}: choose {', '.join(LADDERS)}, or your own with --task-file")
        for length in self.lengths:
            if length < SHORTEST:
                raise UserError(f"length {length}: contexts have {SHORTEST} tokens or more; give --length 1024")
        if self.depths < 1:
            raise UserError(f"{self.depths} depths: what is asked for has to be somewhere; give --depths {DEPTHS}")
        if self.samples < 1:
            raise UserError(f"{self.samples} samples leave nothing to score; give --samples 20")
        if self.search < 1:
            raise UserError(f"{self.search} samples find no difficulty; give --search 8, or a level with --difficulty")
        hardest = max(map(len, LADDERS.values()))
        if self.difficulty != "auto" and self.difficulty not in map(str, range(1, hardest + 1)):
            raise UserError(f"difficulty {self.difficulty!r}: give auto, or a level from 1 (easy) to {hardest}")

    @property
    def generated(self) -> tuple[str, ...]:
        """The tasks that are made here, each once."""
        every = () if self.task_file else tuple(LADDERS)
        return tuple(dict.fromkeys(every if self.tasks is None else self.tasks))

    def depth_of(self, sample: int) -> float:
        """Samples take the depths in turn, 0 the beginning of the context and 1 its end; one depth is the middle."""
        return (sample % self.depths) / (self.depths - 1) if self.depths > 1 else 0.5

    def options(self, given: Options) -> Options:
        """The sizes that settings name: of the longest context; what follows it differs from sample to sample. UserError for a
        protocol that does not read the cache."""
        if given.protocol == "single-pass":
            raise UserError("single-pass answers without reading the cache; use --protocol two-pass or stepwise")
        longest = max(self.lengths) if self.generated else 0
        return replace(given, windows=None, window_length=longest, score_length=0, stride=1, batch="1")
