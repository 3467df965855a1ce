"""Which choice of an item is right, and tasks that do not say so."""

from typing import Any, TypeGuard

import numpy as np

from kvdelta.schemes.errors import UserError


def choices_of(task: Any, doc: Any) -> list[Any]:
    found = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else []
    return list(found) if isinstance(found, list | tuple) else []


def gold_of(task: Any, doc: Any) -> int | None:
    """The position of the right request; None where there is not one."""
    if task.OUTPUT_TYPE == "loglikelihood":
        return 0
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    gold, choices = _said(task, doc), choices_of(task, doc)
    if isinstance(gold, str):
        gold = choices.index(gold) if gold in choices else None
    return int(gold) if _is_position(gold) and 0 <= gold < len(choices) else None


def check_gold(name: str, task: Any, limit: int | None) -> None:
    """UserError: a task of choices in which an item's right one is out of range, or none of whose items has one."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    said, count, some = None, 0, False
    for number, doc in task.doc_iterator(limit=limit):
        gold, choices = _said(task, doc), choices_of(task, doc)
        if _is_position(gold) and gold >= len(choices):
            raise UserError(
                f"task {name}: the right choice of item {number} is {gold}, and it has {len(choices)} choices, counted from 0: "
                f"see doc_to_target ({_setting(task)}) and its data"
            )
        some |= isinstance(gold, list | tuple) or gold_of(task, doc) is not None
        said, count = (gold, doc), count + 1
    if said is None:
        raise UserError(f"task {name} has no items: its data are empty, or its process_docs leaves none")
    if not some:
        gold, doc = said
        fields = f"; its fields are {', '.join(map(str, doc))}" if isinstance(doc, dict) else ""
        raise UserError(
            f"task {name}: none of its {count} items has a right choice: doc_to_target ({_setting(task)}) gives {str(gold)[:40]!r}, which "
            f"is no position from 0 and none of the choices{fields}"
        )


def _said(task: Any, doc: Any) -> Any:
    return task.doc_to_text(doc) if getattr(task, "multiple_input", 0) else task.doc_to_target(doc)


def _is_position(gold: Any) -> TypeGuard[int]:
    return isinstance(gold, int | np.integer)


def _setting(task: Any) -> str:
    said = task.get_config("doc_to_target") if hasattr(task, "get_config") else None
    return repr(said)[:60] if isinstance(said, str) else "its own code"
