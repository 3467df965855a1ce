"""Which sections a page has, in their order; and for each that it has no records of, the command that makes them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from kvdelta.analysis.pages import choices, compared, evidence, grown, kivi, layers
from kvdelta.analysis.pages.found import Found
from kvdelta.analysis.pages.glance import main_places
from kvdelta.analysis.pages.keys import Keys
from kvdelta.analysis.pages.parts import Section

MAKES = {
    "Every scheme, quality against bytes, audit": "`kvdelta compare`",
    "Two passes beside decoding": "`kvdelta compare --protocol two-pass --protocol stepwise --step 16`",
    "By context length": "`kvdelta sweep --depths 512,1K,2K`",
    "By position": "`kvdelta replay`, or a run with its tokens/",
    "Errors by layer, and what a layer costs": "`kvdelta errors` and `kvdelta sensitivity`",
    "Error against loss": "`kvdelta errors` on the windows of a compare or of a sensitivity",
    "Channels that stand out": "`kvdelta outliers`",
    "Bits by layer": "`kvdelta allocate --budget 4`",
    "Recommended": "`kvdelta recommend --budget 4.5`",
    "What it takes": "`kvdelta bench`",
}


def sections_of(found: Found, rows: Sequence[dict[str, Any]], keys: Keys, command: str) -> list[Section]:
    """A section without records is none; the last one says what would fill it."""
    fronts = Counter(row["s"] for row in rows if row["front"])  # in how many runs
    main = main_places(found.cells)
    made = [
        kivi.kivi_section(found.measured),
        compared.table_section(found.cells) if found.cells else None,
        compared.front_section(rows, main),
        compared.protocol_section(found.cells, fronts, keys),
        choices.recommended_section(found),
        grown.depth_section(found, fronts, keys),
        grown.position_section(found, fronts, keys),
        layers.layers_section(found.measured, keys),
        layers.relations_section(found.measured, keys),
        layers.outliers_section(found.measured, keys),
        choices.maps_section(found, keys),
        choices.costs_section(found, keys),
        evidence.audit_section(found.cells),
        evidence.provenance_section(found, command),
        evidence.data_section() if found.cells else None,
    ]
    shown = [section for section in made if section is not None]
    return [*shown, *absent(found, shown)]


def absent(found: Found, shown: Sequence[Section]) -> list[Section]:
    """What the page lacks, in a line each, with the cells of sweeps that have no record."""
    titles = {section.title for section in shown}
    first = next(iter(MAKES))
    known = titles | ({first} if found.cells else set())
    lines = [f"{title}: {command}" for title, command in MAKES.items() if title not in known]
    failed = [f"not scored: {cell}: {why}" for cell, why in found.failed.items()]
    if not lines and not failed:
        return []
    text = [
        "These have no records among those given; each command makes them, and its folder is given to the report too."
    ]
    return [Section("absent", "Not on this page", text if lines else [], notes=[*lines, *failed])]
