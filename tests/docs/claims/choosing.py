"""Of docs/choosing.md: what was recommended, and what carries."""

from kvdelta.analysis.reading import draws, racing
from kvdelta.analysis.reading.carrying import Carried
from kvdelta.analysis.reading.cells import gather_cells
from kvdelta.analysis.reading.grids import grid_of
from tests.docs.claiming import EXIT_CODES, Claim, Unchecked
from tests.docs.records import RESULTS, recommendation, verified

K4V3 = "kcvt:key_bits=4,value_bits=3,sink_tokens=4"
KVARN = "kvarn:key_bits=4,value_bits=3"
BOTH = "recommend-h200/both"


def one_model():
    row = verified("recommend-h200/smollm2", KVARN)
    said = recommendation("recommend-h200/smollm2")
    alike = any(line.startswith(f"No difference on fresh windows from {K4V3}") for line in said.said)
    return row["bits"], row["loss"], row["loss_low"], row["loss_high"], said.recommended == KVARN and alike


def both_models():
    row, said = verified(BOTH, KVARN, "qwen"), recommendation(BOTH)
    alike = any(line.startswith(f"No difference on fresh windows from {K4V3}") for line in said.said)
    unbiased = said.recommended == "unbiased(kcvt:key_bits=4,value_bits=3):sink_tokens=4"
    return row["loss"], row["loss_low"], row["loss_high"], unbiased and alike and row["more_low"] > 0


def two_protocols():
    """By ΔNLL."""
    cells, _ = gather_cells([RESULTS / "decoding-cpu"])
    of = Carried(grid_of(cells, "nll"))
    ends = {of.grid.cells[0].name, of.grid.cells[2].name}
    row = next(row for row in of.agreement if {row.cell, row.other} == ends)
    return len(cells[0].run.windows), row.tau, row.tau_low, row.tau_high, row.reversed == 0


CLAIMS = (
    Claim("`kvarn:key_bits=4,value_bits=3` ({} bits), KL {} [{}, {}], no difference from `k4v3`", one_model),
    Claim("the verification shows the other to lose more: on Qwen2.5 it costs KL {} [{}, {}]", both_models),
    Claim("which {} windows do not tell beyond the interval: τ {} [{}, {}], none reversed", two_protocols),
    Claim("Intervals of τ are of {} draws of the windows", lambda: [draws.DRAWS]),
    Claim("the scheme that truly loses least is thrown out in at most {} % of races", lambda: [100 * racing.ALPHA]),
    Claim("the {} of which least is predicted race (`--keep`)", lambda: [len(recommendation("recommend-cpu").race)]),
)

UNCHECKED = (
    Unchecked("one of them lognormal with σ = 1", "how it was simulated"),
    Unchecked("where intervals of the differences hold 0", "no figure"),
    Unchecked("the others go on (exit code 4)", EXIT_CODES),
    Unchecked("on 2 cores in 20 to 30 min, by how busy they are", "a timing, of the command above it"),
    Unchecked("took 3:04", "a timing, of the command in results/README.md"),
    Unchecked("6:45 beside the others", "a timing, of the command in results/README.md"),
    Unchecked("After 4, 8 and 16 windows", "when a race looks; tests/analysis/reading/test_racing.py"),
    Unchecked("is thrown out in 8 to 17 % of races", "simulated in tests/analysis/reading/test_racing.py"),
    Unchecked(
        "covered 70 to 90 % in simulations of three equal cells, this one 97 % or more",
        "simulated; analysis/reading/draws.py says it too",
    ),
)
