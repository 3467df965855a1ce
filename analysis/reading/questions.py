"""What `relate` asks: do the error measures rank the damage, by layer of an ablation, by scheme of a comparison?"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kvdelta.analysis.reading import error_measures as measures
from kvdelta.analysis.reading import summary
from kvdelta.analysis.reading.ablations import UNREAD
from kvdelta.analysis.reading.error_measures import MEASURES
from kvdelta.analysis.reading.joined import Joined
from kvdelta.analysis.reading.rows import left_out
from kvdelta.harness.records.measurement import Arrays, Measurement
from kvdelta.harness.records.run import Run
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.references import identity_of

LEAST_POINTS = 5
EQUAL_BITS = 0.02  # measured bits a number; schemes closer than this are compared as equals


@dataclass(frozen=True, eq=False)
class Question:
    """Error measures against the damage done, point by point; the points are layers or schemes.

    draw(windows) gives measures [measure, points], KL [points] and ΔNLL [points], all in nats a token where they are
    losses, over these windows (positions, with repeats): so that a bootstrap can draw windows and points.
    """

    title: str
    points: list[str]  # layer numbers, or labels of schemes
    names: list[str]  # canonical scheme of each point
    measures: list[str]
    windows: int
    draw: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
    bits: list[float] | None = None  # of each point, where the points are schemes
    left_out: str = ""  # which points are not among them, since they cannot be believed


def questions_of(joined: Joined) -> list[Question]:
    """One a scheme and side of each ablation that the errors also know, and one over the schemes of each comparison.

    ValueError where there are no errors, or nothing to relate them to.
    """
    if not joined.errors:
        raise UserError("there is no errors record among these folders; make one with `kvdelta errors`, same windows")
    for folder, record in joined.headers:
        if len(record.scored) < 2:
            raise UserError(
                f"{folder} has 1 window; agreement needs an interval, and an interval at least 2 windows (8 are better)"
            )
        if not record.settings.independent:
            raise UserError(
                f"{folder} scores tokens in two windows (stride {record.settings.stride}), so its windows are no independent "
                f"samples and agreement has no interval; measure it with --stride {record.settings.score_length - 1} or more"
            )
    questions: list[Question] = []
    for _, errors, sums in joined.errors:
        for _, ablation, arrays in joined.sensitivity:
            questions += _over_layers(errors, sums, ablation, arrays)
        for _, run in joined.runs:
            questions += _over_schemes(errors, sums, run)
    enough = [question for question in questions if len(question.points) >= LEAST_POINTS]
    if not enough:
        known = ", ".join(label for _, errors, _ in joined.errors for label in errors.labels)
        missing = "".join(f"; {question.left_out}" for question in questions if question.left_out)
        raise UserError(
            f"nothing to relate: no ablation and no comparison here shares {LEAST_POINTS} layers or schemes with the "
            f"errors record, which has {known}{missing}"
        )
    return enough


def _over_layers(errors: Measurement, sums: Arrays, ablation: Measurement, arrays: Arrays) -> list[Question]:
    shared = [layer for layer in ablation.measured_layers if layer in errors.measured_layers]
    read = np.asarray((arrays["kl"] > 0).any(axis=0))  # [schemes, sides, layers]
    questions = []
    for i, name in enumerate(ablation.settings.contenders):
        if name not in errors.settings.contenders:
            continue
        of_scheme = {key: array[:, errors.settings.contenders.index(name)] for key, array in sums.items()}
        for j, side in enumerate(ablation.settings.measured["sides"]):
            chosen = [m.name for m in MEASURES.values() if side in m.sides and _has(m, sums)]
            layers = [layer for layer in shared if read[i, j, ablation.measured_layers.index(layer)]]
            at = [ablation.measured_layers.index(layer) for layer in layers]
            at_errors = [errors.measured_layers.index(layer) for layer in layers]
            here = measures.pooled({key: array[:, at_errors] for key, array in of_scheme.items()}, (2,))

            def draw(
                windows: np.ndarray,
                here: Arrays = here,
                i: int = i,
                j: int = j,
                at: list[int] = at,
                chosen: list[str] = chosen,
            ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
                values = measures.values_of(measures.pooled({k: a[windows] for k, a in here.items()}, (0,)))
                count = arrays["count"][windows].sum()
                kl = arrays["kl"][windows, i, j][:, at].sum(axis=0) / count
                delta = (arrays["nll"][windows, i, j][:, at] - arrays["exact_nll"][windows, None]).sum(axis=0)
                return np.stack([values[name] for name in chosen]), kl, delta / count

            label = ablation.labels[i]
            what = {"key": "keys", "value": "values", "both": "keys and values"}[side]
            questions.append(
                Question(
                    f"{label}: {what} of one layer at a time, {len(layers)} layers",
                    [str(layer) for layer in layers],
                    [name] * len(layers),
                    chosen,
                    len(arrays["count"]),
                    draw,
                    left_out=left_out({f"layer {layer}": UNREAD for layer in shared if layer not in layers}),
                )
            )
    return questions


def _over_schemes(errors: Measurement, sums: Arrays, run: Run) -> list[Question]:
    rows = {identity_of(row.name): row for row in summary.summarize(run)}
    rows = {name: row for name, row in rows.items() if name in errors.settings.contenders}
    names = [name for name in errors.settings.contenders if name in rows and name != "exact" and not rows[name].refused]
    at_errors = [errors.settings.contenders.index(name) for name in names]
    at_run = [run.settings.contenders.index(name) for name in names]
    here = measures.pooled({key: array[:, at_errors] for key, array in sums.items()}, (2, 3))
    windows = sorted(run.windows, key=lambda window: window.index)  # as the errors have them
    nll, kl = (np.array([getattr(window, what) for window in windows]) for what in ("nll", "kl"))
    counts = np.array([window.count for window in windows], dtype=float)
    chosen = [m.name for m in MEASURES.values() if _has(m, sums)]

    def draw(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values = measures.values_of(measures.pooled({k: a[windows] for k, a in here.items()}, (0,)))
        count = counts[windows].sum()
        delta = (nll[windows][:, at_run] - nll[windows][:, :1]).sum(axis=0) / count
        return np.stack([values[name] for name in chosen]), kl[windows][:, at_run].sum(axis=0) / count, delta

    bits = [rows[name].bits or np.nan for name in names]
    labels = [rows[name].scheme for name in names]
    refused = left_out({row.scheme: row.refused for row in rows.values() if row.refused})
    title = f"all layers at once, {len(names)} schemes"
    return [Question(title, labels, [rows[name].name for name in names], chosen, len(counts), draw, bits, refused)]


def _has(measure: measures.Measure, sums: Arrays) -> bool:
    return not measure.predicted or "key_square" in sums
