"""Is a number that is printed in a text the one that a record gives, to the digits that are printed?"""

import re
from collections.abc import Sequence

NUMBER = r"<?[+−-]?\d+(?:,\d{3})*(?:\.\d+)?"
NUMBERS = re.compile(rf"(?<![\w.]){NUMBER}")
WORDS = dict(
    zip(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"],
        range(13),
        strict=True,
    )
) | {
    "sixteen": 16,
    "fivefold": 5,
    "thirty": 30,
}
ALMOST = 1e-9  # of a unit of the last digit: a half may be rounded either way


def numbers_in(cell: str) -> list[str]:
    return NUMBERS.findall(cell)


def agrees(text: str, value: float) -> bool:
    """Whether `value` is printed as `text`: rounded to its digits; of "<0.0001" whether it is less; of a word whether it rounds to it."""
    plain = text.replace(",", "").replace("−", "-")
    if plain.startswith("<"):
        return 0 <= value < float(plain[1:])
    plain = str(WORDS.get(plain.lower(), plain))
    digits = len(plain.partition(".")[2])
    return abs(float(plain) - value) <= (0.5 + ALMOST) * 10.0**-digits


def differences(texts: Sequence[str], values: Sequence[float]) -> list[str]:
    """What is printed otherwise than the records have it; empty where all is well."""
    if len(texts) != len(values):
        return [f"{len(texts)} numbers are printed ({', '.join(texts)}), and the records give {len(values)}: {values}"]
    return [f"{text} is {value:.7g}" for text, value in zip(texts, values, strict=True) if not agrees(text, value)]
