"""Vega-Lite specs of the page, drawn by altair. Colours are the page's CSS variables, so that both themes and print have their own."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kvdelta.schemes.errors import UserError

try:
    import altair as alt
except ModuleNotFoundError as error:
    raise UserError(f"the report needs {error.name}; pip install 'kvdelta[report]' brings it") from None

LIT = "hover === datum.s || indexof(chosen, datum.s) >= 0"
CALM = "hover < 0 && length(chosen) === 0"
DIM = 0.12
SHORT = "abs(datum.value) >= 0.01 && abs(datum.value) < 10000 ? format(datum.value, '~g') : format(datum.value, '.0e')"
HEIGHT = 300
TALL = 400


def opacity(rest: float = 0.9, lit: float = 1.0) -> Any:
    """What the pointer is on, or was chosen, stands out in every chart."""
    when = alt.when(LIT).then(alt.value(lit)).when(CALM).then(alt.value(rest))
    return when.otherwise(alt.value(DIM))


def base(data: str = "d") -> Any:
    return alt.Chart(alt.NamedData(data)).encode(opacity=opacity())


COLOR = alt.Color("color:N", scale=None, legend=None)
FILL = alt.Fill("fill:N", scale=None, legend=None)
SHAPE = alt.Shape("shape:N", scale=None, legend=None)


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


def front_chart(bits: Sequence[float], losses: Sequence[float]) -> dict[str, Any]:
    """KL against measured bits; large and with its interval what is on the front of its run."""
    y = log_domain(losses)
    at = base().encode(x=bits_axis(bits), y=log_axis(alt.Y, "kl", "KL from exact, nats a token", y))
    ends = at.transform_filter("datum.front").mark_rule(strokeWidth=1.2).encode(
        y=alt.Y("low:Q"), y2="kl_high:Q", color=COLOR
    )  # fmt: skip
    rest = at.transform_filter("!datum.front").mark_point(size=22, strokeWidth=1).encode(
        stroke=COLOR_STROKE, fill=FILL, shape=SHAPE, opacity=opacity(0.42)
    )  # fmt: skip
    best = at.transform_filter("datum.front").mark_point(size=70, strokeWidth=1.6).encode(
        stroke=COLOR_STROKE, fill=FILL, shape=SHAPE
    )  # fmt: skip
    return finished(alt.layer(rest, ends, best, _labels()), TALL)


COLOR_STROKE = alt.Stroke("color:N", scale=None, legend=None)


def _labels() -> Any:
    """At places in pixels, which the page finds where there is room."""
    places = alt.Chart(alt.NamedData("labels")).mark_text(fontSize=10.5, baseline="middle", align="left").encode(
        x=alt.X("px:Q", scale=None, axis=None), y=alt.Y("py:Q", scale=None, axis=None), text="text:N",
        fill=alt.value("var(--ink)"), opacity=opacity(0.95),
    )  # fmt: skip
    return places


def dumbbell_chart(losses: Sequence[float], protocols: Sequence[str]) -> dict[str, Any]:
    """A line a scheme from its KL by the first protocol to that by the last."""
    x = log_axis(alt.X, "kl", "KL from exact, nats a token", log_domain(losses), orient="top")
    y = alt.Y(
        "scheme:N", sort=alt.SortField("order"), title=None, axis=alt.Axis(labelLimit=210, ticks=False, domain=False)
    )
    at = base().encode(y=y)
    line = at.transform_filter("datum.span_low != null").mark_rule(strokeWidth=2).encode(
        x=alt.X("span_low:Q"), x2="span_high:Q", color=COLOR
    )  # fmt: skip
    shapes = alt.Scale(
        domain=list(protocols), range=["circle", "diamond", "triangle-right", "square"][: len(protocols)]
    )
    points = at.mark_point(size=64, strokeWidth=1.6).encode(
        x=x, stroke=COLOR_STROKE, fill=FILL,
        shape=alt.Shape("protocol:N", scale=shapes, legend=alt.Legend(title=None, orient="top", symbolFillColor="var(--ink)", symbolStrokeColor="var(--ink)")),
    )  # fmt: skip
    return finished(alt.layer(line, points), {"step": 20})


def line_chart(x: Any, losses: Sequence[float], title: str, y: str = "kl") -> dict[str, Any]:
    """A line a scheme over depth or position, with whiskers."""
    at = base().encode(x=x, y=log_axis(alt.Y, y, title, log_domain(losses)))
    lines = at.mark_line(strokeWidth=1.6, interpolate="linear").encode(stroke=COLOR_STROKE, detail="s:N")
    ends = at.mark_rule(strokeWidth=1).encode(y=alt.Y("low:Q"), y2="high:Q", color=COLOR, opacity=opacity(0.45))
    points = at.mark_point(size=38, strokeWidth=1.3).encode(stroke=COLOR_STROKE, fill=FILL, shape=SHAPE)
    return finished(alt.layer(ends, lines, points), HEIGHT)


def depth_axis(prefixes: Sequence[int]) -> Any:
    ticks = sorted(set(prefixes))
    shown = "datum.value % 1024 === 0 ? datum.value / 1024 + 'K' : datum.value + ''"
    axis = alt.Axis(values=ticks, labelExpr=shown, title="tokens in the cache", labelOverlap="greedy")
    return alt.X(
        "prefix:Q", scale=alt.Scale(type="log", base=2, nice=False, domain=[ticks[0] / 1.1, ticks[-1] * 1.1]), axis=axis
    )


def position_axis(title: str, places: Sequence[float]) -> Any:
    room = 0.04 * (max(places) - min(places)) or 1.0
    return alt.X(
        "at:Q",
        scale=alt.Scale(nice=False, domain=[min(places) - room, max(places) + room]),
        axis=alt.Axis(title=title, tickCount=6),
    )


def heat_chart(
    values: Sequence[float], y: str, y_title: str | None, x_title: str, legend: str, log: bool = True, step: int = 22
) -> dict[str, Any]:
    """Squares over x and y, coloured by v; darker is less in either theme."""
    domain = log_domain(values) if log else [min(values), max(values)]
    kind: Mapping[str, Any] = {"type": "log"} if log else {"type": "linear"}
    scale = alt.Scale(**kind, domain=domain, scheme="cividis", nice=False)
    bar = alt.Legend(
        title=legend,
        orient="bottom",
        direction="horizontal",
        gradientLength=200,
        gradientThickness=8,
        labelExpr=SHORT,
        values=log_ticks(domain) if log else alt.Undefined,
        titleLimit=300,
    )
    left = alt.Axis(title=y_title, labelLimit=190, ticks=False, domain=False)
    bottom = alt.Axis(title=x_title, labelOverlap="greedy", ticks=False, domain=False, labelAngle=0)
    cells = base().transform_filter("isValid(datum.v)").mark_rect(stroke="var(--paper)", strokeWidth=0.5).encode(
        x=alt.X("x:O", axis=bottom), y=alt.Y(f"{y}:N", sort=None, axis=left), color=alt.Color("v:Q", scale=scale, legend=bar), opacity=opacity(1.0),
    )  # fmt: skip
    return finished(cells, {"step": step})


def picture_chart(values: Sequence[float], legend: str) -> dict[str, Any]:
    """|x| of channels over layers."""
    domain = log_domain(values)
    bar = alt.Legend(
        title=legend,
        orient="bottom",
        direction="horizontal",
        gradientLength=200,
        gradientThickness=8,
        labelExpr=SHORT,
        values=log_ticks(domain),
        titleLimit=300,
    )
    cells = alt.Chart(alt.NamedData("d")).mark_rect(strokeWidth=0).encode(
        x=alt.X("x:O", axis=alt.Axis(title="channel", labelOverlap="greedy", ticks=False, domain=False, labelAngle=0)),
        y=alt.Y("layer:O", axis=alt.Axis(title="layer", labelOverlap="greedy", ticks=False, domain=False)),
        color=alt.Color("v:Q", scale=alt.Scale(type="log", domain=domain, scheme="magma"), legend=bar),
    )  # fmt: skip
    return finished(cells, HEIGHT)


def scatter_chart(x: Sequence[float], y: Sequence[float], x_title: str, y_title: str) -> dict[str, Any]:
    at = base().encode(x=log_axis(alt.X, "x", x_title, log_domain(x)), y=log_axis(alt.Y, "kl", y_title, log_domain(y)))
    points = at.mark_point(size=46, strokeWidth=1.4).encode(stroke=COLOR_STROKE, fill=FILL, shape=SHAPE)
    tags = at.transform_filter("isValid(datum.tag)").mark_text(align="left", dx=7, fontSize=10).encode(
        text="tag:N", fill=alt.value("var(--soft)")
    )  # fmt: skip
    return finished(alt.layer(points, tags), 230)


def bar_chart(title: str, most: float) -> dict[str, Any]:
    """What it costs: times that of the exact cache, with the least and the most of the rounds."""
    y = alt.Y("scheme:N", sort=None, title=None, axis=alt.Axis(labelLimit=210, ticks=False, domain=False))
    at = base().encode(y=y)
    bars = at.mark_bar(height=10).encode(
        x=alt.X("v:Q", title=title, scale=alt.Scale(domain=[0, 1.05 * most], nice=False)), fill=FILL_SOLID
    )
    ends = at.mark_rule(strokeWidth=1.4).encode(x="low:Q", x2="high:Q", stroke=alt.value("var(--ink)"))
    one = (
        alt.Chart(alt.NamedData("d"))
        .mark_rule(strokeDash=[3, 3])
        .encode(x=alt.datum(1), stroke=alt.value("var(--soft)"))
    )
    return finished(alt.layer(bars, ends, one), {"step": 20})


FILL_SOLID = alt.Fill("color:N", scale=None, legend=None)


def finished(chart: Any, height: Any) -> dict[str, Any]:
    """With what all charts share: as wide as their place, and the two parameters that link them."""
    chart = chart.properties(
        width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    ).add_params(alt.param(name="hover", value=-1), alt.param(name="chosen", value=[]))
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
