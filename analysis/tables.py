"""Tables of a run, from its record alone."""

import csv
import io
import json
import math
from typing import Any

from harness import statistics
from harness.records import Run
from schemes import parse_scheme

COLUMNS = [
    "scheme", "ppl", "delta_ppl", "delta_pct", "delta_nll", "delta_nll_se", "delta_nll_low", "delta_nll_high", "p", "kl",
    "kl_se", "top1", "bits", "compression", "key_coverage", "value_coverage", "coverage", "within_noise", "audit",
]  # fmt: skip


def summarize(run: Run, baseline: str | None = None) -> list[dict[str, Any]]:
    """One row a contender, from sums per window; deltas against `baseline` (a label or name; the exact row without).

    KL and top-1 are always against the exact row. ValueError: an unknown baseline.
    """
    base = find(run, baseline) if baseline else 0
    counts = [w.count for w in run.windows]
    rows = []
    for i, contender in enumerate(run.contenders):
        nll, base_nll = [w.nll[i] for w in run.windows], [w.nll[base] for w in run.windows]
        paired = statistics.paired_delta(nll, base_nll, counts, seed=run.settings.seed)
        kl, kl_se = statistics.clustered_mean([w.kl[i] for w in run.windows], counts)
        sides = contender.bytes
        bits = None
        if sides:
            bits = 8 * sum(s.counted for s in sides.values()) / sum(s.elements for s in sides.values())
        pairs = sum(w.pairs[i] for w in run.windows)
        covered = {
            "key": sum(w.key_pairs[i] for w in run.windows) / pairs if pairs else 0.0,
            "value": sum(w.value_pairs[i] for w in run.windows) / pairs if pairs else 0.0,
        }
        counted_sides = contender.quantized_sides or ["key", "value"]
        floor = run.noise_floor
        delta_ppl = statistics.delta_ppl(nll, base_nll, counts)
        rows.append(
            {
                "scheme": contender.label,
                "name": contender.name,
                "ppl": statistics.perplexity(nll, counts),
                "delta_ppl": delta_ppl,
                "delta_pct": 100 * math.expm1(paired.delta),
                "delta_nll": paired.delta,
                "delta_nll_se": paired.se,
                "delta_nll_low": paired.low,
                "delta_nll_high": paired.high,
                "p": paired.p,
                "bootstrap_low": paired.bootstrap_low,
                "bootstrap_high": paired.bootstrap_high,
                "kl": kl,
                "kl_se": kl_se,
                "top1": 100 * sum(w.top1[i] for w in run.windows) / sum(counts),
                "bits": bits,
                "compression": 16 / bits if bits else None,
                "key_coverage": covered["key"],
                "value_coverage": covered["value"],
                "coverage": sum(covered[side] for side in counted_sides) / len(counted_sides),
                "within_noise": bool(
                    i != base and floor and abs(paired.delta) <= floor.delta_nll and (base != 0 or kl <= floor.kl)
                ),
                "audit": "; ".join(run.audit.failures.get(contender.label, [])) or "ok",
            }
        )
    others = [row for i, row in enumerate(rows) if i != base]
    for row, adjusted in zip(others, statistics.holm([row["p"] for row in others]), strict=True):
        row["p_holm"] = adjusted
    return rows


def find(run: Run, name: str) -> int:
    """The position of a contender by label or canonical name."""
    for i, contender in enumerate(run.contenders):
        if name in (contender.label, contender.name):
            return i
    known = ", ".join(c.label for c in run.contenders)
    raise ValueError(f"no scheme {name!r} in this run; it has {known}")


def as_csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_json(run: Run, rows: list[dict[str, Any]], baseline: str | None, tokens: dict[str, Any] | None = None) -> str:
    content = {
        "model": run.model_name,
        "text": run.text_name,
        "protocol": run.settings.protocol,
        "step": run.settings.step,
        "windows": len(run.windows),
        "baseline": baseline or run.contenders[0].label,
        "noise_floor": run.noise_floor.model_dump() if run.noise_floor else None,
        "audit": run.audit.model_dump(),
        "rows": [{name: _plain(value) for name, value in row.items()} for row in rows],
    }
    return json.dumps(content, indent=1) + "\n"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cells(rows: list[dict[str, Any]], baseline: int = 0) -> tuple[list[str], list[list[str]]]:
    """Header and text cells, for a terminal or for Markdown."""
    header = ["scheme", "ppl", "Δppl", "Δ%", "ΔNLL [95 %]", "KL", "top-1 %", "bits", "×", "read K", "read V"]
    body = []
    for i, row in enumerate(rows):
        believed = row["audit"] == "ok"
        if i == baseline:
            delta = ["–", "–", "baseline"]
        elif not believed:
            delta = ["–", "–", "not believable"]
        elif row["within_noise"]:
            delta = [f"{row['delta_ppl']:+.4f}", f"{row['delta_pct']:+.2f}", "within noise"]
        else:
            interval = (
                ""
                if math.isnan(row["delta_nll_se"])
                else f" [{row['delta_nll_low']:+.4f}, {row['delta_nll_high']:+.4f}]"
            )
            delta = [f"{row['delta_ppl']:+.4f}", f"{row['delta_pct']:+.2f}", f"{row['delta_nll']:+.4f}{interval}"]
        body.append(
            [
                row["scheme"],
                f"{row['ppl']:.4f}" if believed else "–",
                *delta,
                f"{row['kl']:.2g}" if believed else "–",
                f"{row['top1']:.1f}" if believed else "–",
                "–" if row["bits"] is None else f"{row['bits']:.2f}",
                "–" if row["bits"] is None else f"{row['compression']:.2f}",
                f"{row['key_coverage']:.3f}",
                f"{row['value_coverage']:.3f}",
            ]
        )
    return header, body


def as_markdown(rows: list[dict[str, Any]], baseline: int = 0) -> str:
    header, body = cells(rows, baseline)
    lines = ["| " + " | ".join(line) + " |" for line in [header, *body]]
    lines.insert(1, "|---|" + "---:|" * (len(header) - 1))
    return "\n".join(lines) + "\n"


def heading(run: Run) -> list[str]:
    """What the numbers are of, in a few lines."""
    s = run.settings
    step = f" (step {s.step})" if s.step else ""
    sizes = f"prefix {s.window_length - s.score_length} + suffix {s.score_length}"
    lines = [
        f"{run.model_name} on {run.text_name}: {len(run.windows)} windows, {sizes} tokens, {s.protocol}{step}, {s.dtype} on {s.device}",
    ]
    if run.noise_floor:
        lines.append(
            f"noise floor (exact by another route): |ΔNLL| {run.noise_floor.delta_nll:.1e}, KL {run.noise_floor.kl:.1e} nats"
        )
    lines.append(
        "bits: measured at the prefix length, codes and metadata as held, exact tokens at 16; read: share of attended "
        "(query, token) pairs that came from packed storage"
    )
    return lines


def perplexities(run: Run) -> list[float]:
    """One a contender."""
    counts = [w.count for w in run.windows]
    return [statistics.perplexity([w.nll[i] for w in run.windows], counts) for i in range(len(run.contenders))]


def find_same(run: Run, spec: str) -> int:
    """The position of the contender that is the same scheme as `spec`, however it was spelled."""
    return find(run, parse_scheme(spec).name)


def equal_bits_headline(run: Run, first: str, second: str) -> str:
    """One sentence that compares two schemes of the same measured bits."""
    rows = summarize(run, run.contenders[find_same(run, second)].name)
    a, b = rows[find_same(run, first)], rows[find_same(run, second)]
    return (
        f"At {a['bits']:.2f} against {b['bits']:.2f} measured bits, {a['scheme']} loses {a['delta_nll']:+.4f} nats "
        f"[{a['delta_nll_low']:+.4f}, {a['delta_nll_high']:+.4f}] more than {b['scheme']} "
        f"(keys per channel, values per token), p = {a['p']:.2g}."
    )
