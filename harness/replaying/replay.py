"""Replay: the exact model writes after each prompt, and every scheme is fed what it wrote, so that all of it passes through
its cache. Two runs over these windows, token by token and in one forward, and a record of what is kept by position."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvdelta.harness.batching import batch_size, in_batches
from kvdelta.harness.caches.contenders import Contender, SchemeContender, contenders_of
from kvdelta.harness.comparison import DEFAULT_SCHEMES, compare
from kvdelta.harness.options import Options
from kvdelta.harness.records.hashes import damaged_files
from kvdelta.harness.records.provenance import open_folder
from kvdelta.harness.records.replay import (
    ONE_FORWARD,
    REPLAY_FILE,
    SAMPLED_FILE,
    STEPS,
    Replay,
    ReplayRow,
    Sampling,
    load_log_probabilities,
    load_replay,
    load_texts,
    save_replay,
    save_texts,
)  # fmt: skip
from kvdelta.harness.records.run import Run
from kvdelta.harness.records.run_folder import load_whole
from kvdelta.harness.records.tokens import load_tokens
from kvdelta.harness.records.writer import holding
from kvdelta.harness.replaying import sums
from kvdelta.harness.replaying.free_run import run_freely
from kvdelta.harness.replaying.options import ReplayOptions
from kvdelta.harness.replaying.prompts import Prompts, load_prompts
from kvdelta.harness.replaying.sampling import picker, sampling_of, written
from kvdelta.harness.runner import Progress
from kvdelta.harness.scoring import losses
from kvdelta.harness.settings import header_of, settings_of
from kvdelta.harness.subject.model import LoadedModel
from kvdelta.harness.subject.prepared import Subject, bos_of, load_named
from kvdelta.harness.subject.probing import continues
from kvdelta.harness.subject.text import Text, token_sha256
from kvdelta.harness.subject.windows import Batch, Window
from kvdelta.schemes.errors import UserError


def replay(
    schemes: Sequence[str | Contender] = DEFAULT_SCHEMES,
    options: Options | None = None,
    how: ReplayOptions | None = None,
    *,
    loaded: LoadedModel | None = None,
    progress: Callable[[int, int], Progress] = lambda prompts, contenders: Progress(),
    on_note: Callable[[str], None] = lambda text: None,
) -> tuple[Replay, Path]:
    """Score schemes on the exact model's own text; the record and its folder.

    options: model, device, dtype, batch, seed and folder; text, windows and protocol follow from `how`. loaded: a model that
    there is already. progress: of a run over so many prompts and contenders. A folder with the same settings is continued,
    a complete one is read. UserError: bad input, and as `compare`.
    """
    how = how or ReplayOptions()
    options = how.windows(options or Options())
    contenders = contenders_of(schemes, on_note)
    loaded = loaded or load_named(options)
    _check(how, loaded, contenders)
    bos = bos_of(options, loaded)
    prompts = load_prompts(how.prompts, how.prompt_count, how.prompt_length, loaded.tokenizer, bos)
    given = _subject(loaded, prompts, prompts.tokens, how, bos)
    sampling = sampling_of(how, loaded.model)
    measured = {"sampling": sampling.model_dump(), "free_run": how.free_run}
    taken = _taken(how, options, given, sampling) if how.sampled else None
    if taken is not None:
        measured["sampled"] = token_sha256(torch.from_numpy(taken[0]))
    if prompts.cut:
        on_note(
            f"{prompts.cut} of {how.prompt_count} chats are longer than {how.prompt_length} tokens: of these the first token and the last "
            f"{how.prompt_length - 1} are kept, so that a system turn may be gone; --prompt-length keeps more"
        )
    settings = settings_of(options, given, [contender.name for contender in contenders], measured)
    with ExitStack() as held:
        folder, record = open_folder(
            options.out, REPLAY_FILE, settings, load_replay, holding(held, options.wait, on_note)
        )
        if record is None:
            header = header_of(options, given, settings) | {
                "sampling": sampling,
                "skipped": prompts.skipped,
                "cut": prompts.cut,
            }
            grid = sums.edges_of(how.tokens, sums.GRID)
            record = Replay(**header, edges=sums.edges_of(how.tokens), grid=grid)
            save_replay(record, folder)
        if record.status == "complete" and not options.retry_failed:
            if not (wrong := _damage(folder, record)):
                on_note(f"{folder} holds this replay already, complete; its record is printed again")
                return record, folder
            on_note(f"{folder} is damaged, and made whole again: {', '.join(wrong)}")
        tokens = _sampled(record, folder, given, options, how, taken, on_note)
        subject = _subject(loaded, prompts, tokens, how, bos)
        runs = {}
        for protocol in (STEPS, ONE_FORWARD) if continues(loaded.model) else (STEPS,):
            step = how.step if protocol == STEPS else None
            on_note(f"{protocol}:" if step is None else f"{protocol}, {step} token{'s' * (step > 1)} a forward:")
            asked = replace(options, protocol=protocol, step=step, out=str(folder / protocol))
            runs[protocol], _ = compare(
                contenders, asked, subject=subject, progress=progress(how.prompt_count, len(contenders))
            )
        if ONE_FORWARD not in runs:
            on_note(
                "this model goes on from its state one token at a time only: the same text in one forward is left out"
            )
        record.rows = _rows(folder, runs, record)
        for row, contender in zip(record.rows, contenders, strict=True):
            row.note = _kept_exact(contender, how)
        if how.free_run:
            whole = [one for one, run in zip(contenders, runs[STEPS].contenders, strict=True) if not run.error]
            run_freely(folder, record, whole, subject, runs[STEPS].batch, on_note, options.time_limit)
        record.status = "complete"
        save_replay(record, folder)
        return record, folder


def _check(how: ReplayOptions, loaded: LoadedModel, contenders: Sequence[Contender]) -> None:
    positions = getattr(loaded.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and how.length > positions:
        raise UserError(
            f"prompts of {how.prompt_length} tokens and {how.tokens} after them, with the first, take {how.length} "
            f"positions, the model has {positions}; use a smaller --prompt-length or --tokens"
        )
    for contender in contenders:
        contender.check(loaded.model, how.prompt_length)


def _damage(folder: Path, record: Replay) -> list[str]:
    """What is not as it was written, of the texts and of the runs that the sums are from."""
    runs = [folder / name for name in (STEPS, ONE_FORWARD) if os.path.isdir(folder / name)]
    return [
        *damaged_files(folder, record.files),
        *(f"{run.name}, {one}" for run in runs for one in load_whole(run).lost),
    ]


def _kept_exact(contender: Contender, how: ReplayOptions) -> str:
    """Says so of a scheme that quantizes none of the written tokens, since the newest stay exact: its figures are the
    prompt's. Empty of every other."""
    if not isinstance(contender, SchemeContender) or contender.lossless:
        return ""
    rules = [rule for one in contender.scheme.variants for rule in one.sides.values()]
    reach = max(rule.sink_tokens + rule.packed_tokens(how.prompt_length + how.tokens) for rule in rules)
    return (
        "" if reach > how.prompt_length else "quantized the prompt alone: what was written stayed within its exact tail"
    )


def _subject(
    loaded: LoadedModel, prompts: Prompts, tokens: torch.Tensor, how: ReplayOptions, bos: int | None
) -> Subject:
    """Each row of tokens is a window, whose prefix is the prompt."""
    length = tokens.shape[1]
    windows = [Window(i, i * length, row, how.prompt_length) for i, row in enumerate(tokens)]
    name = f"own text after prompts of {prompts.name}"
    return Subject(loaded, Text(name, "", prompts.source), tokens.flatten(), windows, bos)


def _taken(
    how: ReplayOptions, options: Options, given: Subject, sampling: Sampling
) -> tuple[np.ndarray, np.ndarray | None]:
    """Tokens and log-probabilities of another replay's text. UserError where it is not what the exact model would be asked for here."""
    folder = Path(str(how.sampled))
    folder = folder.parent if folder.name == SAMPLED_FILE else folder
    other = load_replay(folder)
    mine = settings_of(options, given, [])
    theirs = other.settings
    differs = [name for name in ("model", "dtype", "seed") if getattr(mine, name) != getattr(theirs, name)]
    differs += ["sampling"] * (sampling != other.sampling)
    if (how.prompt_length, how.tokens) != (other.prompt_length, other.tokens):
        differs.append("lengths")
    tokens = load_texts(other, folder, SAMPLED_FILE)
    prompts = torch.stack([window.prefix[0] for window in given.windows]).numpy()
    if not differs and not np.array_equal(tokens[:, : how.prompt_length], prompts):
        differs.append("prompts")
    if differs:
        raise UserError(
            f"the text in {folder} was sampled with other {', '.join(differs)}; give the same, or sample again without --sampled"
        )
    return tokens, load_log_probabilities(other, folder)


def _sampled(
    record: Replay,
    folder: Path,
    given: Subject,
    options: Options,
    how: ReplayOptions,
    taken: tuple[np.ndarray, np.ndarray | None] | None,
    on_note: Any,
) -> torch.Tensor:
    """Prompts and what the exact model writes after them, made once, or again where the file is not as it was written."""
    try:
        return torch.from_numpy(load_texts(record, folder, SAMPLED_FILE))
    except UserError:
        if taken is not None:
            on_note(f"the text is that of {how.sampled}")
            save_texts(record, folder, SAMPLED_FILE, *taken)
            return torch.from_numpy(taken[0])
        model, count = given.loaded.model, how.tokens + 1
        found: list[torch.Tensor] = []
        kept: list[torch.Tensor] = []

        def work(batch: Batch) -> None:
            pick = picker(record.sampling, options.seed, [window.index for window in batch.windows])
            each: list[torch.Tensor] = []

            def pick_and_keep(logits: torch.Tensor, step: int) -> torch.Tensor:
                token = pick(logits, step)
                each.append(-losses(logits, token.to(logits.device)).cpu())
                return token

            found.append(torch.cat([batch.prefix, written(model, batch, count, pick_and_keep)], dim=1))
            kept.append(torch.stack(each, dim=1))

        on_note(f"the exact model writes {count} tokens after each of {how.prompt_count} prompts")
        size = batch_size(options.batch, model, how.length, 2, step=1)  # it needs the logits of one token
        in_batches(given.windows, size, work, lambda windows, size: None)
        save_texts(record, folder, SAMPLED_FILE, torch.cat(found).numpy(), torch.cat(kept).numpy())
        return torch.from_numpy(load_texts(record, folder, SAMPLED_FILE))


def _rows(folder: Path, runs: dict[str, Run], record: Replay) -> list[ReplayRow]:
    arrays = {
        protocol: [load_tokens(folder / protocol, index) for index in record.settings.windows] for protocol in runs
    }

    def scores(protocol: str, what: str, row: int) -> np.ndarray:
        return np.stack([one[what][row] for one in arrays[protocol]]).astype(np.float64)

    return [
        row_of(scores, row, contender, record, ONE_FORWARD in runs)
        for row, contender in enumerate(runs[STEPS].contenders)
    ]


def row_of(
    scores: Callable[[str, str, int], np.ndarray], row: int, contender: Any, record: Replay, both: bool
) -> ReplayRow:
    """scores(protocol, what, row): of every token [prompts, tokens]."""
    kl, tvd = scores(STEPS, "kl", row), scores(STEPS, "tvd", row)
    agree, places = sums.agreement(tvd), np.array(record.grid) - 1
    return ReplayRow(
        label=contender.label,
        name=contender.name,
        kl=sums.by_bin(kl, record.edges),
        tvd=sums.by_bin(tvd, record.edges),
        top1=np.array(sums.by_bin(scores(STEPS, "top1", row), record.edges)).astype(int).tolist(),
        one_forward_kl=sums.by_bin(scores(ONE_FORWARD, "kl", row), record.edges) if both else None,
        slope=sums.slopes(kl),
        agree=agree.mean(axis=0)[places].tolist(),
        agree_se=sums.standard_errors(agree)[places].tolist(),
        departs=sums.departure(agree.mean(axis=0)),
        departs_interval=sums.departure_interval(agree),
    )
