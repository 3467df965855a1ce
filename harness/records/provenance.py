"""Where numbers come from: versions, the code, and the host; and the folder that a record of them lies in."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from kvdelta.harness.records.record import Typed
from kvdelta.harness.records.run_folder import RECORD_FILES, RUN_FILE
from kvdelta.harness.records.writer import OURS
from kvdelta.harness.records.writing import UNFINISHED, make_folder
from kvdelta.schemes.errors import UserError

VERSIONED = ("torch", "transformers", "hqq", "kvdelta")  # a change of these may change the numbers
PACKAGES = ("schemes", "harness", "analysis")
ROOT = Path(__file__).resolve().parents[2]  # of the checkout: kvdelta/harness is a link there
MEASURES = 3  # raised by hand when a measure changes: its numbers are not mixed with those of before in one record


class OtherRun(UserError):
    """A folder holds the record of other settings."""


@runtime_checkable
class Begun(Protocol):
    """A record that is there before it is complete. settings: what decides its numbers."""

    @property
    def settings(self) -> Typed: ...
    @property
    def status(self) -> str: ...


BegunT = TypeVar("BegunT", bound=Begun)


def open_folder(
    out: str | None,
    file: str,
    settings: Typed,
    load: Callable[[Path], BegunT],
    hold: Callable[[Path], None] = lambda folder: None,
) -> tuple[Path, BegunT | None]:
    """The folder, and the record with the same settings that is there, if any; UserError where it holds another, or cannot
    be read and written.

    file: the name of the record's file; records of other kinds may lie beside it. hold: called with a folder that can be written,
    before anything in it is read. Without `out` the folder is named by the settings, so that the same command
    finds its record again.
    """
    name = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:12]
    kind = "compare" if file == RUN_FILE else file.removesuffix(".json")
    folder = Path(out) if out else Path("runs") / f"{kind}-{name}"
    try:
        make_folder(folder)
        writable = os.access(folder, os.W_OK)
        if writable:
            hold(folder)
        names = {name for name in os.listdir(folder) if name not in OURS and not name.endswith(UNFINISHED)}
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"the run folder {folder} cannot be used: {reason}; choose another with --out") from None
    record = load(folder) if file in names else None
    if record:
        if record.settings != settings:
            old, new = record.settings.model_dump(), settings.model_dump()
            differs = ", ".join(name for name in new if old[name] != new[name])
            raise OtherRun(f"{folder} holds another run (it differs in {differs}); choose another folder with --out")
    elif names and not names & set(RECORD_FILES):
        raise UserError(f"{folder} is not empty and holds no run; choose another folder with --out")
    if (record is None or record.status == "running") and not writable:  # said before hours are lost
        raise UserError(f"the run folder {folder} cannot be written; choose another with --out")
    return folder, record


def host() -> dict[str, Any]:
    """What the timings were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
    }


@functools.cache
def commit(root: Path = ROOT) -> str | None:
    """The commit of the code below `root`, where it runs from a git checkout of its own; where its files were changed
    since, "-dirty-" and a hash of what they hold now. None of an installed package, whatever repository it lies in."""
    here = Path(*Path(__file__).parts[-3:])
    head = _git(root, "rev-parse", "HEAD")
    if head is None or _git(root, "ls-files", "--error-unmatch", str(here)) is None:
        return None
    if _git(root, "status", "--porcelain", "--", *PACKAGES) == "":
        return head
    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return f"{head}-dirty-{digest.hexdigest()[:8]}"


def _git(root: Path, *words: str) -> str | None:
    """What git says in `root`; None where it fails."""
    elsewhere = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_")
    }  # a hook names another
    command = ["git", "--no-optional-locks", *words]
    try:
        done = subprocess.run(command, cwd=root, env=elsewhere, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Of the packages whose change may change the numbers; UserError where one, or kvdelta itself, is not installed."""
    try:
        return {name: importlib.metadata.version(name) for name in VERSIONED}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed in {sys.prefix}, and its version is part of a record; in the checkout of "
            f"kvdelta give {Path(sys.executable).name} -m pip install -e ."
        ) from None
