"""Of README.md and the pages that have few figures, and what else no record has."""

from kvdelta.harness.subject import data_sets
from tests.docs.claiming import EXIT_CODES, Claim, Unchecked
from tests.docs.claims.findings import FAMILIES
from tests.docs.records import carried_grid, four, order_agreement, places, run


def reversed_pairs():
    row = order_agreement(carried_grid(FAMILIES), 0, 2)
    return [0.2 < row.reversed / row.told < 0.3]


CLAIMS = (
    Claim(
        "{} schemes on SmolLM2-135M-Instruct and Qwen2.5-Coder-0.5B-Instruct, {} windows of WikiText-2",
        lambda: [len(carried_grid(FAMILIES).grid.names), len(run(places(FAMILIES)[0]).windows)],
    ),
    Claim("a text is cut to its first {} million characters", lambda: [data_sets.MOST / 1e6]),
    Claim("the next model reverses a quarter of the order", reversed_pairs),
    Claim(
        "a ΔNLL below 0 with a KL of {}",
        lambda: [four(FAMILIES)[2]["kvquant:bits=3"].kl, four(FAMILIES)[2]["kvquant:bits=3"].delta_nll_high < 0],
    ),
)

UNCHECKED = (
    Unchecked(
        "Exit codes: 0 done; 1 a fault of kvdelta, with a traceback; 2 a user error, in one line; 3 an audit failed: a row that cannot be believed; 4 a row failed",
        EXIT_CODES,
    ),
    Unchecked("when each scheme's standard error of ΔNLL is under 0.002 nats", "what the command asks for"),
    Unchecked("(level 1 − 0.05/K each)", "a formula"),
    Unchecked("S(t) = Π(1 − TVD)", "a formula"),
    Unchecked("tested on small random ones (Gemma 3, Mistral)", "names of models"),
    Unchecked(
        "they cover the truth in 97 to 99 % of runs on windows drawn from those of [this record] (92 to 95 % without the correction), 98 % or more with heavy tails; where differences are very skewed (lognormal, σ = 1) 90 to 93 %, and 16 windows unstopped 86 %",
        "simulated",
    ),
    Unchecked("after 16, 32, 64, … windows", "when a run looks; harness/stopping.py"),
    Unchecked(
        "(medians of 3 windows: 1.6 s; `hqq4` 1.4 s, `hqq2` 1.5 s, KVarN and GEAR 0.8 s, min–max 0.1 s; timings.json of `kvdelta compare --windows 3` and these schemes) but for `kivi-hqq2`, 1.9 s: groups of 32 are twice as many to solve, and at 2 bits they settle late",
        "timings, with their command",
    ),
    Unchecked("(12,288 tokens of the packaged model) takes 4.5 GB and 80 to 90 s", "a timing, with its command"),
    Unchecked("A command needs 4 to 6 s to load on 2 cores", "a timing, and the line that has it"),
    Unchecked("all tests (30 to 40 min on 2 cores)", "a timing, with its command"),
)
