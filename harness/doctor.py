"""What of this machine a run would find: versions, devices, memory, the packaged model, optional parts, the hub."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

GIGABYTE = 1e9
OPTIONAL: Mapping[str, tuple[Sequence[str], str]] = {
    "demo": (("gensim",), "the packaged text"),
    "report": (("altair", "vl-convert-python"), "kvdelta report"),
    "lm-eval": (("lm_eval",), "kvdelta lm-eval"),
    "parquet": (("pandas", "pyarrow"), "--format parquet, kvdelta.harness.frames"),
}
"""Extra → what it installs, and what needs that."""

Verdict = Literal["ok", "missing", "wrong", "–"]
"""missing: an optional part; wrong: what kvdelta does not run with."""


@dataclass(frozen=True)
class Finding:
    """part: what was looked at. verdict; found: what is there, and where it is not, what gives it."""

    part: str
    verdict: Verdict
    found: str


def examine() -> Iterator[Finding]:
    """One part after another, the quick ones first; nothing is fetched and nothing is written."""
    yield from _versions()
    yield from _devices()
    yield _memory()
    yield from _packaged()
    yield from _optional()
    yield _hub()


def _versions() -> Iterator[Finding]:
    yield Finding(
        "kvdelta",
        "ok",
        f"{_version('kvdelta') or 'not installed: a checkout on the path'}, in {Path(__file__).parents[1]}",
    )
    yield Finding("Python", "ok", f"{platform.python_version()}, {sys.executable}")
    for required in map(Requirement, importlib.metadata.requires("kvdelta") or ()):
        if required.marker and not required.marker.evaluate({"extra": ""}):
            continue
        there = _version(required.name)
        if there is None:
            yield Finding(
                required.name,
                "wrong",
                f"not installed; {required.specifier or 'any version'} is needed: pip install kvdelta",
            )
        elif not required.specifier.contains(there, prereleases=True):
            yield Finding(
                required.name,
                "wrong",
                f"{there}, and {required.specifier} is needed: pip install '{required.name}{required.specifier}'",
            )
        elif required.name in ("torch", "transformers", "datasets", "hqq"):
            yield Finding(required.name, "ok", there)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("CPU", "ok", f"{usable} cores, of which torch uses {torch.get_num_threads()}; float32 by default")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = (
            "this torch is built without CUDA"
            if built is None
            else f"torch is built for CUDA {built} and finds no device"
        )
        yield Finding("GPU", "–", f"none: {why}; --device cpu is the default")
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        sizes = f"{free / GIGABYTE:.0f} of {total / GIGABYTE:.0f} GB free"
        yield Finding(f"GPU {index}", "ok", f"{torch.cuda.get_device_name(index)}, {sizes}; float16 by default")
    fused = "ok" if importlib.util.find_spec("triton") else "missing"
    yield Finding(
        "fused kernels",
        fused,
        "triton is there" if fused == "ok" else "pip install triton; without it the torch code runs",
    )


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    return Finding("memory", "ok", f"{memory.available / GIGABYTE:.0f} of {memory.total / GIGABYTE:.0f} GB free")


def _packaged() -> Iterator[Finding]:
    from kvdelta.harness.subject.files import cache_folder
    from kvdelta.harness.subject.gguf import converted_folder, is_converted
    from kvdelta.harness.subject.packaged import CONVERTED_BYTES, GGUF_BYTES, GGUF_SHA256, PACKAGED_NAME, WHEEL_BYTES

    folder = cache_folder()
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    free, needed = shutil.disk_usage(there).free, WHEEL_BYTES + GGUF_BYTES + CONVERTED_BYTES
    cost = f"{CONVERTED_BYTES / GIGABYTE:.2f} GB of memory in float32"
    if is_converted(converted_folder(GGUF_SHA256)):
        yield Finding("packaged model", "ok", f"{PACKAGED_NAME}: in {folder}; {cost}")
    elif free < needed:
        yield Finding(
            "packaged model",
            "missing",
            f"{needed / GIGABYTE:.2f} GB are needed in {folder}, {free / GIGABYTE:.2f} are free: KVDELTA_CACHE names another folder",
        )
    else:
        yield Finding(
            "packaged model",
            "–",
            f"fetched by the first run: {WHEEL_BYTES / 1e6:.0f} MB, half a minute of work; then {cost}, {CONVERTED_BYTES / GIGABYTE:.2f} GB in {folder}",
        )
    if not os.access(there, os.W_OK):
        yield Finding("cache folder", "wrong", f"{there} cannot be written: KVDELTA_CACHE names another folder")


def _optional() -> Iterator[Finding]:
    for extra, (names, use) in OPTIONAL.items():
        lacking = [name for name in names if _version(name) is None]
        if lacking:
            yield Finding(extra, "missing", f"{use} needs {' and '.join(lacking)}: pip install 'kvdelta[{extra}]'")
        else:
            yield Finding(extra, "ok", f"{use}: {', '.join(f'{name} {_version(name)}' for name in names)}")


def _hub() -> Finding:
    from huggingface_hub import constants

    from kvdelta.harness.subject import hub

    if constants.HF_HUB_OFFLINE:
        return Finding("model hub", "–", "HF_HUB_OFFLINE is set: local models and copies alone")
    if hub.answers():
        return Finding("model hub", "ok", f"{constants.ENDPOINT} answers")
    return Finding("model hub", "–", f"{constants.ENDPOINT} cannot be reached: local models, texts and copies alone")
