"""Of README.md and the pages that have few figures, and what else no record has."""

import numpy as np
from scipy import special

from kvdelta.analysis.pages import glance, page, rows
from kvdelta.analysis.reading import run_tables
from kvdelta.harness import statistics
from kvdelta.harness.subject import data_sets, files
from tests.docs.claiming import EXIT_CODES, Claim, Unchecked
from tests.docs.claims.findings import FAMILIES
from tests.docs.markdown import tables
from tests.docs.records import carried_grid, four, order_agreement, places, run


def reversed_pairs():
    row = order_agreement(carried_grid(FAMILIES), 0, 2)
    return [0.2 < row.reversed / row.told < 0.3]


def of_lognormal(windows, draws=20_000):
    """Per cent of runs whose t interval holds the mean of lognormal differences, and whose row is named as skewed."""
    differences = np.random.default_rng(windows).lognormal(0, 1, (draws, windows))
    found = [statistics.paired_delta(one, np.zeros(windows), np.ones(windows)) for one in differences[: draws // 10]]
    half = special.stdtrit(windows - 1, 0.975) * differences.std(axis=1, ddof=1) / np.sqrt(windows)
    held = np.abs(differences.mean(axis=1) - np.exp(0.5)) <= half
    assert [one.low <= np.exp(0.5) <= one.high for one in found] == held[: len(found)].tolist()
    return 100 * held.mean(), 100 * np.mean([one.skewed for one in found])


def skewed_runs():
    by_windows = {windows: of_lognormal(windows) for windows in (6, 8, 16, 32, 64)}
    held = [number for windows, (share, _) in by_windows.items() for number in (round(share), windows)]
    named = [number for windows in (8, 16, 32) for number in (round(by_windows[windows][1]), windows)]
    return [1, *held, *named]


def demo():
    of = run("demo")
    prefix = of.settings.window_length - of.settings.score_length
    return len(of.contenders), len(of.windows), prefix, of.settings.score_length


def passed():
    """Checks, and how many of them caches pass, of the table in docs/own-cache.md: two of its columns are made again in test_tables."""
    (table,) = [one for one in tables() if one.header[0] == "check"]
    columns = ("DynamicCache", "SchemeCache", "StaticCache", "QuantizedCache, hqq", "QuantizedCache, quanto")
    at = [next(i for i, name in enumerate(table.header) if name.startswith(column)) for column in columns]
    dynamic, ours, *others = [sum(row[i] == "pass" for row in table.rows) for i in at]
    return [len(table.rows), dynamic, *others, dynamic == ours]


CLAIMS = (
    Claim(
        "of {} checks `DynamicCache` and our `SchemeCache` pass {}, `StaticCache` {}, transformers' `QuantizedCache` {} with HQQ and {} with quanto",
        passed,
    ),
    Claim(
        "{} schemes on SmolLM2-135M-Instruct and Qwen2.5-Coder-0.5B-Instruct, {} windows of WikiText-2",
        lambda: [len(carried_grid(FAMILIES).grid.names), len(run(places(FAMILIES)[0]).windows)],
    ),
    Claim("a text is cut to its first {} million characters", lambda: [data_sets.MOST / 1e6]),
    Claim("for budgets of {}, {}, {}, {}, {} and {} measured bits", lambda: glance.BUDGETS),
    Claim("corrected for the rows of a run, is under {};", lambda: [rows.LEVEL]),
    Claim("A page is never over {} MB", lambda: [page.LARGEST / 1e6]),
    Claim(
        "the exact sign-flip test for up to {} windows, of more windows by {} drawn signs",
        lambda: [statistics.FLIPPED, statistics.DRAWN],
    ),
    Claim(
        "Of lognormal differences (σ = {}) the interval holds their mean in {} % of runs of {} windows, {} % of {}, {} % of {}, {} % of {} and {} % of {}, and the line names {} % of those of {} windows, {} % of {} and {} % of {}",
        skewed_runs,
    ),
    Claim("Of files of {} MB and more that a user names", lambda: [files.LARGE / 1e6]),
    Claim("Under {} there is no such test, and the table says that they are too few", lambda: [run_tables.FEW_WINDOWS]),
    Claim(
        "scores {} schemes on {} windows of a packaged text: {} tokens go into the cache in one exact forward, each scheme stores them in its own way, and {} tokens read what was stored",
        demo,
    ),
    Claim("the next model reverses a quarter of the order", reversed_pairs),
    Claim(
        "a ΔNLL below 0 with a KL of {}",
        lambda: [four(FAMILIES)[2]["kvquant:bits=3"].kl, four(FAMILIES)[2]["kvquant:bits=3"].delta_nll_high < 0],
    ),
)

UNCHECKED = (
    Unchecked("from the package index (93 MB)", "the size of a package"),
    Unchecked("Windows: 2048 tokens, the last 512 the suffix", "defaults of the command"),
    Unchecked(
        "a test at 1 % shows, where there are fewer windows than 25 times its square", "of harness/statistics.py"
    ),
    Unchecked("Give it 20 batches a process or more", "advice"),
    Unchecked("A launcher ends with 1 whatever", EXIT_CODES),
    Unchecked("fails with exit code 3", EXIT_CODES),
    Unchecked("The command ends with 4 where something failed", EXIT_CODES),
    Unchecked(
        "(transformers 5.24.0, torch 2.13.0, hqq 0.2.8.post1, optimum-quanto 0.2.7; on a CPU, 2 to 10 s a cache.)",
        "versions, and a timing of the command above it",
    ),
    Unchecked("of 131 tokens `crop(-7)` leaves 128 and a length of 131", "an example of the check of crop"),
    Unchecked("in 5.17 `DynamicCache.reset` leaves", "a version of transformers"),
    Unchecked("end in an IndexError until 5.24; `StaticCache` has no `crop` before 5.24", "versions of transformers"),
    Unchecked("A CRC-32 misses one in 2³²", "of its definition"),
    Unchecked("the process ends 30 s later", "a constant of harness/time_limit.py"),
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
