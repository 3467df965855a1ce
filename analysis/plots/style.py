"""How a scheme looks in every figure: colour, marker and line style follow from its canonical name alone."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kvdelta.schemes.spec import Spec, split_spec

T = TypeVar("T")

SIDE_NAMES = {"key": "keys", "pre_rope_key": "keys before RoPE", "value": "values", "both": "keys and values"}
# Tol's high-contrast colours: their greys differ, and none of them is a scheme's
SIDE_LOOKS: dict[str, dict[str, Any]] = {
    "key": {"color": "#004488", "marker": "o", "linestyle": "-"},
    "pre_rope_key": {"color": "#DDAA33", "marker": "s", "linestyle": "--"},
    "value": {"color": "#BB5566", "marker": "^", "linestyle": "-."},
}

WIDTH = 6.5  # inches: a figure fills the text of a printed page, so font sizes are true

BASE: dict[str, object] = {
    "figure.dpi": 150,
    "figure.titlesize": 9,
    "font.size": 8,
    "text.parse_math": False,  # names are drawn as they are, with $ and all
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.4,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.0,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class SchemeStyle:
    """hollow: the marker's face is white, for a scheme with options other than bits and axes."""

    color: str
    marker: str
    linestyle: str | tuple[int, tuple[float, ...]]
    hollow: bool = False


# Okabe and Ito's hues, which colour-blind readers tell apart; the yellow is darker, to be seen on white.
HUES: dict[tuple[str, str], tuple[str, str]] = {
    ("exact", ""): ("#000000", "x"),
    ("symmetric", "token/token"): ("#E69F00", "s"),
    ("asymmetric", "token/token"): ("#56B4E9", "o"),
    ("asymmetric", "channel/token"): ("#0072B2", "^"),
    ("asymmetric", "token/channel"): ("#C4B000", "v"),
    ("asymmetric", "channel/channel"): ("#CC79A7", "P"),
    ("hqq", "token/token"): ("#009E73", "D"),
    ("kivi", ""): ("#D55E00", "*"),
}
OTHER_HUES = ("#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#666666")
OTHER_MARKERS = ("<", ">", "p", "h", "8", "d", "X")
SHADES = {8: 0.45, 4: 0.0, 3: -0.2, 2: -0.42, 1: -0.6}  # towards white, or towards black: fewer bits, darker
DASHES: dict[int, str | tuple[int, tuple[float, ...]]] = {
    8: ":",
    4: "-",
    3: "-.",
    2: "--",
    1: (0, (5.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
}

SHORT = {"symmetric": "int", "asymmetric": "asym"}


def scheme_style(name: str) -> SchemeStyle:
    """The look of a scheme by its canonical name: hue and marker by family and axes (K/V), lightness and dashes by
    bits. What is no family, such as a foreign cache or a map of layers, has a look drawn from a hash of its name."""
    family, options = options_of(name)
    bits = _bits(options)
    layout = layout_of(family, options)
    if family == "exact":
        return SchemeStyle(*HUES["exact", ""], ":")
    if not bits:
        return SchemeStyle(pick(OTHER_HUES, name), pick(OTHER_MARKERS, name + "."), pick(tuple(DASHES.values()), name))
    if (family, layout) in HUES:
        color, marker = HUES[family, layout]
    else:
        same = [hue for (known, _), (hue, _) in HUES.items() if known == family]
        color, marker = same[0] if same else pick(OTHER_HUES, family), pick(OTHER_MARKERS, family + layout)
    near = min(SHADES, key=lambda known: (abs(known - bits), known))
    return SchemeStyle(_shade(color, SHADES[near]), marker, DASHES[near], hollow=bool(_rest(options)))


def look(name: str, line: bool = True) -> dict[str, Any]:
    """A scheme's style as the arguments of a plot."""
    style = scheme_style(name)
    size = {"*": 5.5, "D": 3.4, "P": 4.6}.get(style.marker, 4.0)  # so that all look about as large
    hollow = {"markerfacecolor": "none"} if style.hollow else {}
    dashes = style.linestyle if line else "none"
    return {"color": style.color, "marker": style.marker, "linestyle": dashes, "markersize": size, **hollow}


def scheme_label(name: str) -> str:
    """A short name for legends, such as "asym2 channel/token g32", of a canonical name; layouts are K/V."""
    if name.startswith("@"):
        file = Path(name[1:].replace('"', "")).name
        return f"map {file}" if file.startswith("#") else file  # a record's settings know the hash alone
    parts = parts_of(name)
    if parts.inner is not None:
        return " ".join(
            [f"{parts.name}({scheme_label(parts.inner)})", *(f"{key}={value}" for key, value in parts.items)]
        )
    family, options = options_of(name)
    if not _bits(options):
        return name
    both = options.get("bits") or f"{options['key_bits']}/{options['value_bits']}"
    layout, rest = layout_of(family, options), _rest(options)
    extra = [f"g{value}" if key == "group_size" else f"{key}={value}" for key, value in rest.items()]
    plain = layout in ("", "token/token") and (not extra or family != "asymmetric")
    short = SHORT.get(family, family)
    gap = " " if short[-1].isdigit() else ""  # exllamav3 at 4 bits
    return " ".join([f"{short}{gap}{both}", *([] if plain else [layout]), *extra])


def parts_of(name: str) -> Spec:
    try:
        return split_spec(name)
    except ValueError:  # a foreign cache, module:factory
        return Spec(name, None, ())


def options_of(name: str) -> tuple[str, dict[str, str]]:
    """Family and fields; a calibration is a file, which says nothing to people."""
    parts = parts_of(name)
    family = parts.name if parts.inner is None else f"{parts.name}({parts.inner})"
    return family, {key: value for key, value in parts.items if key != "calibration"}


def _bits(options: dict[str, str]) -> float:
    """The mean of both sides; 0 where the name tells none."""
    given = [options.get(key, options.get("bits", "")) for key in ("key_bits", "value_bits")]
    return sum(map(int, given)) / 2 if all(text.isdecimal() for text in given) else 0.0


def layout_of(family: str, options: dict[str, str]) -> str:
    if family in ("exact", "kivi"):
        return ""
    axes = [options.get(key, options.get("axis", "token")) for key in ("key_axis", "value_axis")]
    return "/".join(axes)


def _rest(options: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in options.items() if not key.endswith(("bits", "axis"))}


def pick(choices: tuple[T, ...], text: str) -> T:
    return choices[int(hashlib.sha256(text.encode()).hexdigest(), 16) % len(choices)]


def _shade(color: str, shade: float) -> str:
    target = 255 if shade > 0 else 0
    parts = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + (target - part) * abs(shade)):02X}" for part in parts)


def with_unit(label: str) -> str:
    """A measure's label with its unit, which those that are ratios and sums of squares leave out."""
    if label.endswith(")"):
        return label
    unit = "activation units" if "max" in label else "nats²" if "²" in label else "ratio"
    return f"{label} ({unit})"


def floored(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values for a log axis, those that are not above 0 moved below the smallest that is; and which were moved."""
    values = np.asarray(values, dtype=float)
    above = values[np.isfinite(values) & (values > 0)]
    moved = np.isfinite(values) & (values <= 0)
    return np.where(moved, above.min() / 3 if above.size else 1.0, values), moved


def binned(x: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """|x| [tokens, channels] in at most `most` rows, each the largest of its tokens, so that a lone token is not lost;
    and the tokens of a row."""
    step = -(-len(x) // most)
    return np.maximum.reduceat(np.abs(x.astype(np.float32)), np.arange(0, len(x), step), axis=0), step


def spread(places: np.ndarray, apart: float, end: float) -> np.ndarray:
    """Ascending places between 0 and `end`, moved no more than needed to be about `apart` from each other."""
    places = np.asarray(places, dtype=float)
    apart = min(apart, end / max(len(places) - 1, 1))
    for _ in range(300):
        push = np.maximum(apart - np.diff(places), 0) / 2
        places[:-1] -= push
        places[1:] += push
        places = np.clip(places, 0, end)
    return places
