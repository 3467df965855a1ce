"""transformers' own exact caches as factories: `kvdelta check-cache harness.conformance.stock:DynamicCache`."""

from typing import Any

import transformers

from harness.conformance.models import LONGEST


def DynamicCache(config: Any) -> Any:
    return transformers.DynamicCache(config=config)


def StaticCache(config: Any, tokens: int = LONGEST) -> Any:
    return transformers.StaticCache(config=config, max_cache_len=tokens)
