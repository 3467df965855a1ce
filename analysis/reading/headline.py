"""Two schemes of a run in one sentence."""

import math

from kvdelta.analysis.reading.summary import find, summarize
from kvdelta.harness.records.run import Run


def equal_bits_headline(run: Run, first: str, second: str) -> str:
    """One sentence that compares two schemes at their measured bits."""
    rows = summarize(run, second)
    a, b = rows[find(run, first)], rows[find(run, second)]
    more = "more" if a.delta_nll >= 0 else "less"
    sentence = (
        f"At {a.bits:.2f} against {b.bits:.2f} measured bits, {a.scheme} loses {abs(a.delta_nll):.4f} nats "
        f"a token {more} than {b.scheme}"
    )
    if math.isnan(a.p):
        why = "one window has" if len(run.windows) == 1 else "windows that score tokens twice have"
        return f"{sentence}; {why} no interval."
    interval = f"95 % interval [{a.delta_nll_low:+.4f}, {a.delta_nll_high:+.4f}]"
    unclear = ", so these windows do not tell them apart" if a.delta_nll_low <= 0 <= a.delta_nll_high else ""
    return f"{sentence} ({interval}){unclear}."
