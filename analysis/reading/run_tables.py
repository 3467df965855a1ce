"""The table of a run: for a terminal, Markdown, JSON and CSV."""

import json
import math
from collections.abc import Sequence

from kvdelta.analysis.reading.escaping import markdown
from kvdelta.analysis.reading.matching import matching_lines
from kvdelta.analysis.reading.rows import plain
from kvdelta.analysis.reading.summary import SummaryRow
from kvdelta.analysis.reading.tables import Table, as_markdown, chance, csv_text, overlap, signed, windows_of
from kvdelta.harness import stopping
from kvdelta.harness.records.run import Run, named

CSV_COLUMNS = [
    "scheme", "ppl", "delta_ppl", "delta_pct", "delta_nll", "delta_nll_se", "delta_nll_low", "delta_nll_high", "p",
    "p_holm", "p_sign_flip", "skewness", "skewed", "kl", "kl_se", "kl_999", "same", "top1", "delta_p", "bits", "compression", "key_coverage", "value_coverage", "coverage",
    "within_noise", "audit", "name", "note",
]  # fmt: skip

EVICTS = "†"  # marks a row that changes what is attended
NOT_MEASURABLE = "not measurable"


def in_order(rows: Sequence[SummaryRow], baseline: int, sort: str) -> tuple[Sequence[SummaryRow], int]:
    """The rows as given ("run"), by measured bits with the most first, or by KL with the least first, and where the
    baseline is among them; what has no such number comes last."""
    if sort == "run":
        return rows, baseline
    keys = {"bits": lambda row: -(row.bits or 0.0), "kl": lambda row: row.kl if row.kl >= 0 else math.inf}
    ordered = sorted(rows, key=lambda row: (row is not rows[0], keys[sort](row)))  # exact stays at the top
    return ordered, next(i for i, row in enumerate(ordered) if row is rows[baseline])


def as_text(run: Run, rows: Sequence[SummaryRow], baseline: int, format: str) -> str:
    """As md, json or csv."""
    if format == "csv":
        return as_csv(rows)
    if format == "json":
        return as_json(run, rows, baseline)
    text = "\n\n".join(map(markdown, heading(run))) + "\n\n" + as_markdown(*cells(rows, baseline))
    said = [TWO_PASS.replace("\n", " ")] if run.settings.protocol == "two-pass" else []
    return text + "".join(f"\n{markdown(line)}\n" for line in [*said, *notes(rows)])


def as_csv(rows: Sequence[SummaryRow]) -> str:
    return csv_text(CSV_COLUMNS, [[row.get(column) for column in CSV_COLUMNS] for row in plain(rows)])


def as_json(run: Run, rows: Sequence[SummaryRow], baseline: int = 0) -> str:
    content = {
        "model": run.model_name,
        "text": run.text_name,
        "protocol": run.settings.protocol,
        "step": run.settings.step,
        "windows": len(run.windows),
        "ended": run.ended,
        "baseline": rows[baseline].scheme,
        "noise_floor": run.noise_floor.model_dump() if run.noise_floor else None,
        "audit": run.audit.model_dump(exclude={"reads"}),
        "rows": plain(rows),
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def cells(rows: Sequence[SummaryRow], baseline: int = 0) -> Table:
    """Header and text cells, for people."""
    header = [
        "scheme",
        "ppl",
        "Δ%",
        "ΔNLL [95 %]",
        "p (Holm)",
        "KL",
        "99.9 %",
        "same %",
        "top-1 %",
        "bits",
        "×",
        "read K",
        "read V",
    ]
    return header, [_cells(row, is_baseline=i == baseline) for i, row in enumerate(rows)]


def _cells(row: SummaryRow, is_baseline: bool) -> list[str]:
    scheme = f"{row.scheme} {EVICTS}" if row.evicts else row.scheme
    if row.error:
        return [scheme, "–", "–", "failed", *["–"] * 9]
    size = [NOT_MEASURABLE, "–"] if row.bits is None else [f"{row.bits:.2f}", f"{row.compression:.2f}"]
    read = [f"{row.key_coverage:.3f}", f"{row.value_coverage:.3f}"]
    if row.refused:
        return [scheme, "–", "–", row.refused, *["–"] * 5, *size, *read]
    if is_baseline:
        delta = ["–", "baseline", "–"]
    elif row.within_noise:
        delta = [signed(row.delta_pct, 2), "within noise", "–"]
    elif row.p_holm is None or math.isnan(row.p):
        delta = [signed(row.delta_pct, 2), signed(row.delta_nll, 4), "–"]
    else:
        interval = f"[{signed(row.delta_nll_low, 4)}, {signed(row.delta_nll_high, 4)}]"
        delta = [signed(row.delta_pct, 2), f"{signed(row.delta_nll, 4)} {interval}", chance(row.p_holm)]
    tail = "–" if row.kl_999 is None else f"{row.kl_999:.2g}"
    same = "–" if row.same is None else f"{row.same:.1f}"
    return [scheme, f"{row.ppl:.4f}", *delta, f"{row.kl:.2g}", tail, same, f"{row.top1:.1f}", *size, *read]


def notes(rows: Sequence[SummaryRow]) -> list[str]:
    """A line for each row that is not a scheme of ours: what it really does; and why it failed, where it did."""
    lines = []
    for row in rows:
        said = [*([f"failed: {row.error}"] if row.error else []), *([row.note] if row.note else [])]
        mark = f" {EVICTS} (changes what is attended)" if row.evicts else ""
        lines += [f"{row.scheme}{mark}: {'; '.join(said)}"] if said else []
    if skewed := [
        f"{row.scheme} ({row.skewness:.1f}; {chance(row.p_sign_flip)})"
        for row in rows
        if row.skewed and not row.refused
    ]:
        lines.append(
            "skewed over windows (skewness; p of the sign-flip test), so that the interval of ΔNLL can hold less than 95 %: "
            + ", ".join(skewed)
        )
    return lines


def cost_matrix(lines: dict[str, dict[str, SummaryRow]]) -> Table:
    """ΔNLL ± SE of rows laid out in two dimensions."""

    def cost(row: SummaryRow) -> str:
        error = "" if math.isnan(row.delta_nll_se) else f" ± {row.delta_nll_se:.4f}"
        return "–" if row.refused else signed(row.delta_nll, 4) + error

    columns = list(next(iter(lines.values())))
    return ["", *columns], [[name, *(cost(line[column]) for column in columns)] for name, line in lines.items()]


def heading(run: Run) -> list[str]:
    """What the numbers are of, in a few lines."""
    return heading_of_several([run])


def heading_of_several(runs: Sequence[Run]) -> list[str]:
    """Of the same windows by several protocols."""
    run, settings = runs[0], runs[0].settings
    by = " and ".join(named(one.settings) for one in runs)
    spread = f", heads over {settings.tensor_parallel} processes" if settings.tensor_parallel > 1 else ""
    lines = [
        f"{run.model_name}",
        f"{run.text_name}: {windows_of(settings, len(run.windows))}, {by}, {settings.dtype} on {settings.device}{spread}",
    ]
    for one in runs:
        if floor := one.noise_floor:
            whose = f", {named(one.settings)}" if len(runs) > 1 else ""
            said = f"|ΔNLL| {floor.delta_nll:.1e}, KL {floor.kl:.1e} nats"
            lines.append(f"noise floor (exact by another route{whose}): {said}")
    exact = [matching_lines(one) for one in runs]
    if all(said == exact[0] for said in exact):
        lines += exact[0]
    else:
        lines += [f"{named(one.settings)}: {line}" for one, said in zip(runs, exact, strict=True) for line in said]
    if settings.until_se is not None:
        lines += [run.ended] if run.ended else []
        lines.append(_looked(stopping.looks(settings)))
    lines += _few(len(run.windows))
    lines += overlap(settings.model_copy(update={"windows": run.scored}))
    return lines + _layers(run)


def _few(windows: int) -> list[str]:
    """The smallest p of the two-sided sign-flip test of n windows is 2/2^n, under 5 % from 6 on; of skewness there is a test from 8 on."""
    if windows >= FEW_WINDOWS:
        return []
    how_many = f"only {windows} windows" if windows > 1 else "only one window"
    return [
        f"{how_many}: too few to show that differences are normal, which the interval assumes; give {FEW_WINDOWS} or more "
        "(--windows)"
    ]


def _layers(run: Run) -> list[str]:
    """Which layers the rows quantize, where these are not all."""
    by_kind = {str(one.spec.get("kinds", "full")): one.quantized_layers for one in run.contenders}
    if all(len(layers) == run.layers for layers in by_kind.values()):
        return []
    said = [
        ", ".join(map(str, layers)) + (f" (layers={kind})" if len(by_kind) > 1 or kind != "full" else "")
        for kind, layers in by_kind.items()
    ]
    return [f"quantized: layers {'; '.join(said)} of {run.layers}; the others are kept as they are"]


def legend(run: Run) -> str:
    """What the columns are, and what the protocol leaves out."""
    lines = [LEGEND, *([TWO_PASS] if run.settings.protocol == "two-pass" else [])]
    if FEW_WINDOWS <= len(run.windows) < SKEWNESS_SHOWS and run.settings.independent:
        lines.append(UNSEEN)
    return "\n".join(lines)


def _looked(looks: list[int]) -> str:
    if len(looks) == 1:
        return "looked at once, after all windows: too few for looks in between"
    each = 100 * (1 - 0.05 / len(looks))
    return (
        f"looked after {', '.join(map(str, looks[:-1]))} and {looks[-1]} windows, or until it stopped: intervals and p hold for "
        f"all {len(looks)} looks together (Bonferroni, {each:.1f} % each)"
    )


FEW_WINDOWS, SKEWNESS_SHOWS = 8, 32
UNSEEN = """If differences are skewed over windows, so few seldom show it, and the interval holds less: docs/statistics.md says how much less."""

TWO_PASS = """Two passes: the suffix's own tokens are exact, and attention looks mostly at near ones, so decoding costs more, and not every
row alike: --protocol two-pass --protocol stepwise --step 16 shows both."""

LEGEND = """ΔNLL: nats a token more than the baseline, 95 % interval over windows. KL from exact, mean and 99.9 % quantile over tokens;
same: 1 − TVD, the share of next tokens that agree where both draw as alike as they can. bits: a number, measured at the
prefix length; codes and metadata as held, exact tokens at 16. read: share of attended (query, token) pairs from packed storage."""
