"""transformers without the seconds, the advice and the bars that nobody asked for."""

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
