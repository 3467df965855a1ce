"""What all charts of the page share: scales, axes, the two parameters that link them, and the look. Drawn by altair; colours are the
page's CSS variables, so that both themes and print have their own."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

LIT = "hover === datum.s || indexof(chosen, datum.s) >= 0"
CALM = "hover < 0 && length(chosen) === 0"
DIM = 0.12
SHORT = "abs(datum.value) >= 0.01 && abs(datum.value) < 10000 ? format(datum.value, '~g') : format(datum.value, '.0e')"
MOST_TICKS = 12

STROKE = alt.Stroke("color:N", scale=None, legend=None)
COLOR = alt.Color("color:N", scale=None, legend=None)
FILL = alt.Fill("fill:N", scale=None, legend=None)
SHAPE = alt.Shape("shape:N", scale=None, legend=None)


def opacity(rest: float = 0.9, lit: float = 1.0) -> Any:
    """What the pointer is on, or was chosen, stands out in every chart."""
    when = alt.when(LIT).then(alt.value(lit)).when(CALM).then(alt.value(rest))
    return when.otherwise(alt.value(DIM))


def base(data: str = "d") -> Any:
    return alt.Chart(alt.NamedData(data)).encode(opacity=opacity())


def log_domain(values: Sequence[float]) -> list[float]:
    """Of those above 0, with some room."""
    above = [value for value in values if value is not None and math.isfinite(value) and value > 0] or [1.0]
    room = (max(above) / min(above)) ** 0.04 * 1.05
    return [min(above) / room, max(above) * room]


def log_ticks(domain: Sequence[float]) -> list[float]:
    """Powers of ten, or 1, 2 and 5 of them where there are few."""
    low, high = (math.floor(math.log10(domain[0])), math.ceil(math.log10(domain[1])))
    factors = (1,) if high - low > 3 else (1, 2, 5) if high - low < 3 else (1, 3)
    ticks = [float(f"{factor}e{power}") for power in range(low, high + 1) for factor in factors]
    return [tick for tick in ticks if domain[0] <= tick <= domain[1]]


def log_axis(kind: Any, name: str, title: str, domain: Sequence[float], **axis: Any) -> Any:
    ticks = alt.Axis(values=log_ticks(domain), labelExpr=SHORT, title=title, **axis)
    return kind(f"{name}:Q", scale=alt.Scale(type="log", domain=list(domain), clamp=True, nice=False), axis=ticks)


def bits_axis(values: Sequence[float]) -> Any:
    domain = log_domain(values)
    ticks = [tick for tick in (1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 16) if domain[0] <= tick <= domain[1]]
    axis = alt.Axis(values=ticks, format="~g", title="measured bits a number (log scale)")
    return alt.X("bits:Q", scale=alt.Scale(type="log", domain=domain, nice=False), axis=axis)


def depth_axis(prefixes: Sequence[int]) -> Any:
    ticks = sorted(set(prefixes))
    shown = "datum.value % 1024 === 0 ? datum.value / 1024 + 'K' : datum.value + ''"
    axis = alt.Axis(values=ticks, labelExpr=shown, title="tokens in the cache", labelOverlap="greedy")
    scale = alt.Scale(type="log", base=2, nice=False, domain=[ticks[0] / 1.1, ticks[-1] * 1.1])
    return alt.X("prefix:Q", scale=scale, axis=axis)


def position_axis(title: str, places: Sequence[float]) -> Any:
    room = 0.04 * (max(places) - min(places)) or 1.0
    scale = alt.Scale(nice=False, domain=[min(places) - room, max(places) + room])
    return alt.X("at:Q", scale=scale, axis=alt.Axis(title=title, tickCount=6))


def index_axis(title: str, places: Sequence[int]) -> Any:
    """Of layers or channels: about a dozen of their numbers."""
    known = sorted(set(places))
    every = next(
        step
        for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, len(known))
        if len(known) <= MOST_TICKS * step or step == len(known)
    )
    return alt.Axis(title=title, values=known[::every], ticks=False, domain=False, labelAngle=0)


def name_axis(title: str | None = None) -> Any:
    return alt.Axis(title=title, ticks=False, domain=False)


def colour_bar(title: str, ticks: Sequence[float] | None) -> Any:
    return alt.Legend(
        title=title, orient="bottom", direction="horizontal", gradientLength=200, gradientThickness=8, labelExpr=SHORT,
        values=alt.Undefined if ticks is None else list(ticks), titleLimit=300,
    )  # fmt: skip


def finished(chart: Any, height: Any) -> dict[str, Any]:
    """With what all charts share: as wide as their place, and the two parameters that link them."""
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    chart = chart.properties(width="container", height=height, autosize=fit)
    chart = chart.add_params(alt.param(name="hover", value=-1), alt.param(name="chosen", value=[]))
    spec = chart.configure(**CONFIG).to_dict()
    return {name: value for name, value in spec.items() if name not in ("$schema", "datasets")}


CONFIG: dict[str, Any] = {
    "background": "transparent",
    "padding": 4,
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)", "titleColor": "var(--soft)", "gridColor": "var(--grid)", "domainColor": "var(--line)",
        "tickColor": "var(--line)", "labelFontSize": 11, "titleFontSize": 11.5, "titleFontWeight": "normal", "titlePadding": 8, "tickSize": 4,
    },
    "legend": {
        "labelColor": "var(--soft)", "titleColor": "var(--soft)", "labelFontSize": 11, "titleFontSize": 11.5, "titleFontWeight": "normal",
    },
}  # fmt: skip
