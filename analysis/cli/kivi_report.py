"""One page that leads from outliers to perplexity: KIVI against naive INT4, from records alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kvdelta.analysis.cli import terminal
from kvdelta.analysis.cli.runs import make_run, report_failures
from kvdelta.analysis.cli.starting import note, say
from kvdelta.analysis.measuring.channel_statistics import measure_outliers
from kvdelta.analysis.measuring.errors import measure_errors
from kvdelta.analysis.plots import figures
from kvdelta.analysis.reading import agreement, measurement_tables, outliers, run_tables, tables
from kvdelta.analysis.reading import error_measures as measures
from kvdelta.analysis.reading.escaping import code, markdown
from kvdelta.analysis.reading.headline import equal_bits_headline
from kvdelta.analysis.reading.joined import Joined, check_joins, gather
from kvdelta.analysis.reading.kivi_vs_int4 import EQUAL_BITS, GRID, kivi_specs, kivi_tables
from kvdelta.analysis.reading.questions import questions_of
from kvdelta.analysis.reading.worked_example import worked_example
from kvdelta.harness.caches.contenders import contenders_of
from kvdelta.harness.options import Options
from kvdelta.harness.records.writing import write_file
from kvdelta.harness.subject.prepared import Subject

ERROR_BITS = ("4 bit", "2 bit")

# Liu et al. 2024 (arXiv 2402.02750), table 2: Llama-2-13B, 2 bit
PUBLISHED_RATIOS = {
    "K error, per token / per channel": 3.0,
    "attention-score error, K per token / per channel": 4.9,
    "V error, per token / per channel": 1.23,
    "attention-output error, V per channel / per token": 14.1,
}


def kivi_report(options: Options, subject: Subject, style: str | None) -> int:
    """Compare, errors and outliers on the same windows, the tables on stdout, and report.md in the run folder."""
    run, folder = make_run(contenders_of(kivi_specs()), options, subject)
    say(*run_tables.heading(run))
    for title, table in kivi_tables(run).items():
        terminal.print_table(*table, title)
    say(equal_bits_headline(run, *EQUAL_BITS))
    note("errors, for the report:")
    beside = replace(options, out=str(folder))
    measure_errors(error_specs(), beside, subject, on_note=note)
    note("outliers, for the report:")
    measure_outliers(beside, subject, on_note=note)
    path = write_report(folder, style)
    shown = [[name, f"{here:.2f}", str(there)] for name, here, there in ratios(gather([folder]))]
    terminal.print_table(["ratio of errors at 2 bits", "here", "published"], shown)
    note(f"report: {path}")
    return report_failures(run)


def error_specs() -> list[str]:
    """The schemes whose errors the report explains: naive INT4, and the grid of axes at 4 and 2 bits."""
    return ["int4", *(row[bits] for bits in ERROR_BITS for row in GRID.values())]


def ratios(joined: Joined) -> list[tuple[str, float, float]]:
    """(name, measured here, published) of the ratios in KIVI's table 2, at 2 bits."""
    _, record, arrays = joined.errors[0]
    values = measures.by_scheme(arrays)

    def of(measure: str, key_axis: str, value_axis: str) -> float:
        spec = GRID[f"K {key_axis}, V {value_axis}"]["2 bit"]
        return float(values[measure][record.labels.index(spec)])

    here = (
        of("key_error", "token", "token") / of("key_error", "channel", "token"),
        of("score_error", "token", "token") / of("score_error", "channel", "token"),
        of("value_error", "token", "token") / of("value_error", "token", "channel"),
        of("output_value", "token", "channel") / of("output_value", "token", "token"),
    )
    return [(name, mine, published) for (name, published), mine in zip(PUBLISHED_RATIOS.items(), here, strict=True)]


def write_report(folder: Path, style: str | None = None) -> Path:
    """report.md and its figures, from the run, the errors and the outliers in `folder`."""
    joined = gather([folder])
    check_joins(joined)
    figures.draw(folder, style, note)
    questions = questions_of(joined)
    rankings = {question.title: agreement.ranking(question) for question in questions}
    list(
        figures.draw_relations(questions, rankings, figures.subject_line(joined.runs[0][1]), folder / "figures", style)
    )
    run, (_, record, arrays) = joined.runs[0][1], joined.outliers[0]
    shown = kivi_tables(run)
    heads = outliers.head_rows(record, arrays)
    layer, head = arrays["pictured"][0][0]
    ranked = next(iter(rankings.values()))
    grid, ladder = shown["Asymmetric, groups of 32: ΔNLL ± SE"], shown["One change at a time"]
    parts = [
        "# KIVI against naive INT4, from outliers to perplexity",
        "  \n".join([*map(markdown, run_tables.heading(run)), code(run.command)]),
        "## 1. Keys have outlier channels",
        *_sentences(outliers.sentences(heads)),
        _picture(f"figures/heat-map-layer-{layer}-head-{head}.png", "|K| and |V| over tokens and channels"),
        "The same few channels are large in every token, so a group along channels (per token) spends its range on "
        "them. A group along tokens (per channel) holds numbers of one size.",
        _picture("figures/ratio-by-layer.png", "largest over median channel, by layer"),
        "## 2. So the axis decides the error",
        "Errors at 2 bits, groups of 32, over all layers, heads and windows, beside the published ratios "
        "(Liu et al. 2024, arXiv 2402.02750, table 2, Llama-2-13B):",
        tables.as_markdown(["ratio", "here", "published"], [[n, f"{a:.2f}", str(b)] for n, a, b in ratios(joined)]).rstrip(),
        "Values per channel rebuild V no worse and give the worse attention output: attention sums values over tokens, "
        "and a group along tokens mixes those that attention looks at with those that it does not.",
        _picture("figures/errors-by-layer.png", "errors by layer and scheme"),
        "## 3. And the error decides the loss",
        "ΔNLL against the exact cache, nats a token, ± standard error over windows; K and V axis apart, groups of 32:",
        tables.as_markdown(*grid).rstrip(),
        "One change at a time, from naive INT4 to KIVI:",
        tables.as_markdown(*_columns(ladder, ("scheme", "bits", "ΔNLL [95 %]", "KL"))).rstrip(),
        markdown(equal_bits_headline(run, *EQUAL_BITS)),
        "## 4. Which error would have told?",
        f"Rank agreement ρ of each error measure with the KL of {markdown(next(iter(rankings)))}, 95 % bootstrap intervals; the last "
        "column counts pairs of schemes with equal bits that a measure orders as their KL is.",
        tables.as_markdown(*_columns(measurement_tables.relate_table(ranked), ("measure", "ρ with KL [95 %]", "r, log–log", "equal bits"))).rstrip(),
        *([markdown(example)] if (example := worked_example(joined)) else []),
        _picture("figures/relate-1-kl.png", "error measures against KL"),
    ]  # fmt: skip
    path = folder / "report.md"
    write_file(path, ("\n\n".join(parts) + "\n").encode())
    return path


def _sentences(lines: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {sentence[0].upper()}{sentence[1:]}." for sentence in lines)]


def _picture(path: str, what: str) -> str:
    return f"![{what}]({path})"


def _columns(table: tables.Table, names: Sequence[str]) -> tables.Table:
    header, body = table
    at = [header.index(name) for name in names]
    return list(names), [[row[i] for i in at] for row in body]
