"""Loading code: a user's cache factory, and transformers without the seconds that it does not need."""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def quiet(progress_bars: bool) -> Iterator[None]:
    """Silence transformers' advice and, where nothing is fetched, its bars: a local load takes a second."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not progress_bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
