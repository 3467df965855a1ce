"""Where numbers come from: settings, versions, command and commit; and the folder that a record of them lies in."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.options import Options
from harness.records import RECORD_FILES, RUN_FILE, HeaderT, Settings
from harness.text import token_sha256

if TYPE_CHECKING:
    from harness.comparison import Subject

VERSIONED = ("torch", "transformers", "hqq", "kvdelta")  # a change of these may change the numbers


def settings_of(
    options: Options, subject: "Subject", contenders: Sequence[str], measured: dict[str, Any] | None = None
) -> Settings:
    """contenders: canonical specs. measured: what a measurement's numbers also depend on."""
    model = subject.loaded.model
    return Settings(
        model=subject.loaded.source,
        text_sha256=token_sha256(subject.tokens),
        protocol=options.protocol,  # type: ignore[arg-type]
        step=options.step,
        window_length=options.window_length,
        score_length=options.score_length,
        stride=options.stride or options.score_length,
        windows=[window.index for window in subject.windows],
        bos_token_id=subject.bos_token_id,
        device=torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=str(model.config._attn_implementation),
        seed=options.seed,
        contenders=list(contenders),
        versions={name: importlib.metadata.version(name) for name in VERSIONED},
        measured=measured or {},
    )


def header_of(options: Options, subject: "Subject", settings: Settings) -> dict[str, Any]:
    """The fields that every record begins with."""
    return {
        "kvdelta": importlib.metadata.version("kvdelta"),
        "command": options.command,
        "commit": _commit(),
        "model_name": subject.loaded.name,
        "text_name": subject.text.name,
        "text_source": subject.text.source,
        "text_tokens": len(subject.tokens),
        "layers": subject.loaded.model.config.get_text_config(decoder=True).num_hidden_layers,
        "threads": torch.get_num_threads(),
        "settings": settings,
    }


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
            raise ValueError(f"{folder} holds another run (it differs in {differs}); choose another folder with --out")
        return folder, record
    if folder.exists() and any(folder.iterdir()) and not any((folder / other).exists() for other in RECORD_FILES):
        raise ValueError(f"{folder} is not empty and holds no run; choose another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the run folder {folder} cannot be made: {error.strerror}; choose one with --out") from None
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


def _commit() -> str | None:
    """The commit of the code that runs, where it runs from a git checkout; "-dirty" where files were changed since."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    here = Path(__file__).parent
    try:
        out = subprocess.run(describe, cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None
