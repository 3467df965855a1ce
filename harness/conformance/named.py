"""A cache by name: "module:factory", a spec, of a scheme or of one of transformers' own, or the name of an exact one of those."""

import re
from typing import Any

from transformers import DynamicCache, StaticCache

from kvdelta.harness.caches.contenders import contender_of
from kvdelta.harness.caches.factory import load_factory
from kvdelta.harness.conformance.models import LONGEST, full, model_of
from kvdelta.harness.conformance.outcome import Factory, apart, said
from kvdelta.schemes.errors import UserError

_FACTORY = re.compile(r"\s*[\w.]+:\w+\s*(\(|$)")  # a spec has "=" behind what follows its colon
STOCK: dict[str, Factory] = {
    "DynamicCache": lambda config: DynamicCache(config=config),
    "StaticCache": lambda config: StaticCache(config=config, max_cache_len=LONGEST),
}
ASKED = ("update", "get_seq_length", "get_mask_sizes")


def cache_named(name: str) -> Factory:
    """The factory of a cache, tried once. UserError where there is none, or where it gives no fresh cache."""
    factory = STOCK.get(name) or (_of_module(name) if _FACTORY.match(name) else _of_spec(name))
    _try(factory, name)
    return factory


def _of_module(name: str) -> Factory:
    try:
        return load_factory(name)
    except UserError as error:
        raise UserError(str(error).removeprefix("--cache ")) from None  # where other commands take it


def _of_spec(name: str) -> Factory:
    contender = contender_of(name)
    return lambda config: contender.empty(model_of(config))


def _try(factory: Factory, name: str) -> None:
    try:
        with apart():
            first, second = factory(full().config), factory(full().config)
            most = _fixed_length(first)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a factory may raise anything
        raise UserError(
            f"{name!r} gives no cache for a small Llama model: {type(error).__name__}: {said(error)}"
        ) from None
    if missing := [method for method in ASKED if not callable(getattr(first, method, None))]:
        raise UserError(
            f"{name!r} gives {_a(type(first).__name__)}, which is no cache: it has no {', no '.join(missing)}"
        )
    if first is second:
        raise UserError(f"{name!r} gives the same cache twice; let it make a fresh one each time it is called")
    if most is not None and most < LONGEST:
        raise UserError(
            f"{name!r} gives a cache for {most} tokens, and the checks put {LONGEST} into it: make it that long"
        )


def _fixed_length(cache: Any) -> int | None:
    """The tokens that it has room for; None where it grows, or forgets."""
    if not getattr(cache, "layers", None) or any(
        cache.is_sliding
    ):  # a DynamicCache of nothing makes layers when asked for
        return None
    most = int(cache.get_max_length())
    return most if most >= 0 else None


def _a(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
