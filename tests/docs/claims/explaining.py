"""Of docs/explaining.md: outliers, errors, and the layers that cost."""

import re

from kvdelta.analysis.reading.kivi_vs_int4 import ratios
from tests.docs.claiming import Claim, Unchecked
from tests.docs.records import RESULTS, additivity, difference, joined, measure_ranks, one_layer, rows, run

FOLDER, KEYS = "explained-h100", "asym2:key_axis=channel,group_size=32"
MAP, UNIFORM = "allocate-h100", "asymmetric:key_axis=channel,value_axis=token,group_size=32,bits=3"


def channels():
    """Of the report: the record of outliers is too large to be kept."""
    report = (RESULTS / FOLDER / "report.md").read_text(encoding="utf-8")
    found = re.search(r"Keys: largest over median channel ([\d.]+) to ([\d.]+)", report)
    assert found
    return float(found[1]), float(found[2])


def rebuilt():
    keys, _, values, output = ratios(joined(FOLDER))
    return keys[1], keys[2], output[1], output[2], values[1] > 1


def allocated():
    """fitted to windows that are none of the scored ones: the command has how many."""
    cells, against = rows(MAP), difference(MAP, "the map", UNIFORM)
    fitted = int(run(MAP).command.split("--fit-windows ")[1].split()[0])
    pairs = [row.delta_nll for scheme, row in cells.items() if scheme not in ("exact", "the map")]
    return [
        cells["the map"].bits, fitted, cells["the map"].delta_nll, len(run(MAP).windows), len(pairs), 3, cells[UNIFORM].delta_nll,
        against.delta_nll, against.delta_nll_low, against.delta_nll_high, cells[UNIFORM].delta_nll == min(pairs),
    ]  # fmt: skip


CLAIMS = (
    Claim("A few channels of K are {} to {} times the median channel in every layer", channels),
    Claim(
        "At 2 bits K is rebuilt {} times worse per token than per channel (published for Llama-2-13B: {}), and the attention output {} times worse with V per channel than per token (published: {}), though V itself is rebuilt better per channel",
        rebuilt,
    ),
    Claim("bits costs, over {} layers, 95 % interval", lambda: [len(one_layer(FOLDER, KEYS, "key"))]),
    Claim(
        "{} windows of the WikiText-2 test set, fp16 on one H100, the same model", lambda: [len(run(FOLDER).windows)]
    ),
    Claim(
        "the sum of their single ΔNLL is {} nats for these keys, all at once {}",
        lambda: [additivity(FOLDER, KEYS, "key").sum_delta_nll, additivity(FOLDER, KEYS, "key").all_delta_nll],
    ),
    Claim(
        "at {} measured bits a map of layers, fitted to the predicted loss on {} windows, loses {} nats on {} others that share no token with them, and the best of {} uniform pairs, {} bits on both sides, {} (difference {} [{}, {}];",
        allocated,
    ),
    Claim(
        "More bits for all values than for all keys is far worse: {}",
        lambda: [rows(MAP)["K 3.00 b, V 5.00 b"].delta_nll],
    ),
    Claim(
        "it does not tell which layer costs: rank correlation with KL {}",
        lambda: [measure_ranks(FOLDER, f"{KEYS}: keys")["key_error"].spearman_kl],
    ),
)

UNCHECKED = (
    Unchecked(
        "On 2 cores, 2 windows, loading and figures included: `outliers --pre-rope` 20 s, `errors` (its six default schemes) 87 s, `sensitivity --scheme kivi2 --side key` 101 s; at most 2.9 GB",
        "timings, each of the command that it names",
    ),
)
