"""`relate`: joins errors with losses, by layer from an ablation and by scheme from a comparison."""

from typing import Any

import numpy as np

from analysis.reading import error_measures as measures
from analysis.reading import summary
from analysis.reading.agreement import EQUAL_BITS, Question
from analysis.reading.error_measures import MEASURES
from analysis.reading.joining import Joined
from analysis.reading.summary import SummaryRow
from harness.records.measurement import Arrays, Measurement
from schemes.errors import UserError

LEAST_POINTS = 5
NO_WORSE = 1.02  # an error up to this ratio is called no worse


def questions(joined: Joined) -> list[Question]:
    """One a scheme and side of each ablation that the errors also know, and one over the schemes of each comparison.

    ValueError where there are no errors, or nothing to relate them to.
    """
    if not joined.errors:
        raise UserError("there is no errors record among these folders; make one with `kvdelta errors`, same windows")
    for folder, record in joined.headers:
        if len(record.settings.windows) < 2:
            raise UserError(
                f"{folder} has 1 window; agreement needs an interval, and an interval at least 2 windows (8 are better)"
            )
        if not record.settings.independent:
            raise UserError(
                f"{folder} scores tokens in two windows (stride {record.settings.stride}), so its windows are no independent "
                f"samples and agreement has no interval; measure it with --stride {record.settings.score_length - 1} or more"
            )
    asked: list[Question] = []
    for _, errors, sums in joined.errors:
        for _, ablation, arrays in joined.sensitivity:
            asked += _over_layers(errors, sums, ablation, arrays)
        for _, run in joined.runs:
            asked += _over_schemes(errors, sums, run)
    if not asked:
        known = ", ".join(label for _, errors, _ in joined.errors for label in errors.labels)
        raise UserError(
            f"nothing to relate: no ablation and no comparison here shares {LEAST_POINTS} layers or schemes with the "
            f"errors record, which has {known}"
        )
    return asked


def _over_layers(errors: Measurement, sums: Arrays, ablation: Measurement, arrays: Arrays) -> list[Question]:
    layers = [layer for layer in ablation.measured_layers if layer in errors.measured_layers]
    if len(layers) < LEAST_POINTS:
        return []
    at_errors = [errors.measured_layers.index(layer) for layer in layers]
    at_ablation = [ablation.measured_layers.index(layer) for layer in layers]
    found = []
    for i, name in enumerate(ablation.settings.contenders):
        if name not in errors.settings.contenders:
            continue
        here = {key: array[:, errors.settings.contenders.index(name)][:, at_errors] for key, array in sums.items()}
        for j, side in enumerate(ablation.settings.measured["sides"]):
            chosen = [m.name for m in MEASURES.values() if side in m.sides and _has(m, sums)]

            def draw(
                windows: np.ndarray, here: Arrays = here, i: int = i, j: int = j, chosen: list[str] = chosen
            ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
                figures = measures.figures(measures.pooled({k: a[windows] for k, a in here.items()}, (0, 2)))
                count = arrays["count"][windows].sum()
                kl = arrays["kl"][windows, i, j][:, at_ablation].sum(axis=0) / count
                delta = (arrays["nll"][windows, i, j][:, at_ablation] - arrays["exact_nll"][windows, None]).sum(axis=0)
                return np.stack([figures[name] for name in chosen]), kl, delta / count

            label = ablation.labels[i]
            what = {"key": "keys", "value": "values", "both": "keys and values"}[side]
            found.append(
                Question(
                    f"{label}: {what} of one layer at a time, {len(layers)} layers",
                    [str(layer) for layer in layers],
                    [name] * len(layers),
                    chosen,
                    len(arrays["count"]),
                    draw,
                )
            )
    return found


def _over_schemes(errors: Measurement, sums: Arrays, run: Any) -> list[Question]:
    names = [name for name in errors.settings.contenders if name in run.settings.contenders and name != "exact"]
    if len(names) < LEAST_POINTS:
        return []
    at_errors = [errors.settings.contenders.index(name) for name in names]
    at_run = [run.settings.contenders.index(name) for name in names]
    here = {key: array[:, at_errors] for key, array in sums.items()}
    nll, kl = (np.array([getattr(window, what) for window in run.windows]) for what in ("nll", "kl"))
    counts = np.array([window.count for window in run.windows], dtype=float)
    chosen = [m.name for m in MEASURES.values() if _has(m, sums)]

    def draw(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        figures = measures.by_scheme({k: a[windows] for k, a in here.items()})
        count = counts[windows].sum()
        delta = (nll[windows][:, at_run] - nll[windows][:, :1]).sum(axis=0) / count
        return np.stack([figures[name] for name in chosen]), kl[windows][:, at_run].sum(axis=0) / count, delta

    bits = [summary.measured_bits(run.contenders[i]) or np.nan for i in at_run]
    labels = [run.contenders[i].label for i in at_run]
    title = f"all layers at once, {len(names)} schemes"
    return [Question(title, labels, names, chosen, len(counts), draw, bits)]


def _has(measure: measures.Measure, sums: Arrays) -> bool:
    return not measure.predicted or "key_square" in sums


def worked_example(joined: Joined) -> str | None:
    """The case against reconstruction error: two schemes of equal bits and equal keys, the values of one rebuilt no
    worse (up to 2 %), and the loss far larger. The pair with the largest ratio of KL; None where there is none."""
    found: list[tuple[float, str]] = []
    for _, errors, sums in joined.errors:
        figures = measures.by_scheme(sums)
        for _, run in joined.runs:
            rows = {row.name: row for row in summary.summarize(run)}
            shared = [name for name in errors.settings.contenders if name in rows and name != "exact"]
            for a, b in [(a, b) for a in shared for b in shared if a != b]:
                i, j = errors.settings.contenders.index(a), errors.settings.contenders.index(b)
                same_keys = _side(a, "key") == _side(b, "key")
                near = abs((rows[a].bits or 0) - (rows[b].bits or 9)) <= EQUAL_BITS
                v, out = figures["value_error"], figures["output_both"]
                if same_keys and near and v[i] <= NO_WORSE * v[j] and rows[a].kl > rows[b].kl:
                    found.append((rows[a].kl / rows[b].kl, _example(rows[a], rows[b], v[[i, j]], out[[i, j]])))
    return max(found)[1] if found else None


def _side(name: str, side: str) -> object:
    try:
        from schemes import parse_scheme

        return parse_scheme(name).sides[side]
    except ValueError:  # a foreign cache
        return name


def _example(a: SummaryRow, b: SummaryRow, value_error: np.ndarray, output: np.ndarray) -> str:
    return (
        f"Reconstruction error picks the wrong scheme: {a.scheme} and {b.scheme} have the same keys and "
        f"{a.bits:.2f} bits; the first rebuilds values to {value_error[0]:.3f}, the second to {value_error[1]:.3f} "
        f"(relative error), but its attention output is {output[0] / output[1]:.1f} times further off ({output[0]:.3f} "
        f"against {output[1]:.3f}), its KL {a.kl / b.kl:.1f} times larger, and it loses {a.delta_nll:+.4f} "
        f"nats a token against {b.delta_nll:+.4f}."
    )
