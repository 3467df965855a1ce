"""Set up a comparison: model, text, windows, contenders and run folder; then hand over to the runner."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness import records
from harness.contenders import Contender, SchemeContender
from harness.model import LoadedModel, load_model, pick_device, pick_dtype
from harness.options import Options
from harness.records import Run, Settings
from harness.runner import Progress, Runner
from harness.text import Text, adds_bos, load_text, token_sha256, tokenize
from harness.windows import Window, check_positions, cut_windows

DEFAULT_SCHEMES = ("exact", "int8", "int4", "hqq8", "hqq4", "kivi4", "kivi2")
VERSIONED = ("torch", "transformers", "hqq", "kvdelta")  # a change of these may change the numbers


@dataclass(frozen=True, eq=False)
class Subject:
    """A loaded model, its text as tokens, and the windows cut from it."""

    loaded: LoadedModel
    text: Text
    tokens: torch.Tensor
    windows: list[Window]
    bos_token_id: int | None


def prepare(options: Options) -> Subject:
    """Load what `options` name and cut the windows. ValueError for whatever cannot be had or used."""
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    text = load_text(options.text)
    loaded = load_model(options.model, revision=options.revision, device=device, dtype=dtype)
    positions = getattr(loaded.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    check_positions(options.window_length, positions)
    tokens = tokenize(text, loaded.tokenizer)
    bos = loaded.tokenizer.bos_token_id
    if options.bos == "always" and bos is None:
        raise ValueError(f"bos=always, but the tokenizer of {loaded.name} has no BOS token; use --bos never")
    wanted = options.bos == "always" or (options.bos == "auto" and adds_bos(loaded.tokenizer))
    bos_token_id = int(bos) if wanted else None  # type: ignore[arg-type]
    windows = cut_windows(
        tokens,
        window_length=options.window_length,
        score_length=options.score_length,
        stride=options.stride,
        windows=options.windows,
        bos_token_id=bos_token_id,
    )
    return Subject(loaded, text, tokens, windows, bos_token_id)


def contenders_of(schemes: Sequence[str | Contender], note: Any = lambda text: None) -> list[Contender]:
    """Contenders of specs, or as they are, exact first; equal canonical specs are merged with a notice."""
    found: list[Contender] = []
    for contender in [SchemeContender.of(scheme) if isinstance(scheme, str) else scheme for scheme in schemes]:
        twin = next((other for other in found if other.name == contender.name), None)
        if twin:
            note(f"{contender.label} is the same scheme as {twin.label}: scored once")
        else:
            found.append(contender)
    baseline: list[Contender] = [c for c in found if c.name == "exact"] or [SchemeContender.of("exact")]
    return [*baseline, *(c for c in found if c.name != "exact")]


def compare(
    schemes: Sequence[str | Contender] = DEFAULT_SCHEMES,
    options: Options | None = None,
    *,
    subject: Subject | None = None,
    progress: Progress | None = None,
) -> tuple[Run, Path]:
    """Score schemes on the same windows; the record and its folder.

    schemes: specs such as "kivi:bits=2", contenders, or both; exact is added where it is not among them. subject: what is already loaded.
    A folder with the finished windows of the same settings is continued, a complete one is read. ValueError: bad
    input, an output folder that holds another run, NaN or infinite logits.
    """
    options = options or Options()
    progress = progress or Progress()
    contenders = contenders_of(schemes, progress.on_note)
    subject = subject or prepare(options)
    model = subject.loaded.model
    for contender in contenders:
        contender.check(model.config, options.window_length - options.score_length)
    settings = settings_of(options, subject, contenders)
    folder = Path(options.out) if options.out else Path("runs") / run_name(settings)
    run = open_run(folder, settings, options, subject)
    if run.status == "complete":
        progress.on_note(f"{folder} holds this run already, complete; its record is printed again")
        return run, folder
    if run.windows:
        progress.on_note(f"continuing {folder}: {len(run.windows)} of {len(subject.windows)} windows are there")
    runner = Runner(model, subject.loaded.name, contenders, run, folder, progress)
    run = runner.go(subject.windows)
    timings = {"host": _host(), "seconds": runner.timings}
    records.write(folder / "timings.json", (json.dumps(timings, indent=1) + "\n").encode())
    return run, folder


def settings_of(options: Options, subject: Subject, contenders: Sequence[Contender]) -> Settings:
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
        contenders=[contender.name for contender in contenders],
        versions={name: importlib.metadata.version(name) for name in VERSIONED},
    )


def run_name(settings: Settings) -> str:
    """The default folder: a hash of the settings, so that the same command finds its run again."""
    return "compare-" + hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:12]


def open_run(folder: Path, settings: Settings, options: Options, subject: Subject) -> Run:
    """A new run in `folder`, or the one with the same settings that is there."""
    if (folder / "run.json").exists():
        run = records.load(folder)
        if run.settings != settings:
            old, new = run.settings.model_dump(), settings.model_dump()
            differs = ", ".join(name for name in new if old[name] != new[name])
            raise ValueError(f"{folder} holds another run (it differs in {differs}); choose another folder with --out")
        return run
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no run; choose another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the run folder {folder} cannot be made: {error.strerror}; choose one with --out") from None
    return Run(
        kvdelta=importlib.metadata.version("kvdelta"),
        command=options.command,
        commit=_commit(),
        model_name=subject.loaded.name,
        text_name=subject.text.name,
        text_source=subject.text.source,
        text_tokens=len(subject.tokens),
        layers=subject.loaded.model.config.get_text_config(decoder=True).num_hidden_layers,
        threads=torch.get_num_threads(),
        settings=settings,
        contenders=[],
    )


def _host() -> dict[str, Any]:
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
