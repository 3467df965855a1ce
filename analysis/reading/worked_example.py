"""The case against reconstruction error, where the records hold one."""

from typing import Any

import numpy as np

from kvdelta.analysis.reading import error_measures as measures
from kvdelta.analysis.reading import summary
from kvdelta.analysis.reading.joined import Joined
from kvdelta.analysis.reading.questions import EQUAL_BITS
from kvdelta.analysis.reading.summary import SummaryRow
from kvdelta.harness.records.run import ContenderRecord
from kvdelta.schemes.references import identity_of

NO_WORSE = 1.02  # an error up to this ratio is called no worse


def worked_example(joined: Joined) -> str | None:
    """The case against reconstruction error: two schemes of equal bits and equal keys, the values of one rebuilt no
    worse (up to 2 %), and the loss far larger. The pair with the largest ratio of KL; None where there is none."""
    examples: list[tuple[float, str]] = []
    for _, errors, sums in joined.errors:
        values = measures.by_scheme(sums)
        for _, run in joined.runs:
            rows = {identity_of(row.name): row for row in summary.summarize(run)}
            keys = {identity_of(contender.name): _keys(contender) for contender in run.contenders}
            believed = {name for name, row in rows.items() if not row.refused and name != "exact"}
            shared = [name for name in errors.settings.contenders if name in believed]
            for a, b in [(a, b) for a in shared for b in shared if a != b]:
                i, j = errors.settings.contenders.index(a), errors.settings.contenders.index(b)
                same_keys = keys[a] is not None and keys[a] == keys[b]
                near = abs((rows[a].bits or 0) - (rows[b].bits or 9)) <= EQUAL_BITS
                v, out = values["value_error"], values["output_both"]
                if same_keys and near and v[i] <= NO_WORSE * v[j] and rows[a].kl > rows[b].kl:
                    examples.append((rows[a].kl / rows[b].kl, _example(rows[a], rows[b], v[[i, j]], out[[i, j]])))
    return max(examples)[1] if examples else None


def _keys(contender: ContenderRecord) -> tuple[Any, Any] | None:
    """How it stores keys, and in which layers it differs; None of a cache that does not tell keys from values."""
    return (contender.spec["key"], contender.spec.get("layers")) if "key" in contender.spec else None


def _example(a: SummaryRow, b: SummaryRow, value_error: np.ndarray, output: np.ndarray) -> str:
    return (
        f"Reconstruction error picks the wrong scheme: {a.scheme} and {b.scheme} have the same keys and "
        f"{a.bits:.2f} bits; the first rebuilds values to {value_error[0]:.3f}, the second to {value_error[1]:.3f} "
        f"(relative error), but its attention output is {output[0] / output[1]:.1f} times further off ({output[0]:.3f} "
        f"against {output[1]:.3f}), its KL {a.kl / b.kl:.1f} times larger, and it loses {a.delta_nll:+.4f} "
        f"nats a token against {b.delta_nll:+.4f}."
    )
