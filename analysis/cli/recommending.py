"""What `recommend` does: candidates, screen, race, verification, and what to say of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kvdelta.analysis.cli.decoding_race import Race, Scorer
from kvdelta.analysis.cli.recommended import show_recommendation
from kvdelta.analysis.cli.runs import report_failures, worst
from kvdelta.analysis.cli.starting import note
from kvdelta.analysis.measuring.budgets import Candidates, fitting
from kvdelta.analysis.measuring.candidates import (
    BASELINES,
    Candidate,
    all_candidates,
    has_key_bias,
    of_engine,
    of_specs,
)
from kvdelta.analysis.measuring.fitting import halves, least_in_half
from kvdelta.analysis.measuring.screening import predicted_losses
from kvdelta.analysis.reading import recommending, verifying
from kvdelta.analysis.reading.recommending import RaceRow
from kvdelta.analysis.reading.rows import plain
from kvdelta.harness.caches.contenders import SchemeContender
from kvdelta.harness.leaks import check_calibrations
from kvdelta.harness.options import Options
from kvdelta.harness.records.provenance import commit, versions
from kvdelta.harness.records.recommendation import Recommendation, save_recommendation
from kvdelta.harness.stopping import spread_order
from kvdelta.harness.subject.prepared import Subject
from kvdelta.schemes import parse_scheme
from kvdelta.schemes.errors import UserError

SCREENED_ON = 2  # windows
VERIFIED = 3  # of those that the race did not tell apart


def run_race(asked: Race, options: Options, subjects: Sequence[Subject], format: str) -> int:
    """Screen, race, verify, say. UserError where nothing keeps the budget, or the text is too short."""
    folder = Path(options.out) if options.out else _default_folder(asked, options, subjects)
    fresh_windows = options.windows or least_in_half(options, subjects)
    split = [halves(options, subject, asked.windows, fresh_windows) for subject in subjects]
    racing = [
        replace(subject, windows=[first[i] for i in spread_order(len(first))])
        for subject, (first, _) in zip(subjects, split, strict=True)
    ]
    fresh = [replace(subject, windows=second) for subject, (_, second) in zip(subjects, split, strict=True)]
    scorer = Scorer(asked, options, folder, _names(subjects))
    candidates = _within(asked, options, subjects)
    ran, predicted = _screened(asked, candidates.within, racing)
    standings, refused, agreement = scorer.race(ran, racing)
    rows = recommending.race_rows(
        [one.spec for one in ran], [one.bits for one in ran], predicted, standings, refused, scorer.models, agreement
    )
    left = [row for row in rows if not row.lost_to and not row.refused]
    failed = [f"{row.scheme}: {row.refused}" for row in rows if row.refused]
    if not left:
        raise UserError(f"every candidate failed in the race; the first: {failed[0]}")
    best = left[:VERIFIED]
    baseline, why_none = _baseline(asked, racing)
    if baseline and (twin := _same_scheme(baseline, best)):  # as it was called in the race
        baseline = replace(baseline, spec=twin)
    verified, verified_rows, failed_then = scorer.verify({row.scheme: row.bits for row in best}, baseline, fresh)
    chosen = verifying.decide(verified, asked.budget)
    if chosen is None:
        raise UserError(f"what the race left failed on fresh windows: {failed_then[0]}")
    verified_rows = recommending.against(verified_rows, verified, chosen)
    said = verifying.sentences(
        verified, chosen, baseline.spec if baseline else "", asked.budget, asked.measure, asked.step, scorer.models,
        [row.scheme for row in left[VERIFIED:]], [*failed, *failed_then],
    )  # fmt: skip
    if why_none:
        said.append(f"Not compared with uniform KIVI, which cannot be used here: {why_none}.")
    found = Recommendation(
        command=options.command,
        commit=commit(),
        budget=asked.budget,
        by=asked.by,
        models=scorer.models,
        heading=_heading(asked, options, subjects, candidates, len(ran), fresh_windows),
        recommended=verified[chosen].scheme,
        said=said,
        candidates=[vars(one) for one in candidates.within],
        race=plain(rows),
        verified=plain(verified_rows),
    )
    save_recommendation(found, folder)
    show_recommendation(found, format)
    note(f"records: {folder}")
    return worst([report_failures(run) for run in scorer.runs])


def _same_scheme(baseline: Candidate, rows: Sequence[RaceRow]) -> str:
    """What it is called in the rows; empty where it is none of them."""
    identity = parse_scheme(baseline.spec).identity
    return next((row.scheme for row in rows if parse_scheme(row.scheme).identity == identity), "")


def _within(asked: Race, options: Options, subjects: Sequence[Subject]) -> Candidates:
    """Candidates that keep the budget. UserError where there are none, or for one that has seen the text."""
    for subject in subjects:
        check_calibrations([SchemeContender.of(spec) for spec in asked.specs], options, subject)
    if asked.engine:
        candidates = of_engine(asked.engine)
    elif asked.specs:
        candidates = of_specs(asked.specs)
    else:
        candidates = all_candidates(unbiased=any(has_key_bias(subject.loaded.model) for subject in subjects))
    note(f"measuring the bits of {len(candidates)} candidates")
    found = fitting(candidates, asked.budget, subjects, asked.step)
    for spec, why in found.refused.items():
        if asked.engine or asked.specs:
            note(f"{spec} is left out: {why}")
    if not found.within:
        nearest = ", ".join(f"{one.spec} ({one.bits:.2f})" for one in found.larger[:3])
        window = subjects[0].windows[0]
        why = "; ".join([*found.refused.values(), "those that are lossless do not race"][:1])
        raise UserError(
            f"no candidate keeps {asked.budget:g} measured bits from token {window.prefix_length} to {len(window.tokens)}; "
            + (f"the nearest: {nearest}" if nearest else f"none can be used: {why}")
        )
    return found


def _screened(
    asked: Race, within: Sequence[Candidate], subjects: Sequence[Subject]
) -> tuple[list[Candidate], list[float] | None]:
    """Those that race, and what was predicted of each, where more were there than may run."""
    if len(within) <= asked.keep:
        return list(within), None
    few = [replace(subject, windows=subject.windows[:SCREENED_ON]) for subject in subjects]
    losses = predicted_losses([one.spec for one in within], few, note).max(axis=1)
    order = np.argsort(losses, kind="stable")[: asked.keep]
    return [within[i] for i in order], [float(losses[i]) for i in order]


def _baseline(asked: Race, subjects: Sequence[Subject]) -> tuple[Candidate | None, str]:
    """Uniform KIVI: within the budget the one of the widest codes, and of these the largest; else the smallest that there is. Or
    why it cannot be used."""
    found = fitting(of_specs(list(BASELINES)), asked.budget, subjects, asked.step)
    if found.within:
        return max(found.within, key=lambda one: (BASELINES[one.spec], one.bits)), ""
    return (found.larger[0], "") if found.larger else (None, next(iter(found.refused.values())))


def _heading(
    asked: Race, options: Options, subjects: Sequence[Subject], candidates: Candidates, ran: int, fresh: int
) -> list[str]:
    model, prefix = subjects[0].loaded.model, subjects[0].windows[0].prefix_length
    lines = [subject.loaded.name for subject in subjects]
    lines.append(
        f"{subjects[0].text.name}: prefix {prefix} + suffix {options.score_length} tokens, decoded in steps of {asked.step}, "
        f"{str(model.dtype).removeprefix('torch.')} on {model.device.type}"
    )
    lines.append(
        f"{len(candidates.within)} candidates of {asked.budget:g} bits or less, each the largest of its family; {ran} raced on up to "
        f"{asked.windows} windows of the first half of the text; fresh: {fresh} windows of the second"
    )
    if ran < len(candidates.within):
        lines.append(
            f"{len(candidates.within) - ran} did not race: more loss was predicted of them by a backward pass, on {SCREENED_ON} windows; "
            "--keep lets more run"
        )
    return lines


def _names(subjects: Sequence[Subject]) -> list[str]:
    """Of models, short, and numbered where they are called alike."""
    short = [subject.loaded.name.partition(",")[0].rpartition("/")[2] for subject in subjects]
    return [f"{name} ({i})" if short.count(name) > 1 else name for i, name in enumerate(short, 1)]


def _default_folder(asked: Race, options: Options, subjects: Sequence[Subject]) -> Path:
    """Named by what is asked for and by the code, so that the same command goes on where it stopped."""
    settings = asked, replace(options, command="", wait=False), [subject.loaded.source for subject in subjects]
    digest = hashlib.sha256(repr((settings, versions(), commit())).encode()).hexdigest()
    return Path("runs") / f"recommend-{digest[:12]}"
