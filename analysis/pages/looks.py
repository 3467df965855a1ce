"""How a scheme looks on the page: the hue and the shape of its family, as in the other figures; hollow with options of its own."""

from typing import Any

from kvdelta.analysis.plots.style import (
    HUES,
    OTHER_HUES,
    OTHER_MARKERS,
    layout_of,
    options_of,
    parts_of,
    pick,
    scheme_style,
)

HUE_NAMES = {
    "#000000": "ink",
    "#E69F00": "orange",
    "#56B4E9": "sky",
    "#0072B2": "blue",
    "#C4B000": "yellow",
    "#CC79A7": "pink",
    "#009E73": "green",
    "#D55E00": "red",
    "#666666": "grey",
}
"""Each has a tone for light and one for dark in page.css, --hue-NAME."""

STAR = "M0,-1.2L0.29,-0.4L1.14,-0.37L0.47,0.15L0.71,0.97L0,0.5L-0.71,0.97L-0.47,0.15L-1.14,-0.37L-0.29,-0.4Z"
HEXAGON = "M0,-1L0.87,-0.5L0.87,0.5L0,1L-0.87,0.5L-0.87,-0.5Z"
PENTAGON = "M0,-1L0.95,-0.31L0.59,0.81L-0.59,0.81L-0.95,-0.31Z"
OCTAGON = "M-0.38,-0.92L0.38,-0.92L0.92,-0.38L0.92,0.38L0.38,0.92L-0.38,0.92L-0.92,0.38L-0.92,-0.38Z"
SAW = "M0,-1L0.5,0L0,1L-0.5,0Z"
TILTED = "M-1,-0.6L-0.6,-1L0,-0.4L0.6,-1L1,-0.6L0.4,0L1,0.6L0.6,1L0,0.4L-0.6,1L-1,0.6L-0.4,0Z"

SHAPES = {
    "x": TILTED,
    "X": TILTED,
    "s": "square",
    "o": "circle",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "P": "cross",
    "D": "diamond",
    "*": STAR,
    "p": PENTAGON,
    "h": HEXAGON,
    "8": OCTAGON,
    "d": SAW,
}
"""Of the markers of the other figures; a path where Vega has no name for it."""


def look_of(name: str) -> dict[str, Any]:
    """family: what it is grouped by; hue: a name of HUE_NAMES; shape: for Vega; hollow: wrapped, or with options other than bits and
    axes. What is no family is grouped by its own name."""
    parts = parts_of(name)
    wrapped = parts.inner is not None
    while parts.inner is not None:
        name, parts = parts.inner, parts_of(parts.inner)
    family, options = options_of(name)
    layout = layout_of(family, options)
    if name.startswith("@"):
        family = "map"
    if (family, layout) in HUES:
        color, marker = HUES[family, layout]
    else:
        same = [hue for (known, _), (hue, _) in HUES.items() if known == family]
        color, marker = same[0] if same else pick(OTHER_HUES, family), pick(OTHER_MARKERS, family + layout)
    hollow = wrapped or scheme_style(name).hollow
    return {"family": family, "hue": HUE_NAMES[color], "shape": SHAPES[marker], "hollow": hollow}
