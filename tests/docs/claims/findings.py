"""Of docs/findings.md, its first part: what holds on both models."""

from tests.docs.claiming import Claim, Unchecked
from tests.docs.records import (
    carried_grid,
    deltas,
    four,
    kls,
    places,
    plain,
    rows,
    run,
    verified,
)

FAMILIES, SINKS = "families-h200", "sinks-h200"
LAYOUT4, LAYOUT3, LAYOUT2 = (f"asym{bits}:key_axis=channel,group_size=32" for bits in (4, 3, 2))
K4V2, K2V4 = (
    f"asymmetric:key_bits={key},value_bits={value},key_axis=channel,group_size=32" for key, value in ((4, 2), (2, 4))
)
K4V3 = "kcvt:key_bits=4,value_bits=3,sink_tokens=4"
KCVT43 = "kcvt:key_bits=4,value_bits=3"
SMOLLM2, QWEN = "SmolLM2", "qwen"
ROTATED = ("turbo4", "hadamard(asym4)", "llama.cpp:type=q4_0", "vllm/int4_per_token_head", "exllamav3:bits=4")


def bits(scheme, cell=0):
    return four(FAMILIES)[cell][scheme].bits


def times(scheme, other, grid=FAMILIES):
    return [mine / theirs for mine, theirs in zip(kls(grid, scheme), kls(grid, other), strict=True)]


def setting():
    of, settings = carried_grid(FAMILIES), [run(place).settings for place in places(FAMILIES)]
    assert len({(len(one.windows), one.window_length, one.score_length, one.dtype) for one in settings}) == 1
    return (
        len(of.grid.names),
        len(settings[0].windows),
        settings[0].window_length - settings[0].score_length,
        settings[0].score_length,
    )


def hidden_by_delta():
    row = four(FAMILIES)[2]["kvquant:bits=3"]
    return row.delta_nll, row.delta_nll_low, row.delta_nll_high, row.kl


def recommended():
    found = [verified("recommend-h200/both", K4V3, model) for model in (SMOLLM2, QWEN)]
    kivi = [verified("recommend-h200/both", "kivi:bits=3,group_size=64", model) for model in (SMOLLM2, QWEN)]
    return [
        found[0]["windows"],
        *(one[end] for one in found for end in ("loss", "loss_low", "loss_high")),
        kivi[0]["bits"],
        *(one["more"] for one in kivi),
    ]


def sinks_setting():
    settings = [run(place).settings for place in places(SINKS)]
    lengths = {one.window_length - one.score_length for one in settings}
    assert len(lengths) == 1
    assert (lengths.copy().pop() - 4) % 128 == 0  # the longest block of its schemes
    return lengths.pop(), 4, len(run(places(SINKS)[0]).contenders) - 1


def sinks_of(scheme):
    """KL in the four cells without and with four sinks, and the bits that they cost."""
    with_sinks = f"{scheme}{',' if ':' in scheme else ':'}sink_tokens=4"
    more = four(SINKS)[0][with_sinks].bits - four(SINKS)[0][scheme].bits
    return [*kls(SINKS, scheme), *kls(SINKS, with_sinks), more]


def per_token_4_bits():
    """Schemes of keys per token in four bits, whose bias stays."""
    named = (
        "int4",
        "polarquant",
        "asym4",
        "hqq4",
        "mlx:bits=4",
        "nf4",
        "nvfp4",
        "mxfp4",
        "q4_0",
        "q4_1",
        "iq4_nl",
        "asym4:group_size=32",
        *ROTATED,
    )
    return [kls(FAMILIES, scheme)[2] for scheme in named]


def no_more_than_kivi4():
    mine, kivi4 = kls(FAMILIES, "unbiased(oscar:bits=4)"), kls(FAMILIES, "kivi4")
    smollm2 = [
        s for s, row in four(FAMILIES)[0].items() if row.bits and row.bits <= bits("unbiased(oscar:bits=4)") + 0.005
    ]
    least = min(smollm2, key=lambda s: four(FAMILIES)[0][s].kl)
    same = four(FAMILIES)[0][least].kl == mine[0]  # without the bias of its keys SmolLM2's is the same scheme
    return bits("unbiased(oscar:bits=4)", 2), same, max(mine[2] - kivi4[2], mine[3] - kivi4[3])


def less_in_steps():
    _, _, two_pass, steps = four(FAMILIES)
    return len([s for s, row in two_pass.items() if row.kl >= 0.2 and steps[s].kl < row.kl])


def token_by_token():
    one, sixteen = rows("stepwise-1-qwen-h200"), subset_kl(places(FAMILIES)[3], "stepwise-1-qwen-h200")
    int4 = one["int4"]
    return [
        len(run("stepwise-1-qwen-h200").windows),
        int4.delta_nll, int4.delta_nll_low, int4.delta_nll_high, int4.kl, sixteen["int4"],
        one["asym4"].kl, sixteen["asym4"], one["kivi4"].kl, sixteen["kivi4"],
    ]  # fmt: skip


def subset_kl(folder, of):
    """KL by scheme over the windows that another run scored too."""
    indices = {window.index for window in run(of).windows}
    windows = [window for window in run(folder).windows if window.index in indices]
    assert len(windows) == len(indices)
    count = sum(window.count for window in windows)
    return {plain(one.label): sum(w.kl[i] for w in windows) / count for i, one in enumerate(run(folder).contenders)}


CLAIMS = (
    Claim(
        "each by two protocols, {} schemes and caches, the same {} windows of the WikiText-2 test set for all of a model ({} tokens cached, {} read them)",
        setting,
    ),
    Claim("KL of {} schemes in four cells", lambda: setting()[:1]),
    Claim("on Qwen2.5 `kvquant:bits=3` has a ΔNLL of {} [{}, {}] by two passes, and a KL of {}", hidden_by_delta),
    Claim("on average `k4v3` holds {} bits", lambda: [verified("recommend-cpu", K4V3)["bits"]]),
    Claim("skewness {} for `kvarn:bits=4` in two passes", lambda: [four(FAMILIES)[2]["kvarn:bits=4"].skewness]),
    Claim(
        "KIVI's layout at 4 bits, with or without its exact tail, has a KL of at most {} (ΔNLL {}), KCVT, the same axes with longer groups, at most {} at {} bits",
        lambda: [
            max(kls(FAMILIES, LAYOUT4) + kls(FAMILIES, "kivi4")),
            max(deltas(FAMILIES, LAYOUT4) + deltas(FAMILIES, "kivi4")),
            max(kls(FAMILIES, "kcvt4")),
            bits("kcvt4"),
        ],
    ),
    Claim(
        "`int4` at {} bits has {} to {} times that of `kivi4`, and no 4-bit scheme with keys per token comes under {} on Qwen2.5 unless the bias is taken off first",
        lambda: [
            bits("int4"),
            min(times("int4", "kivi4")),
            max(times("int4", "kivi4")),
            0.02,
            min(per_token_4_bits()) > 0.02,
        ],
    ),
    Claim(
        "K 4, V 2 bits has a third of the KL of K 2, V 4 or less (at most {} against {} to {})",
        lambda: [
            max(kls(FAMILIES, K4V2)),
            min(kls(FAMILIES, K2V4)),
            max(kls(FAMILIES, K2V4)),
            max(times(K4V2, K2V4)) <= 1 / 3,
        ],
    ),
    Claim(
        "On {} fresh windows, decoded in steps of 16, it costs KL {} [{}, {}] on SmolLM2 and {} [{}, {}] on Qwen2.5; uniform KIVI of {} bits costs {} and {} more",
        recommended,
    ),
    Claim(
        "`unbiased(oscar:bits=4)`, {} bits, has the least KL of its size on SmolLM2 and no more than {} more than `kivi4`, which is larger, on Qwen2.5",
        no_more_than_kivi4,
    ),
    Claim(
        "`unbiased(kvarn:bits=4)` at most {} at {} bits",
        lambda: [max(kls(FAMILIES, "unbiased(kvarn:bits=4)")), bits("unbiased(kvarn:bits=4)")],
    ),
    Claim(
        "`int4` {} and {} times, `kivi4` {} times on both",
        lambda: [
            kls(FAMILIES, "int4")[1] / kls(FAMILIES, "int4")[0],
            kls(FAMILIES, "int4")[3] / kls(FAMILIES, "int4")[2],
            kls(FAMILIES, "kivi4")[1] / kls(FAMILIES, "kivi4")[0],
            round(kls(FAMILIES, "kivi4")[3] / kls(FAMILIES, "kivi4")[2], 1) == 1.2,
        ],
    ),
    Claim(
        "{} schemes that have a KL of 0.2 or more on Qwen2.5 have less there in steps of 16", lambda: [less_in_steps()]
    ),
    Claim(
        "on {} windows of Qwen2.5 `int4` has a ΔNLL of {} [{}, {}] and KL {}, where steps of 16 give {}, `asym4` {} and {}, `kivi4` {} and {}",
        token_by_token,
    ),
    Claim("With {} tokens cached, so that {} sinks cut no group ([records], {} rows)", sinks_setting),
    Claim(
        "they take its KL at 2 bits from {}, {}, {} and {} to {}, {}, {} and {} for {} bits", lambda: sinks_of(LAYOUT2)
    ),
    Claim(
        "that of KCVT with K 4, V 3 bits from {}, {}, {} and {} to {}, {}, {} and {}, and do less for rotations (`turbo4` on SmolLM2 from {} and {} to {} and {})",
        lambda: [*sinks_of(KCVT43)[:-1], *sinks_of("turbo4")[:2], *sinks_of("turbo4")[4:6]],
    ),
    Claim(
        "Behind {} tokens they shift the groups, and the newest tokens, which then fill none, stay exact: {} in groups of 32, {} in blocks of 64, {} in blocks of 128",
        lambda: [1536, *((1536 - 4) % block for block in (32, 64, 128))],
    ),
    Claim(
        "`sink-window:bits=4` has {} to {} times the KL of KCVT with K 4, V 3 bits at the same {} bits",
        lambda: [
            min(times("sink-window:bits=4", "kcvt:key_bits=4,value_bits=3")),
            max(times("sink-window:bits=4", "kcvt:key_bits=4,value_bits=3")),
            bits("kcvt:key_bits=4,value_bits=3"),
            bits("sink-window:bits=4") == bits("kcvt:key_bits=4,value_bits=3"),
        ],
    ),
    Claim(
        "At 8 bits keys per channel have no ΔNLL that {} windows show (KL at most {}); one scale or range a token has on Qwen2.5, most of all in decoding (`asym8` KL {}, `int8` {})",
        lambda: [
            len(run(places(FAMILIES)[0]).windows),
            max(kls(FAMILIES, "kcvt:bits=8") + kls(FAMILIES, "kivi:bits=8")),
            kls(FAMILIES, "asym8")[3],
            kls(FAMILIES, "int8")[3],
            all(
                row.delta_nll_low <= 0 for cell in four(FAMILIES) for row in (cell["kcvt:bits=8"], cell["kivi:bits=8"])
            ),
        ],
    ),
)

UNCHECKED = (
    Unchecked("`k4v3`, keys of 4 bits per channel, values of 3 per token", "what the name says"),
    Unchecked("KVQuant is calibrated on each model, on 12,280 tokens of Wikipedia", "of the calibration's own file"),
)
