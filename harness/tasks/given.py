"""The samples of a user's own task file, as tokens."""

from pathlib import Path
from typing import Any

from kvdelta.harness.tasks.haystack import encoded
from kvdelta.harness.tasks.samples import Sample, check_known, spans_of
from kvdelta.harness.tasks.task_file import place, read_task_file
from kvdelta.schemes.errors import UserError


def given_samples(name: str, tokenizer: Any, bos: int | None, positions: int | None) -> tuple[list[Sample], str]:
    """As tokens, and the SHA-256 of the file. UserError as `read_task_file`, for an answer that is not in the vocabulary, and for what is
    longer than the model's positions."""
    rows, sha256 = read_task_file(name)
    counts: dict[str, int] = {}
    samples = []
    for number, row in rows:
        where, task = place(name, number), row["task"] or Path(name).stem
        question, pieces = _spaced(row["question"], row["answers"])
        context, asked, *answers = encoded(tokenizer, [row["context"], question, *pieces])
        check_known(tokenizer, answers, row["answers"], where)
        if not context or not asked:
            raise UserError(f"{where}: its {'question' if context else 'context'} gives no token with this tokenizer")
        context = [*([] if bos is None else [bos]), *context]
        total = len(context) + len(asked) + sum(map(len, answers))
        if positions is not None and total > positions:
            raise UserError(f"{where} has {total} tokens, the model has {positions} positions; give a shorter context")
        samples.append(
            Sample(
                task=task,
                length=0,
                number=counts.get(task, 0),
                context=tuple(context),
                question=tuple(asked),
                answer=tuple(token for piece in answers for token in piece),
                spans=spans_of(answers),
                line=number,
            )
        )
        counts[task] = counts.get(task, 0) + 1
    return samples, sha256


def _spaced(question: str, answers: list[str]) -> tuple[str, list[str]]:
    """Spaces at the end of a question begin the answer, where tokenizers have them; where there is none between the two, one is put
    there. Several answers are joined by commas."""
    bare = question.rstrip(" ")
    first = answers[0].lstrip(" ")
    joined = bare[-1:].isspace() or first[:1].isspace()
    return bare, [first if joined else f" {first}", *(f", {one.strip()}" for one in answers[1:])]
