"""What a user asks of tasks, beside model and device. Light: no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvdelta.schemes.errors import UserError


@dataclass(frozen=True)
class EvaluationOptions:
    """tasks: names that lm-evaluation-harness knows, groups among them; include_path: a folder with tasks of one's own. limit: items of each
    task, from the first. num_fewshot: items with their answers that are shown before each, where the task's file does not say 0. feed_last:
    tokens of a context that are fed after it was stored, so that they read it. apply_chat_template: prompts as the model's template has them."""

    tasks: Sequence[str]
    include_path: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    feed_last: int = 0
    apply_chat_template: bool = False

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError("lm-eval answers tasks: name one with --tasks, such as --tasks hellaswag")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit is {self.limit}: give the number of items of each task, 1 or more")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise UserError(
                f"num_fewshot is {self.num_fewshot}: give how many solved items are shown before each, 0 or more"
            )
        if self.feed_last < 0:
            raise UserError(
                f"feed_last is {self.feed_last}: give how many of a context's last tokens are fed after it was stored, 0 or more"
            )
