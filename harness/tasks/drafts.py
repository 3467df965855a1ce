"""A sample before it is tokens: lines to remember, a question and its answers. Drawn with a seed, of the tasks that RULER has (Hsieh et al.
2024, arXiv 2404.06654) and of key–value lookup (Liu et al. 2023, arXiv 2307.03172), in words of our own.

Departures: answers of several parts are asked for in an order, so that they can be teacher-forced, as a list in brackets; cwe has the same common words
at every length in proportion, and its list has no numbers.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kvdelta.harness.tasks.levels import ALL, Level
from kvdelta.harness.tasks.words import NOUNS, codes, hexadecimal, names, numbers

PER_LINE = 10  # words of a list


@dataclass(frozen=True)
class Draft:
    """intro, then lines; question, then lead and answers, with joiner between them.

    places: where in the haystack each line goes, 0 its beginning and 1 its end; None: the lines are the haystack. asked: the
    line that is asked for, where it is one. chance: of a match, where one guesses among what the context has of the kind. tied: there are
    so few lines that other answers are as right.
    """

    intro: str
    lines: tuple[str, ...]
    places: tuple[float, ...] | None
    question: str
    answers: tuple[str, ...]
    chance: float
    lead: str = " "
    joiner: str = ", "
    asked: int | None = None
    tied: bool = False


Make = Callable[[random.Random, Level, float, int], Draft]
"""Of a level and a depth; the last number says how many lines, where they are the haystack."""


def niah_single(rng: random.Random, level: Level, depth: float, many: int) -> Draft:
    (key,), (value,) = names(rng, 1), numbers(rng, 1, level["digits"])
    # a single value has no other beside it: chance is that of a number of so many digits
    return _needles((key,), (value,), (depth,), 0, 1 / (9 * 10 ** (level["digits"] - 1)))


def niah_multikey(rng: random.Random, level: Level, depth: float, many: int) -> Draft:
    count = level["keys"] or many
    keys, values = names(rng, count), numbers(rng, count, level["digits"])
    if level["keys"] == ALL:
        return _needles(keys, values, None, _nearest(depth, count), 1 / len(set(values)))
    places = [depth, *(rng.random() for _ in keys[1:])]
    return _needles(keys, values, places, 0, 1 / len(set(values)))


def _needles(
    keys: Sequence[str], values: Sequence[str], places: Sequence[float] | None, asked: int, chance: float
) -> Draft:
    return Draft(
        "Remember the special numbers in this text.\n",
        tuple(f"The special number of the {key} is {value}.\n" for key, value in zip(keys, values, strict=True)),
        None if places is None else tuple(places),
        f"Question: What is the special number of the {keys[asked]} in the text above?\n"
        f"Answer: The special number of the {keys[asked]} is",
        (values[asked],),
        chance,
        asked=asked,
    )


def niah_multivalue(rng: random.Random, level: Level, depth: float, many: int) -> Draft:
    (key,), values = names(rng, 1), numbers(rng, level["values"], level["digits"])
    return Draft(
        "Remember the special numbers in this text.\n",
        tuple(f"One of the special numbers of the {key} is {value}.\n" for value in values),
        tuple(sorted(rng.random() for _ in values)),
        f"Question: What are all special numbers of the {key}, in the order of the text above?\n"
        f"Answer: The special numbers of the {key} are [",
        tuple(values),
        1 / math.factorial(len(values)),
        lead="",
    )


def vt(rng: random.Random, level: Level, depth: float, many: int) -> Draft:
    hops, chains = level["hops"], level["chains"]
    variables = [word.upper() for word in rng.sample(NOUNS, chains * (hops + 1))]
    values = numbers(rng, chains, 5)
    placed = []
    for chain, value in enumerate(values):
        own = variables[chain * (hops + 1) : (chain + 1) * (hops + 1)]
        said = [f"VAR {own[0]} = {value}\n"] + [f"VAR {b} = VAR {a}\n" for a, b in pairwise(own)]
        placed += zip(sorted(rng.random() for _ in said), said, strict=True)
    placed.sort()
    return Draft(
        "Remember the variables in this text and what they are.\n",
        tuple(line for _, line in placed),
        tuple(place for place, _ in placed),
        f"Question: Which {hops + 1} variables have the value {values[0]} in the text above, directly or through others?\n"
        f"Answer: The {hops + 1} variables with the value {values[0]} are [VAR",
        tuple(variables[: hops + 1]),
        1 / math.perm(len(variables), hops + 1),
        joiner=", VAR ",
    )


def cwe(rng: random.Random, level: Level, depth: float, many: int) -> Draft:
    """Of `many` words one in `one_in` is common; the others are as rare as they can be."""
    top = level["top"]
    common, *rest = [(words := rng.sample(NOUNS, len(NOUNS)))[:top], *words[top:]]
    often = max(2, many // level["one_in"] // top)
    listed = [word for word in common for _ in range(often)]
    listed += [rest[i % len(rest)] for i in range(max(0, many - len(listed)))]
    rng.shuffle(listed)
    order = sorted(common, key=listed.index)
    return Draft(
        "This is a list of words. Some of them are far more common than others.\n",
        _in_lines(listed, ", "),
        None,
        f"Question: {f'What are the {top} most common words' if top > 1 else 'What is the most common word'} in the list above"
        f"{', in the order in which they first occur' if top > 1 else ''}?\n"
        f'Answer: {f"The {top} words that occur most often are [" if top > 1 else "The word that occurs most often is "}"',
        tuple(order),
        1 / math.perm(len(set(listed)), top),
        lead="",
        joiner='", "',
    )


def fwe(rng: random.Random, level: Level, depth: float, many: int) -> Draft:
    """Coded words whose frequencies fall as rank^(−steepness/10)."""
    top, words = level["top"], codes(rng, 40)
    weights = [(rank + 1) ** (-level["steepness"] / 10) for rank in range(len(words))]
    counts = [max(1, round(many * weight / sum(weights))) for weight in weights]
    for rank in range(1, len(words)):  # no two of those asked for, and the next, are equally frequent
        counts[rank] = max(1, min(counts[rank], counts[rank - 1] - (rank <= top)))
    listed = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
    rng.shuffle(listed)
    return Draft(
        "This is a list of coded words. Some of them are more frequent than others.\n",
        _in_lines(listed, " "),
        None,
        f"Question: Which coded word{'s are' if top > 1 else ' is'} the most frequent in the list above"
        f"{f'? Name the first {top}, the most frequent first.' if top > 1 else '?'}\n"
        f'Answer: The most frequent coded word{"s in the list are [" if top > 1 else " in the list is "}"',
        tuple(words[:top]),
        1 / math.perm(len(words), top),
        lead="",
        joiner='", "',
        tied=any(more == less for more, less in pairwise(counts[: top + 1])),
    )


def kv(rng: random.Random, level: Level, depth: float, many: int) -> Draft:
    count = level["pairs"] or many
    drawn = hexadecimal(rng, 2 * count, level["characters"])
    keys, values = drawn[:count], drawn[count:]
    full = level["pairs"] == ALL
    asked = _nearest(depth, count) if full else 0
    return Draft(
        "This text has pairs of keys and values.\n",
        tuple(f'"{key}": "{value}",\n' for key, value in zip(keys, values, strict=True)),
        None if full else (depth, *(rng.random() for _ in keys[1:])),
        f'The value of the key "{keys[asked]}" in the text above is:\n"{keys[asked]}": "',
        (values[asked],),
        1 / len(set(values)),
        lead="",
        asked=asked,
    )


TASKS: dict[str, Make] = {
    "niah-single": niah_single,
    "niah-multikey": niah_multikey,
    "niah-multivalue": niah_multivalue,
    "vt": vt,
    "cwe": cwe,
    "fwe": fwe,
    "kv": kv,
}


def _nearest(depth: float, count: int) -> int:
    return round(depth * (count - 1))


def _in_lines(words: list[str], between: str) -> tuple[str, ...]:
    pieces = [words[i : i + PER_LINE] for i in range(0, len(words), PER_LINE)]
    return tuple(between.join(piece) + f"{between.rstrip()}\n" for piece in pieces)
