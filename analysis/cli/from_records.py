"""Commands that read records alone, without a model: relate and plot. Light: imports what a command needs in it."""

from pathlib import Path
from typing import Annotated

import typer

from kvdelta.analysis.cli.flags import FiguresOut, Format, Style, check_style
from kvdelta.analysis.cli.output import show_rows
from kvdelta.analysis.cli.starting import note, say

from_records = typer.Typer()

Runs = Annotated[list[Path], typer.Argument(metavar="RUN…", help="run folders")]


@from_records.command()
def relate(
    runs: Runs,
    out: FiguresOut = None,
    style: Style = None,
    format: Format = "table",
) -> int:
    """Which error measure tells what a layer, or a scheme, costs? Joins errors with sensitivity and compare."""
    check_style(style)
    from kvdelta.analysis.reading import agreement, measurement_tables
    from kvdelta.analysis.reading.joined import check_joins, gather
    from kvdelta.analysis.reading.questions import questions_of
    from kvdelta.analysis.reading.worked_example import worked_example

    joined = gather(runs)
    check_joins(joined)
    questions = questions_of(joined)
    for question in questions:
        if question.left_out:
            note(f"{question.title}: {question.left_out}")
    note(f"ranking the measures for {len(questions)} questions; then the figures, about a second each")
    rankings = {question.title: agreement.ranking(question) for question in questions}
    record = joined.headers[0][1]
    rows = [row for ranking in rankings.values() for row in ranking]
    show_rows(
        record,
        rows,
        {title: measurement_tables.relate_table(ranking) for title, ranking in rankings.items()},
        format,
        measurement_tables.RELATE,
    )
    if format == "table":
        for question in questions:
            ceiling = agreement.agreement_of_windows(question)
            say(f"KL agrees with itself between even and odd windows at ρ = {ceiling:.2f} ({question.title}).")
        if example := worked_example(joined):
            say(example)
    from kvdelta.analysis.plots import figures

    where = figures.subject_line(record)
    for path in figures.draw_relations(questions, rankings, where, out or Path(runs[0]) / "figures", style):
        note(f"figure: {path}")
    return 0


@from_records.command()
def plot(runs: Runs, style: Style = None) -> int:
    """Draw the figures of saved records again, without a model."""
    check_style(style)
    from kvdelta.analysis.plots import figures

    for folder in runs:
        for path in figures.draw(folder, style, note):
            note(f"figure: {path}")
    return 0
