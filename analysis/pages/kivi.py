"""A section of its own for the records of `reproduce kivi-vs-int4`: from outlier channels to perplexity."""

from collections.abc import Sequence

from kvdelta.analysis.pages.parts import Section
from kvdelta.analysis.reading.headline import equal_bits_headline
from kvdelta.analysis.reading.joined import Joined
from kvdelta.analysis.reading.kivi_vs_int4 import EQUAL_BITS, LADDER, PUBLISHED, error_specs, kivi_tables, ratios
from kvdelta.analysis.reading.tables import Table
from kvdelta.analysis.reading.worked_example import worked_example
from kvdelta.schemes.errors import UserError


def kivi_section(measured: Sequence[Joined]) -> Section | None:
    """None where no records have all of its schemes."""
    found = next((joined for joined in measured if _complete(joined)), None)
    if found is None:
        return None
    run = found.runs[0][1]
    shown = kivi_tables(run)
    text = [
        "The same few channels of the keys are large in every token (`Channels that stand out`), so a group along channels (per token) "
        "spends its range on them. A group along tokens (per channel) holds numbers of one size: the axis decides the error.",
        "Values per channel rebuild V no worse and give the worse attention output: attention sums values over tokens, and a group "
        "along tokens mixes those that attention looks at with those that it does not.",
        equal_bits_headline(run, *EQUAL_BITS),
        *([example] if (example := worked_example(found)) else []),
    ]
    published = "Ratios of errors at 2 bits, groups of 32, beside those published (Liu et al. 2024, arXiv 2402.02750, table 2, Llama-2-13B)"
    lines = [[name, f"{here:.2f}", str(there)] for name, here, there in ratios(found)]
    tables = [
        (published, (["ratio", "here", "published"], lines)),
        (
            "ΔNLL ± standard error, by axis and bits: asymmetric, groups of 32",
            shown["Asymmetric, groups of 32: ΔNLL ± SE"],
        ),
        ("One change at a time, from naive INT4 to KIVI", _columns(shown["One change at a time"])),
    ]
    return Section("kivi", "KIVI against naive INT4", text, tables=tables)


def _complete(joined: Joined) -> bool:
    if not joined.runs or not joined.errors:
        return False
    scored = {
        contender.label for contender in joined.runs[0][1].contenders
    }  # the same scheme under two names is there once
    errors = {spec for spec in error_specs() if "bits=2" in spec}
    if not scored >= {*PUBLISHED, *LADDER} or not set(joined.errors[0][1].labels) >= errors:
        return False
    try:
        return bool(kivi_tables(joined.runs[0][1]))
    except UserError:  # some scheme of the grid is missing
        return False


def _columns(table: Table) -> Table:
    names = ("scheme", "bits", "ΔNLL [95 %]", "KL")
    at = [table[0].index(name) for name in names]
    return list(names), [[row[i] for i in at] for row in table[1]]
