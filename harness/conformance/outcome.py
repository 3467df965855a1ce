"""A check of a cache, and how it ends: pass, fail, refused, or does not apply."""

import linecache
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kvdelta.harness.subject.errors import one_line
from kvdelta.harness.subject.imports import quiet

Factory = Callable[[Any], Any]
"""Makes a fresh cache from a model's config."""
Ending = Literal["pass", "fail", "refused", "does not apply"]

LONGEST = 240  # characters of a reason
TORCH = os.path.dirname(torch.__file__) + os.sep


class Wrong(Exception):
    """What a cache owes and does not give."""


class Refused(Exception):
    """What a cache says that it cannot do, without being asked."""


class DoesNotApply(Exception):
    """Why there is nothing to check."""


@dataclass(frozen=True)
class Outcome:
    """How a check ended. why: of a fail what was expected and what came; of a refusal the cache's own words; of a pass what
    was seen, where that tells more."""

    ending: Ending
    why: str = ""

    @property
    def passed(self) -> bool:
        """Whether it does all that it was asked for, be it that there is nothing to ask."""
        return self.ending in ("pass", "does not apply")


@dataclass(frozen=True)
class Check:
    """Something that transformers asks of a cache. Called with a factory it gives an Outcome, whatever the cache does.

    owed: in one line. test: returns what it saw, if that is worth a word; raises Wrong, or whatever the cache raises.
    may_refuse: whether a cache may say no to it in clear words (a NotImplementedError or ValueError that it, or transformers
    for it, raises on purpose); an error that nobody meant is a fail.
    """

    name: str
    owed: str
    test: Callable[[Factory], str]
    may_refuse: bool = False

    def __str__(self) -> str:
        return self.name

    def __call__(self, factory: Factory) -> Outcome:
        try:
            with apart():
                return Outcome("pass", self.test(factory))
        except KeyboardInterrupt:
            raise
        except Wrong as error:
            return Outcome("fail", said(error))
        except Refused as error:
            return Outcome("refused", said(error))
        except DoesNotApply as error:
            return Outcome("does not apply", said(error))
        except BaseException as error:  # SystemExit too: a cache may raise anything
            if self.may_refuse and _on_purpose(error):
                return Outcome("refused", said(error))
            return Outcome("fail", f"raises {type(error).__name__}: {said(error)}")


@contextmanager
def apart() -> Iterator[None]:
    """The same random numbers for every check, none of the caller's; what a cache prints goes to stderr, what it warns of
    is left out."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        redirect_stdout(sys.stderr),
        warnings.catch_warnings(),
        quiet(progress_bars=True),
    ):
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        yield


def said(error: BaseException) -> str:
    """The words of an error in one line, not too long."""
    try:
        words = " ".join(one_line(error).split())
    except (Exception, SystemExit):  # a user's error may not even have words
        words = "(no words)"
    return words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"


def _on_purpose(error: BaseException) -> bool:
    """Whether somebody wrote `raise` for it: torch has ValueErrors and NotImplementedErrors of its own, which nobody means."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, NotImplementedError | ValueError):
        return False
    file = trace.tb_frame.f_code.co_filename
    return not file.startswith(TORCH) and linecache.getline(file, trace.tb_lineno).lstrip().startswith("raise ")
