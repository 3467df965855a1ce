"""Which exact tokens the rows of a run were given, so that all have the same."""

from kvdelta.harness.records.run import MATCHED, Run
from kvdelta.schemes.spec import split_spec

GIVEN = ("sinks", "tail", "block")


def exact_tokens(name: str) -> dict[str, int]:
    """What a `matched(…)` around all of a canonical name gives it, by "sinks", "tail" and "block"; empty of any other."""
    if not name.startswith("matched("):
        return {}
    return {field: int(count) for field, count in split_spec(name).items if field in GIVEN}


def matching_lines(run: Run) -> list[str]:
    """Which exact tokens every scheme of the run, or every one whose label says so, has alike, where that was asked for."""
    given = {one.label: exact_tokens(one.name) for one in run.contenders if not one.lossless}
    rules = [rule for rule in given.values() if rule]
    if not rules or any(rule != rules[0] for rule in rules):
        return []
    some = len(rules) < len(given)
    if some and not all(label.endswith(MATCHED) for label, rule in given.items() if rule):
        return []
    sinks, tail, block = (rules[0].get(name) for name in GIVEN)
    said = [] if sinks is None else [f"the first {sinks}"]
    if tail is not None:
        said.append(f"the newest {_newest(run, tail, sinks or 0, block)}")
    which = f"in the rows marked {MATCHED.strip()}" if some else "in every scheme"
    rest = "; their own windows are not" if tail is not None else ", and the newest that fill no group behind them"
    return [f"{which} {' and '.join(said)} tokens are exact{rest}"]


def _newest(run: Run, tail: int, sinks: int, block: int | None) -> str:
    """How many of the newest tokens are exact where tokens leave the tail in blocks."""
    if block is None:  # of records from before there were blocks, and of specs without: each row by its own groups
        return f"{tail}, and those before them that fill no group of the row,"
    settings = run.settings
    if settings.protocol != "two-pass" and block > 1:
        return f"{tail} to {tail + block - 1}"
    past = settings.window_length - settings.score_length - sinks - tail
    behind = past % block
    return f"{tail + behind} ({tail}, and {behind} that fill no block of {block})" if behind else str(tail)
