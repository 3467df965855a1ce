"""Rows of a comparison over a model whose KV heads processes share: each stores some, and what is counted is of all."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from kvdelta.harness.records.run import Bytes
from kvdelta.schemes import TensorScheme

Gather = Callable[[Any], list[Any]]
"""What each of the processes that share the heads has, in each of them."""


def own(mine: Any) -> list[Any]:
    """Of a process that has all heads."""
    return [mine]


def bytes_of_all(mine: dict[str, Bytes], gather: Gather) -> dict[str, Bytes]:
    """By side, summed over processes."""
    parts = gather(mine)
    return {side: Bytes.total([part[side] for part in parts]) for side in mine}


def any_head(marks: list[Tensor], gather: Gather) -> list[Tensor]:
    """Of marks that are 1 where something holds of some head, those of all heads."""
    return [torch.stack(each).amax(0) for each in zip(*gather(marks), strict=True)]


def why_together(rules: Iterable[TensorScheme]) -> str | None:
    """Why heads cannot be encoded apart from each other; None where they can."""
    claims = [quantizer.heads_independent for rule in rules for quantizer in rule.quantizers]
    return next((str(claim) for claim in claims if claim is not True), None)
