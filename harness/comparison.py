"""Set up a comparison: model, text, windows, contenders and run folder; then hand over to the runner."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from harness import records
from harness.contenders import Contender, SchemeContender, contender_of
from harness.model import LoadedModel, load_model, pick_device, pick_dtype
from harness.options import Options
from harness.provenance import header_of, host, open_folder, settings_of
from harness.records import Run
from harness.runner import Progress, Runner
from harness.text import Text, adds_bos, load_text, token_sha256, tokenize
from harness.windows import Window, check_positions, cut_windows

DEFAULT_SCHEMES = ("exact", "int8", "int4", "hqq8", "hqq4", "kivi4", "kivi2")

ContenderT = TypeVar("ContenderT", bound=Contender)


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
    given: list[Contender] = [contender_of(one) if isinstance(one, str) else one for one in schemes]
    found = merged(given, note)
    baseline: list[Contender] = [c for c in found if c.name == "exact"] or [SchemeContender.of("exact")]
    return [*baseline, *(c for c in found if c.name != "exact")]


def merged(contenders: Sequence[ContenderT], note: Callable[[str], None]) -> list[ContenderT]:
    """Without those whose canonical name came before; each says so."""
    found: list[ContenderT] = []
    for contender in contenders:
        twin = next((other for other in found if other.name == contender.name), None)
        if twin:
            note(f"{contender.label} is the same scheme as {twin.label}: taken once")
        else:
            found.append(contender)
    return found


def check_text(contender: Contender, options: Options, subject: Subject) -> None:
    """ValueError where a contender was calibrated on the text that it would be scored on, unless that is asked for."""
    if options.same_text:
        return
    mine = {subject.text.source.get("sha256") or None, token_sha256(subject.tokens)}
    for text in contender.calibrated_on:
        if mine & {text["sha256"], text["token_sha256"]}:
            raise ValueError(
                f"scheme {contender.label} was calibrated on this text ({text['name']}), so its score would flatter it; "
                "score it on another text, or say --same-text"
            )


def compare(
    schemes: Sequence[str | Contender] = DEFAULT_SCHEMES,
    options: Options | None = None,
    *,
    subject: Subject | None = None,
    progress: Progress | None = None,
) -> tuple[Run, Path]:
    """Score schemes on the same windows; the record and its folder.

    schemes: specs such as "kivi:bits=2", contenders, or both; exact is added where it is not among them. subject: what is already loaded.
    A foreign cache that raises, or gives NaN or infinite logits, fails its own row: the record says why. A folder with the finished windows of the same settings is continued, a complete one is read. ValueError: bad
    input, an output folder that holds another run, NaN or infinite logits.
    """
    options = options or Options()
    progress = progress or Progress()
    contenders = contenders_of(schemes, progress.on_note)
    subject = subject or prepare(options)
    model = subject.loaded.model
    for contender in contenders:
        contender.check(model, options.window_length - options.score_length)
        check_text(contender, options, subject)
    settings = settings_of(options, subject, [contender.name for contender in contenders])
    folder, run = open_folder(options.out, records.RUN_FILE, settings, records.load)
    run = run or Run(**header_of(options, subject, settings), contenders=[])
    if run.status == "complete":
        progress.on_note(f"{folder} holds this run already, complete; its record is printed again")
        return run, folder
    if run.windows:
        progress.on_note(f"continuing {folder}: {len(run.windows)} of {len(subject.windows)} windows are there")
    runner = Runner(model, subject.loaded.name, contenders, run, folder, progress)
    run = runner.go(subject.windows)
    timings = {"host": host(), "seconds": runner.timings}
    records.write(folder / "timings.json", (json.dumps(timings, indent=1) + "\n").encode())
    return run, folder
