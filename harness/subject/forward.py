"""One forward of a model over a cache: the one place that knows what transformers calls that argument.

Since 5.24 it is `cache`; before, `past_key_values`, a name that still works there with a FutureWarning.
"""

import inspect
from typing import Any

from jaxtyping import Int64
from torch import Tensor

CACHE_NAMES = ("cache", "past_key_values")  # the newest first


def cache_keyword(model: Any) -> str | None:
    """The name of the argument that takes a cache; None where the model's forward takes none."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), None)


def forward(model: Any, tokens: Int64[Tensor, "batch tokens"], cache: Any, **options: Any) -> Any:
    """What the model returns for `tokens` over `cache`, which it reads and appends to. options: as the model's own."""
    name = cache_keyword(model)
    assert name is not None  # load_model refuses others
    return model(input_ids=tokens.to(model.device), **{name: cache}, use_cache=True, **options)
