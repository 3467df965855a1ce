"""Where numbers come from: versions, commit and host; and the folder that a record of them lies in."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.records.run import RECORD_FILES, RUN_FILE, HeaderT, Settings
from schemes.errors import UserError

VERSIONED = ("torch", "transformers", "hqq", "kvdelta")  # a change of these may change the numbers


def open_folder(
    out: str | None, file: str, settings: Settings, load: Callable[[Path], HeaderT]
) -> tuple[Path, HeaderT | None]:
    """The folder, and the record with the same settings that is there, if any; ValueError where it holds another.

    file: the name of the record's file; records of other kinds may lie beside it. Without `out` the folder is named by the settings, so that the same command
    finds its record again.
    """
    name = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:12]
    kind = "compare" if file == RUN_FILE else file.removesuffix(".json")
    folder = Path(out) if out else Path("runs") / f"{kind}-{name}"
    if (folder / file).exists():
        record = load(folder)
        if record.settings != settings:
            old, new = record.settings.model_dump(), settings.model_dump()
            differs = ", ".join(name for name in new if old[name] != new[name])
            raise UserError(f"{folder} holds another run (it differs in {differs}); choose another folder with --out")
        return folder, record
    if folder.exists() and any(folder.iterdir()) and not any((folder / other).exists() for other in RECORD_FILES):
        raise UserError(f"{folder} is not empty and holds no run; choose another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the run folder {folder} cannot be made: {error.strerror}; choose one with --out") from None
    return folder, None


def host() -> dict[str, Any]:
    """What the timings were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "processor": named[0] if named else platform.processor(),
        "cores": os.cpu_count(),
    }


def commit() -> str | None:
    """The commit of the code that runs, where it runs from a git checkout; "-dirty" where files were changed since."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    here = Path(__file__).parent
    try:
        out = subprocess.run(describe, cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None


def versions() -> dict[str, str]:
    """Of the packages whose change may change the numbers; UserError where one, or kvdelta itself, is not installed."""
    try:
        return {name: importlib.metadata.version(name) for name in VERSIONED}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed in {sys.prefix}, and its version is part of a record; in the checkout of "
            f"kvdelta give {Path(sys.executable).name} -m pip install -e ."
        ) from None
