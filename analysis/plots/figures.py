"""Which figures belong to which record; every one is drawn from what is saved."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvdelta.analysis import plots
from kvdelta.analysis.plots.style import scheme_label
from kvdelta.analysis.plots.together import draw_together
from kvdelta.analysis.reading import costs, replay_tables, replays, summary
from kvdelta.analysis.reading.error_measures import MEASURES
from kvdelta.analysis.reading.joined import gather
from kvdelta.analysis.reading.rows import left_out
from kvdelta.analysis.reading.summary import SummaryRow
from kvdelta.harness.records.bench import load_bench
from kvdelta.harness.records.measurement import Arrays, Measurement
from kvdelta.harness.records.replay import has_replay, load_replay, load_steps
from kvdelta.harness.records.run import Header, Run

if TYPE_CHECKING:
    from kvdelta.analysis.reading.agreement import AgreementRow
    from kvdelta.analysis.reading.carry_rows import OrderRow
    from kvdelta.analysis.reading.depths import DepthRow
    from kvdelta.analysis.reading.questions import Question

Named = Iterator[tuple[str, plots.Figure]]


def draw(folder: Path, style: str | None = None, on_note: Callable[[str], None] = lambda text: None) -> list[Path]:
    """All figures of the records in a folder, as SVG and PNG in its `figures`; ValueError where it holds no record.

    on_note is told what a figure leaves out, since it cannot be believed.
    """
    if has_replay(folder):
        return draw_replay(folder, style)
    joined = gather([folder])
    paths: list[Path] = []
    with plots.styled(style):
        for _, run in joined.runs:
            rows = summary.summarize(run)
            if missing := left_out({row.scheme: row.refused for row in rows if row.refused}):
                on_note(f"{folder}: {missing}")
            if any(map(plots.has_point, rows)):
                paths += _saved(folder, _of_run(run, rows))
            else:
                on_note(
                    f"{folder}: no figure of losses, since no row has both a score that can be believed and its bits"
                )
        for figures_of, measured in (
            (_of_outliers, joined.outliers),
            (_of_errors, joined.errors),
            (_of_sensitivity, joined.sensitivity),
        ):
            for _, record, arrays in measured:
                paths += _saved(folder, figures_of(record, arrays))
    return paths


def draw_bench(folder: Path, style: str | None = None) -> list[Path]:
    """Cost by cache and, of several contexts, by context; of a comparison's shares there is no figure."""
    bench = load_bench(folder)
    rows = (
        costs.cost_rows(bench) if bench.kind == "schemes" else costs.step_rows(bench) if bench.kind == "decode" else []
    )
    title = "\n".join(costs.heading(bench))
    paths: list[Path] = []
    with plots.styled(style):
        if bench.kind == "schemes":
            paths += plots.save(
                plots.cost_by_scheme(costs.cost_rows(bench), title), folder / "figures", "cost-by-scheme"
            )
        if rows and len(bench.contexts) > 1:
            paths += plots.save(
                plots.cost_by_context(rows, bench.contenders, title), folder / "figures", "cost-by-context"
            )
    return paths


def draw_replay(folder: Path, style: str | None = None) -> list[Path]:
    replay, steps = load_replay(folder), load_steps(folder)
    title = "\n".join(replay_tables.heading(replay, steps)[:3])
    with plots.styled(style):
        return plots.save(
            plots.replay_figure(replay, replays.bin_rows(replay, steps), title), folder / "figures", "replay"
        )


def draw_carried(
    order: "Sequence[OrderRow]",
    depths: "Sequence[Sequence[DepthRow]]",
    loss: str,
    where: str,
    folder: Path,
    style: str | None = None,
) -> list[Path]:
    """The loss of every scheme by cell; and KL by depth, where cells differ in that. loss: what it is; where: what all cells are of."""
    with plots.styled(style):
        title = "\n".join(filter(None, ["Loss by cell, 95 % intervals over windows", where]))
        paths = plots.save(plots.loss_by_cell(order, loss, title), folder, "loss-by-cell")
        if depths:
            title = "\n".join(filter(None, ["KL by depth: the same scored tokens, 95 % intervals over windows", where]))
            paths += plots.save(plots.kl_by_depth(depths, title), folder, "kl-by-depth")
    return paths


def draw_relations(
    questions: "Sequence[Question]",
    rankings: "Mapping[str, list[AgreementRow]]",
    where: str,
    folder: Path,
    style: str | None = None,
) -> Iterator[Path]:
    """Every measure against KL and against ΔNLL, one figure a question and target, each as it is drawn: they take
    seconds. where: model, text and windows."""
    relations = []
    for i, question in enumerate(questions):
        x, kl, delta = question.draw(np.arange(question.windows))
        labels = question.points if question.bits is None else [scheme_label(name) for name in question.names]
        ranked = {row.measure: row for row in rankings[question.title]}
        for target, y, name, correlation in (
            ("KL (nats a token)", kl, "kl", _with_kl),
            ("ΔNLL (nats a token)", delta, "delta", _with_delta),
        ):
            series = [
                plots.Series(MEASURES[measure].label, x[m], y, labels, question.names, correlation(ranked[measure]))
                for m, measure in enumerate(question.measures)
            ]
            title = "\n".join(filter(None, [question.title, where, question.left_out]))
            relations.append(_Relation(series, target, title, folder, f"relate-{i + 1}-{name}", style))
    return draw_together(_draw_relation, relations)


@dataclass(frozen=True, eq=False)
class _Relation:
    series: list[plots.Series]
    target: str
    title: str
    folder: Path
    name: str
    style: str | None


def _draw_relation(one: _Relation) -> list[Path]:
    with plots.styled(one.style):
        return plots.save(plots.measure_scatter(one.series, one.target, one.title), one.folder, one.name)


def draw_allocation(
    bits: dict[str, dict[int, float]], title: str, folder: Path, style: str | None = None
) -> list[Path]:
    with plots.styled(style):
        return plots.save(plots.bits_by_layer(bits, title), folder, "allocation")


def subject_line(record: Header) -> str:
    """What a figure is of."""
    count = len(record.scored)
    return f"{record.model_name}; {record.text_name}, {count} window{'s' * (count != 1)}"


def _with_kl(row: "AgreementRow") -> str:
    return f"ρ {row.spearman_kl:.2f} [{row.spearman_kl_low:.2f}, {row.spearman_kl_high:.2f}]"


def _with_delta(row: "AgreementRow") -> str:
    return f"ρ {row.spearman_delta:.2f} [{row.spearman_delta_low:.2f}, {row.spearman_delta_high:.2f}]"


def _saved(folder: Path, figures: Named) -> list[Path]:
    return [path for name, figure in figures for path in plots.save(figure, folder / "figures", name)]


def _of_run(run: Run, rows: Sequence[SummaryRow]) -> Named:
    title = f"Loss against size of the cache, 95 % intervals over windows\n{subject_line(run)}"
    yield "bits-against-loss", plots.bits_against_loss(rows, title)


def _of_outliers(record: Measurement, arrays: Arrays) -> Named:
    for picture, (layer, head) in enumerate(arrays["pictured"][0]):
        place = f"layer-{layer}-head-{head}"
        yield f"heat-map-{place}", plots.heat_maps(record, arrays, picture)
        yield f"surface-{place}", plots.surfaces(record, arrays, picture)
        yield f"channels-{place}", plots.channel_profile(record, arrays, picture)
    yield "ratio-by-layer", plots.ratio_by_layer(record, arrays)
    yield "token-norms", plots.token_norms(record, arrays)
    if len(record.settings.windows) > 1:
        yield "persistence", plots.persistence_by_layer(record, arrays)


def _of_errors(record: Measurement, arrays: Arrays) -> Named:
    yield "errors-by-layer", plots.errors_by_layer(record, arrays)


def _of_sensitivity(record: Measurement, arrays: Arrays) -> Named:
    yield "sensitivity-by-layer", plots.sensitivity_by_layer(record, arrays)
