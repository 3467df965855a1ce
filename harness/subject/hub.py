"""The model hub: whether it answers at all, and one line for what it refuses."""

import functools
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from kvdelta.harness.subject.errors import one_line

SECONDS = 3.0  # for a connection: the hub's own client tries for half a minute


@functools.cache
def answers() -> bool:
    """Can a connection to the hub be made? Not asked where a proxy makes it, or where the user has switched it off."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or getproxies():
        return True
    place = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((place.hostname or "", place.port or 443), timeout=SECONDS):
            return True
    except OSError:
        return False


@contextmanager
def asked() -> Iterator[None]:
    """Around whatever asks the hub: where it cannot be reached only this machine's own copies are looked for, which takes no time."""
    if answers():
        yield
        return
    os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported from here on
    known: list[Any] = [
        sys.modules[name] for name in ("huggingface_hub.constants", "datasets.config") if name in sys.modules
    ]
    before = [module.HF_HUB_OFFLINE for module in known]
    for module in known:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        os.environ.pop("HF_HUB_OFFLINE")
        for module, offline in zip(known, before, strict=True):
            module.HF_HUB_OFFLINE = offline


def refusal(name: str, error: BaseException, kind: str = "") -> str:
    """Why the hub has not given it, and the way out: one line without an end. kind: "datasets/", of a data set."""
    from huggingface_hub import constants, errors

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 20:
        chain.append(cause)
    place = urlsplit(constants.ENDPOINT).hostname
    if any(isinstance(one, errors.GatedRepoError) for one in chain) or "gated" in str(error).lower():
        return f"it is gated: accept its terms at {constants.ENDPOINT}/{kind}{name} and give `hf auth login`"
    if not answers():
        return f"{place} cannot be reached, and this machine has no copy of it"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and this machine has no copy of it"
    return one_line(error)
