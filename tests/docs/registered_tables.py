"""Every table with figures, by its header: what its cells are, from the records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvdelta.analysis.reading.kivi_vs_int4 import LADDER
from kvdelta.analysis.reading.trap import trap_table
from tests.docs import records
from tests.docs.records import four, rows

Figures = Sequence[Sequence[float]]
"""Of a row, cell by cell behind its first: the numbers of the cell in their order."""


@dataclass(frozen=True)
class Registered:
    """figures: of a row, by the label in its first cell. bold: whether a row's label stands in bold, where that says something."""

    record: str
    header: tuple[str, ...]
    figures: Callable[[str], Figures]
    bold: Callable[[str], bool] | None = field(default=None)


FAMILIES = "families-h200"


def family(label: str) -> Figures:
    cells = [one[label] for one in four(FAMILIES)]
    worst = max(cells, key=lambda row: row.delta_nll)
    return [
        _bits(cells[0].bits, cells[2].bits),
        *([row.kl] for row in cells),
        [worst.delta_nll, worst.delta_nll_low, worst.delta_nll_high],
    ]


def _bits(one: float | None, other: float | None) -> list[float]:
    """Of both models, or once where they print alike."""
    assert one is not None
    assert other is not None
    return [one] if f"{one:.2f}" == f"{other:.2f}" else [one, other]


def family_table(bits: str) -> Registered:
    header = (bits, "bits", "SmolLM2: two passes", "step 16", "Qwen2.5: two passes", "step 16")
    return Registered(
        FAMILIES,
        (*header, "largest ΔNLL of the four [95 %]"),
        family,
        bold=lambda label: label in records.front(FAMILIES),
    )


def option(label: str) -> Figures:
    cells = [one[label] for one in four("options-h200")]
    return [_bits(cells[0].bits, cells[2].bits), *([row.kl] for row in cells)]


def whole_test(label: str) -> Figures:
    row = rows("whole-test-h200")[label]
    if label == "exact":
        return [[16], [row.ppl], [], []]
    assert row.bits is not None
    return [[row.bits], [row.ppl], [row.delta_nll, row.delta_nll_low, row.delta_nll_high], [row.kl]]


STEPS = {label: spec for spec, label in LADDER.items()}
SPELLED = {"asym4:group_size=32,key_axis=channel": "asym4:key_axis=channel,group_size=32"}  # as families-h200 has it


def ladder(label: str) -> Figures:
    spec = SPELLED.get(STEPS[label], STEPS[label])
    smollm2, _, qwen, _ = (cell[spec] for cell in four(FAMILIES))
    assert smollm2.bits is not None
    return [[smollm2.bits], *([row.delta_nll, row.delta_nll_se] for row in (smollm2, qwen))]


REMEDIES = {
    "as it is": "{}",
    "unbiased(…)": "unbiased({})",
    "centred(…)": "centred({})",
    "exact_first_layers=1": "{}:exact_first_layers=1",
    "zero=integer": "{}:zero=integer",
    "clip(…):c=0.96": "clip({}):c=0.96",
    "sink_tokens=4": "{}:sink_tokens=4",
}
CLIPPED = {"clip(hadamard(asym4)):c=0.96": "hadamard(clip(asym4):c=0.96)"}  # what is rotated is clipped
HARSH = ("asym4", "hadamard(asym4)", "turbo4")


def remedy(label: str) -> Figures:
    _, _, two_pass, steps = four(FAMILIES)
    made = [REMEDIES[label].format(scheme) for scheme in HARSH]
    specs = [CLIPPED.get(spec, spec) for spec in made]
    return [[cell[spec].delta_nll for cell in (two_pass, steps)] if spec in two_pass else [] for spec in specs]


def decoding(label: str) -> Figures:
    own = records.decoded("decoding-h200")[label]
    matched = records.decoded("decoding-h200")[f"{label} (matched)"]
    last = own["stepwise (step 1)"]
    assert last.bits is not None
    assert last.times is not None
    assert last.times_low is not None
    assert last.times_high is not None
    return [
        [last.bits],
        *([row.delta_nll] for row in own.values()),
        [last.times, last.times_low, last.times_high],
        [row.delta_nll for row in matched.values()],
    ]


def second_trap(label: str) -> Figures:
    return [
        [row.delta_nll, row.delta_nll_low, row.delta_nll_high]
        for row in records.decoded("decoding-h200")[label].values()
    ]


TRAP = {
    "exact": "exact",
    "transformers, HQQ 8 bit": "transformers-hqq8",
    "transformers, HQQ 4 bit": "transformers-hqq4",
    "transformers, HQQ 2 bit": "transformers-hqq2",
    "int8": "int8",
    "int4": "int4",
}


def trap(label: str) -> Figures:
    """One pass is printed to its last digit."""
    single, two = records.run("trap-h100/single-pass"), records.run("trap-h100/two-pass")
    _, body = trap_table(single, two)
    in_one = next(float(one) for name, one, _ in body if name == TRAP[label])
    row = rows("trap-h100/two-pass")[TRAP[label]]
    return [[in_one], [row.ppl] if label == "exact" else [row.ppl, row.delta_pct]]


MEASURES = {
    "error of the attention output": "output_key",
    "predicted by one backward pass, Σ(g·e)²": "key_square",
    "KL of the attention scores": "attention_kl",
    "error of the centred logits": "logit_error",
    "relative error of K": "key_error",
}


def measure(label: str) -> Figures:
    row = records.measure_ranks("explained-h100", "asym2:key_axis=channel,group_size=32: keys")[MEASURES[label]]
    return [[row.spearman_kl, row.spearman_kl_low, row.spearman_kl_high]]


ENGINE_ROWS = {
    "SmolLM2, K and V in q8_0": ("smollm2", "q8_0/q8_0 rotated"),
    "SmolLM2, K and V in q4_0": ("smollm2", "q4_0/q4_0 rotated"),
    "SmolLM2, q4_0, not rotated": ("smollm2", "q4_0/q4_0 bare"),
    "Qwen2.5, K and V in q4_0": ("qwen", "q4_0/q4_0 rotated"),
    "Qwen2.5, q4_0, not rotated": ("qwen", "q4_0/q4_0 bare"),
}


def engine(label: str) -> Figures:
    model, row = ENGINE_ROWS[label]
    record = records.llama_cpp(model)
    theirs = next(one["rows"][row]["kl"] for one in record["engines"] if row in one["rows"])
    ours = record["ours"]["rows"]
    return [[theirs], *([ours[f"{row}, {way}"]["kl"]] for way in ("matched", "two-pass", "step 16", "step 1"))]


REGISTERED = (
    *map(family_table, ("8 bits", "about 4 bits", "about 3 bits", "about 2 bits")),
    Registered(FAMILIES, ("", "bits", "SmolLM2", "Qwen2.5"), ladder),
    Registered(FAMILIES, ("", "`asym4`", "`hadamard(asym4)`", "`turbo4`"), remedy),
    Registered(
        "decoding-h200",
        (
            "", "bits", "two passes", "step 16", "step 1", "times [95 %]",
            "with equal tails and sinks: two passes · step 16 · step 1",
        ),
        decoding,
    ),
    Registered(
        "options-h200",
        ("options", "bits", "SmolLM2: two passes", "step 16", "Qwen2.5: two passes", "step 16"),
        option,
    ),
    Registered("decoding-h200", ("ΔNLL [95 %]", "two passes", "step 16", "step 1"), second_trap),
    Registered("whole-test-h200", ("the whole test set", "bits", "ppl", "ΔNLL [95 %]", "KL"), whole_test),
    Registered("trap-h100", ("cache", "one pass", "two passes"), trap),
    Registered("explained-h100", ("error measure", "ρ with KL"), measure),
    Registered("llama-cpp", ("KL, nats a token", "llama.cpp", "row that does the same", "two passes", "step 16", "step 1"), engine),
)  # fmt: skip


def registered(header: tuple[str, ...]) -> Registered | None:
    return next((one for one in REGISTERED if one.header == header), None)
