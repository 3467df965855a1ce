"""Of docs/two-passes.md, docs/limits.md and docs/comparing.md: what decoding costs beside two passes."""

from tests.docs.claiming import Claim, Unchecked
from tests.docs.records import decoded, replayed, rows, run

RECORD, CPU = "decoding-h200", "decoding-cpu"
LAST = "stepwise (step 1)"
SCHEMES = ("int4", "asym4", "hqq4", "turbo4", "hadamard(asym4)", "kivi4", "turbo2", "kivi2", "kvarn:bits=2", "oscar")


def of(scheme, protocol=LAST):
    return decoded(RECORD)[scheme][protocol]


def range_of_times(form="{}"):
    times = [of(form.format(scheme)).times for scheme in SCHEMES]
    return min(times), max(times)


def trap_setting():
    """Tokens that are scored, tokens of the prefix."""
    settings = run("trap-h100/two-pass").settings
    return run("trap-h100/two-pass").windows[0].count, settings.window_length - settings.score_length


def turned():
    two = {scheme: of(scheme, "two-pass").delta_nll for scheme in ("turbo2", "kivi2", "int4", "oscar")}
    one = {scheme: of(scheme).delta_nll for scheme in two}
    return [
        one["turbo2"] / one["kivi2"],
        two["turbo2"] < two["kivi2"],
        0.3 < two["int4"] / two["oscar"] < 0.37,
        one["int4"] > one["oscar"],
    ]


def on_cpu():
    int4, tail, kivi2 = (decoded(CPU)[scheme][LAST] for scheme in ("int4", "matched(int4):tail=128", "kivi2"))
    equal = decoded(CPU)["matched(kivi2):tail=128"][LAST]
    return [
        *(int4.kl_times, int4.kl_times_low, int4.kl_times_high),
        *(tail.kl_times, tail.kl_times_low, tail.kl_times_high),
        128,
        kivi2.kl_times,
        round(equal.kl_times, 1) == round(kivi2.kl_times, 1),
    ]


def second_trap():
    int4, kivi4, kivi2 = (of(scheme).times for scheme in ("int4", "kivi4", "kivi2"))
    more, better_before, *_ = turned()
    return [int4, 128, kivi4, more, better_before, round(kivi2, 1) == round(kivi4, 1)]


def long_text():
    smollm2, qwen = replayed("replay-h100"), replayed("replay-qwen-h200")
    int4, int4_qwen, unbiased = smollm2["int4"], qwen["int4"], qwen["unbiased(turbo4)"]
    return [
        int4.kl, int4.kl_low, int4.kl_high, int4.times, int4_qwen.kl, int4_qwen.kl_low, int4_qwen.kl_high, int4_qwen.times,
        smollm2["kivi4"].kl, qwen["kivi4"].kl, smollm2["kivi4"].times, smollm2["kivi2"].kl, qwen["kivi2"].kl,
        smollm2["kivi2"].times, qwen["kivi2"].times, smollm2["turbo4"].kl, smollm2["turbo4"].times, qwen["turbo4"].kl,
        unbiased.kl, unbiased.times, round(qwen["kivi4"].times, 1) == round(smollm2["kivi4"].times, 1),
    ]  # fmt: skip


def growing():
    both = {
        (folder, scheme): row
        for folder in ("replay-h100", "replay-qwen-h200")
        for scheme, row in replayed(folder).items()
    }
    kivi2 = both["replay-h100", "kivi2"]
    grows = [key for key, row in both.items() if row.slope_low > 0]
    return kivi2.last, kivi2.slope, kivi2.slope_low, kivi2.slope_high, grows == [("replay-h100", "kivi2")]


def replay_setting():
    settings = [run(f"{folder}/stepwise").settings for folder in ("replay-h100", "replay-qwen-h200")]
    assert len({(len(one.windows), one.window_length, one.score_length) for one in settings}) == 1
    return len(settings[0].windows), settings[0].window_length - settings[0].score_length, settings[0].score_length - 1


CLAIMS = (
    Claim("the whole window in one forward, its last {} tokens scored", lambda: trap_setting()[:1]),
    Claim(
        "{} tokens fill the cache, then the same {} tokens are scored by a forward that reads it",
        lambda: trap_setting()[::-1],
    ),
    Claim(
        "Perplexity of the same {} windows of the WikiText-2 test set", lambda: [len(run("trap-h100/two-pass").windows)]
    ),
    Claim("ΔNLL on the same {} windows of the WikiText-2 test set", lambda: [len(run(f"{RECORD}/two-pass").windows)]),
    Claim("`kvdelta show results/decoding-h200` prints all {} rows", lambda: [len(decoded(RECORD))]),
    Claim(
        "Two passes say that `turbo2` loses less than `kivi2`, and `int4` a third of `oscar`; token by token `turbo2` loses {} times what `kivi2` does, and `int4` more than `oscar`",
        turned,
    ),
    Claim(
        "two passes understate by {} to {} times instead of {} to {}",
        lambda: [*range_of_times("{} (matched)"), *range_of_times()],
    ),
    Claim(
        "gives int4 {} times the KL of two passes [{}, {}] token by token, {} [{}, {}] with its newest {} tokens exact, and kivi2 {} either way",
        on_cpu,
    ),
    Claim(
        "On the packaged text and model, {} windows, `kvdelta reproduce decoding`",
        lambda: [len(run(f"{CPU}/two-pass").windows)],
    ),
    Claim("Two passes understate decoding, by {} to {} times token by token on SmolLM2", range_of_times),
    Claim(
        "Token by token `int4` loses {} times as much, KIVI, which keeps its newest {} tokens exact, {} times, and `turbo2`, better than `kivi2` by two passes, {} times what `kivi2` loses",
        second_trap,
    ),
    Claim("{} windows, SmolLM2-135M; `kvdelta reproduce decoding`", lambda: [len(run(f"{RECORD}/stepwise-1").windows)]),
    Claim("`int4` looks {} times better than it decodes", lambda: [of("int4").times]),
    Claim("{} prompts of {} tokens and {} written after each", replay_setting),
    Claim(
        "int4's KL is {} [{}, {}] on SmolLM2, {} times what the same tokens cost in one forward, and {} [{}, {}] on Qwen2.5, {} times; kivi4 {} and {} ({} times), kivi2 {} and {} ({}, {}). On SmolLM2 turbo4 {} ({} times), on Qwen2.5 {}, without the bias of the keys {} ({})",
        long_text,
    ),
    Claim(
        "Nowhere is the error shown to grow along {} tokens but for kivi2 on SmolLM2, by {} [{}, {}] nats per 100 tokens",
        growing,
    ),
    Claim("scales, zeros and 128 exact tokens make {} at 1536 tokens", lambda: [rows("demo")["kivi2"].bits]),
    Claim('"2 bits" are {}', lambda: [rows("demo")["kivi2"].bits]),
)

UNCHECKED = (
    Unchecked(
        "with the first 4 and the newest 128 to 255 exact in every row",
        "settings of the command behind it, and its blocks of 128",
    ),
    Unchecked("(11 min on 2 cores, most of it step 1;", "a timing, of the command before it"),
    Unchecked("OScaR and KVarN up to 127 that fill no block yet", "what the schemes' blocks of 128 are"),
    Unchecked("the suffix in chunks of 16 tokens", "a setting of the command"),
)
