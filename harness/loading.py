"""Loading code: a user's cache factory, and transformers without the seconds that it does not need."""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any


def load_factory(path: str) -> Callable[[Any], Any]:
    """The callable at "module:name"; ValueError where there is none. The current folder is looked in first."""
    module_name, colon, name = path.partition(":")
    if not colon or not name:
        raise ValueError(f"--cache {path!r}: give module:factory, such as my_caches:make_cache")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"--cache {path!r}: {module_name} cannot be imported: {error}") from None
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ValueError(f"--cache {path!r}: {module_name} has no callable {name!r}")
    return factory


def import_quickly() -> None:
    """Import hqq, as transformers is about to, with its functions compiled when they are first called.

    It decorates functions that nothing here calls with torch.compile, which would load the compiler: 2 s.
    """
    import torch

    compile = torch.compile

    def when_called(function: Any = None, **how: Any) -> Any:
        if function is None:
            return functools.partial(when_called, **how)
        compiled = functools.cache(lambda: compile(function, **how))
        return functools.wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))

    torch.compile = when_called
    try:
        importlib.import_module("hqq.core.quantize")
    finally:
        torch.compile = compile
