"""The trap of a single pass, from its two records: the table, and whether it showed."""

from kvdelta.analysis.reading import summary
from kvdelta.analysis.reading.tables import Table, signed
from kvdelta.harness.records.run import Run


def trap_table(single: Run, two: Run) -> Table:
    """Perplexity of every cache in one pass, to the last digit, and in two."""
    body = []
    in_one, in_two = summary.perplexities(single), summary.perplexities(two)
    for contender, one, other in zip(two.contenders, in_one, in_two, strict=True):
        change = "" if contender.lossless else f" ({signed(100 * (other / in_two[0] - 1), 2)} %)"
        body.append([contender.label, repr(one), f"{other:.4f}{change}"])
    return ["cache", "perplexity, single pass", "perplexity, two passes"], body


def trap_verdict(single: Run, two: Run) -> tuple[bool, list[str]]:
    """Did the trap show, and what happened, in sentences.

    It shows where one pass gives all quantized caches (all contenders but the first) losses equal to the last bit, and
    two passes give all different ones.
    """
    if failed := [contender.label for run in (single, two) for contender in run.contenders if contender.error]:
        return False, [f"Nothing is shown, since {failed[0]} failed; the lines above say why."]
    in_one, in_two = ([sum(w.nll[i] for w in run.windows) for i in range(len(run.contenders))] for run in (single, two))
    if len(set(in_one[1:])) > 1:
        return False, ["Not as expected: in one pass the losses of the quantized caches differ, so something was read."]
    if len(set(in_two)) < len(in_two):
        return False, ["Not as expected: in two passes some losses are bit-identical, so something was not read."]
    tokens = sum(w.count for w in single.windows)
    gap = (in_one[0] - in_one[1]) / tokens
    if gap:
        why = f"differs from theirs by {abs(gap):.1e} nats a token, which is the round-off of another cache class"
    else:
        why = "equals theirs to the last bit too"
    return True, [
        "In one pass all quantized caches give the same loss to the last bit, 8 and 2 bits alike: the cache was written "
        "and never read. In two passes the suffix reads it, and they differ.",
        f"The exact cache's single-pass loss {why}.",
    ]
