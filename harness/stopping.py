"""Stop when it is known: `until_se` ends a run once each scheme's standard error of ΔNLL is under it.

Windows are visited in van der Corput's order (1935): every prefix is spread over the text, and the first 2^k of N are those
that `--windows 2^k` would choose among them. The errors are looked at after 16, 32, 64, … windows, at most log2 of them.

What looking does: a run that stops when its error is small stops sooner where the error happens to be underestimated, so the
interval of a run of that length covers less than it says (Chow and Robbins 1965 hold in the limit of many windows). So the
looks are fixed beforehand, and with K of them the interval and p are those of level 1 − 0.05/K (Bonferroni): with 95 % no
look's interval misses, whichever one the run stops at and whatever made it stop, for any two schemes.

Simulated (6,000 runs a case, 64 or 512 windows, stopped after about 12, 24, 48 or 200): coverage of the 95 % interval is
0.98 to 0.996 where differences of windows are normal or heavy-tailed (t with 3 and 2.5 degrees of freedom), where without
the correction it is 0.94 to 0.96. Skewed ones are harder, as they are for a run of fixed length: lognormal with σ = 0.5 0.95 to 0.985
(0.90 to 0.94 without; 16 windows unstopped: 0.93), with σ = 1 0.90 to 0.93 (0.84 to 0.86; 16 unstopped: 0.86). Drawn from the 64
windows of each of the 27 schemes in results/wikitext2-h100: 0.967 to 0.99 (0.92 to 0.95 without).
"""

from math import inf, isnan

from kvdelta.harness import statistics
from kvdelta.harness.records.run import Run, Settings

FIRST_LOOK = 16  # the error of fewer windows is too easily underestimated


def looks(settings: Settings) -> list[int]:
    """After how many windows the errors are looked at: doubling, none in the last third, and after all. Without until_se only
    then."""
    count, at = len(settings.windows), FIRST_LOOK
    early: list[int] = []
    while settings.until_se is not None and 3 * at <= 2 * count:
        early.append(at)
        at *= 2
    return [*early, count]


def visits(settings: Settings) -> list[int]:
    """The windows in the order in which they are scored: as they come, with until_se in van der Corput's."""
    if settings.until_se is None:
        return settings.windows
    return [settings.windows[place] for place in spread_order(len(settings.windows))]


def spread_order(count: int) -> list[int]:
    """0 … count − 1 in van der Corput's order: every prefix is spread over all."""
    bits = (count - 1).bit_length()
    reversed_bits = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits))
    return list(dict.fromkeys(i * count >> bits for i in reversed_bits))


def largest_error(run: Run) -> tuple[float, str]:
    """The largest standard error of ΔNLL against exact, in nats a token, and whose it is. Rows that failed and lossless ones
    do not count; (0, "") where no other is left."""
    counts = [window.count for window in run.windows]
    errors = [(0.0, "")]
    for row, contender in enumerate(run.contenders):
        if not contender.lossless and contender.error is None:
            more = [window.nll[row] - window.nll[0] for window in run.windows]
            _, error = statistics.clustered_mean(more, counts)
            errors.append((inf if isnan(error) else error, contender.label))  # one window has none
    return max(errors)


def verdict(run: Run) -> str | None:
    """How a run ends at this look, in words; None where it goes on."""
    limit, windows, planned = run.settings.until_se, len(run.windows), len(run.settings.windows)
    if limit is None:
        return None
    error, label = largest_error(run)
    largest = f"the largest is {error:.2g} ({label})" if label else "there is none to wait for"
    if error < limit:
        return (
            f"stopped after {windows} of {planned} windows: all standard errors of ΔNLL are under {limit:g}, {largest}"
        )
    if windows == planned:
        return f"all {planned} windows are scored, and not all standard errors of ΔNLL are under {limit:g}: {largest}"
    return None
