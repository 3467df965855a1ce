"""Which exact tokens the rows of a run were given, so that all have the same."""

from kvdelta.harness.records.run import Run
from kvdelta.schemes.spec import split_spec


def exact_tokens(name: str) -> dict[str, str]:
    """What a `matched(…)` around all of a canonical name gives it, by "tail" and "sinks"; empty of any other."""
    if not name.startswith("matched("):
        return {}
    return {field: count for field, count in split_spec(name).items if field in WHICH}


def matching_lines(run: Run) -> list[str]:
    """Which exact tokens every scheme of the run has, where that was asked for; none else."""
    given = [exact_tokens(contender.name) for contender in run.contenders if not contender.lossless]
    if not given or not given[0] or any(one != given[0] for one in given):
        return []
    said = " and ".join(f"the {WHICH[name]} {count}" for name, count in sorted(given[0].items()))
    return [
        f"in every scheme {said} tokens are exact, and those after the newest that fill no group; its own window is not"
    ]


WHICH = {"sinks": "first", "tail": "newest"}
