"""Vega-Lite specs of the page, a function each."""

from collections.abc import Sequence
from typing import Any

from kvdelta.analysis.pages.frames import (
    COLOR,
    FILL,
    SHAPE,
    STROKE,
    alt,
    base,
    bits_axis,
    colour_bar,
    finished,
    index_axis,
    log_axis,
    log_domain,
    log_ticks,
    name_axis,
    opacity,
)

HEIGHT, TALL, LOW = 300, 400, 230
LINE, SQUARE, TALL_SQUARE = ("short", 20), ("short", 22), ("side", 28)
"""What has a line each, and its height in pixels; the page makes a chart as high as it has lines."""
PROTOCOL_SHAPES = {"circle": "●", "diamond": "◆", "triangle-right": "▶", "square": "■"}


def front_chart(bits: Sequence[float], losses: Sequence[float]) -> dict[str, Any]:
    """KL against measured bits; large, and with its interval, what is on the front of its run."""
    y = log_axis(alt.Y, "kl", "KL from exact, nats a token", log_domain(losses))
    at = base().encode(x=bits_axis(bits), y=y)
    best, rest = at.transform_filter("datum.front"), at.transform_filter("!datum.front")
    ends = best.mark_rule(strokeWidth=1.2).encode(y=alt.Y("low:Q"), y2="kl_high:Q", color=COLOR)
    large = best.mark_point(size=70, strokeWidth=1.6).encode(stroke=STROKE, fill=FILL, shape=SHAPE)
    small = rest.mark_point(size=22, strokeWidth=1)
    small = small.encode(stroke=STROKE, fill=FILL, shape=SHAPE, opacity=opacity(0.42))
    return finished(alt.layer(small, ends, large, _labels()), TALL)


def _labels() -> Any:
    """At places in pixels, which the page finds where there is room."""
    texts = base("labels").mark_text(fontSize=10.5, baseline="middle", align="left")
    x, y = (kind(f"{name}:Q", scale=None, axis=None) for kind, name in ((alt.X, "px"), (alt.Y, "py")))
    return texts.encode(x=x, y=y, text="text:N", fill=alt.value("var(--ink)"), opacity=opacity(0.95))


def dumbbell_chart(losses: Sequence[float], protocols: Sequence[str]) -> dict[str, Any]:
    """A line a scheme from its KL by the first protocol to that by the last."""
    x = log_axis(alt.X, "kl", "KL from exact, nats a token", log_domain(losses), orient="top")
    at = base().encode(y=alt.Y("short:N", sort=alt.SortField("order"), axis=name_axis()))
    line = at.transform_filter("datum.span_low != null").mark_rule(strokeWidth=2)
    line = line.encode(x=alt.X("span_low:Q"), x2="span_high:Q", color=COLOR)
    shapes = alt.Scale(domain=list(protocols), range=list(PROTOCOL_SHAPES)[: len(protocols)])
    shape = alt.Shape("protocol:N", scale=shapes, legend=None)
    points = at.mark_point(size=64, strokeWidth=1.6).encode(x=x, stroke=STROKE, fill=FILL, shape=shape)
    return finished(alt.layer(line, points), LOW)


def line_chart(x: Any, losses: Sequence[float], title: str) -> dict[str, Any]:
    """A line a scheme over depth or position, with whiskers."""
    at = base().encode(x=x, y=log_axis(alt.Y, "kl", title, log_domain(losses)))
    lines = at.mark_line(strokeWidth=1.6).encode(stroke=STROKE, detail="s:N")
    ends = at.mark_rule(strokeWidth=1).encode(y=alt.Y("low:Q"), y2="high:Q", color=COLOR, opacity=opacity(0.45))
    points = at.mark_point(size=38, strokeWidth=1.3).encode(stroke=STROKE, fill=FILL, shape=SHAPE)
    return finished(alt.layer(ends, lines, points), HEIGHT)


def heat_chart(values: Sequence[float], places: Sequence[int], x_title: str, legend: str) -> dict[str, Any]:
    """Squares over x and y, coloured by v on a log scale."""
    domain = log_domain(values)
    scale = alt.Scale(type="log", domain=domain, scheme="cividis", nice=False)
    return _squares(SQUARE[0], index_axis(x_title, places), scale, colour_bar(legend, log_ticks(domain)))


def map_chart(values: Sequence[float], places: Sequence[int], x_title: str, legend: str) -> dict[str, Any]:
    """The same of bits, which are few."""
    scale = alt.Scale(domain=[min(values), max(values)], scheme="cividis", nice=False)
    return _squares(TALL_SQUARE[0], index_axis(x_title, places), scale, colour_bar(legend, sorted(set(values))))


def _squares(y: str, x_axis: Any, scale: Any, legend: Any) -> dict[str, Any]:
    cells = base().transform_filter("isValid(datum.v)").mark_rect(stroke="var(--paper)", strokeWidth=0.5)
    color = alt.Color("v:Q", scale=scale, legend=legend)
    down = alt.Y(f"{y}:N", sort=None, axis=name_axis())
    return finished(cells.encode(x=alt.X("x:O", axis=x_axis), y=down, color=color, opacity=opacity(1.0)), LOW)


def picture_chart(
    values: Sequence[float], channels: Sequence[int], layers: Sequence[int], legend: str
) -> dict[str, Any]:
    """|x| of channels over layers."""
    domain = log_domain(values)
    scale = alt.Scale(type="log", domain=domain, scheme="magma", nice=False)
    cells = alt.Chart(alt.NamedData("d")).mark_rect(strokeWidth=0).encode(
        x=alt.X("x:O", axis=index_axis("channel", channels)), y=alt.Y("layer:O", axis=index_axis("layer", layers)),
        color=alt.Color("v:Q", scale=scale, legend=colour_bar(legend, log_ticks(domain))),
    )  # fmt: skip
    return finished(cells, HEIGHT)


def scatter_chart(x: Sequence[float], y: Sequence[float], x_title: str, y_title: str) -> dict[str, Any]:
    """Some marks have a tag, to their right or, where it is in that field, to their left."""
    at = base().encode(x=log_axis(alt.X, "x", x_title, log_domain(x)), y=log_axis(alt.Y, "kl", y_title, log_domain(y)))
    points = at.mark_point(size=46, strokeWidth=1.4).encode(stroke=STROKE, fill=FILL, shape=SHAPE)
    tags = [
        at.transform_filter(f"isValid(datum.{name})")
        .mark_text(align=align, dx=dx, fontSize=10)
        .encode(text=f"{name}:N", fill=alt.value("var(--soft)"))
        for name, align, dx in (("right", "left", 7), ("left", "right", -7))
    ]
    return finished(alt.layer(points, *tags), LOW)


def bar_chart(title: str, most: float) -> dict[str, Any]:
    """What it costs: times that of the exact cache, with the least and the most of the rounds."""
    at = base().encode(y=alt.Y("short:N", sort=None, axis=name_axis()))
    x = alt.X("v:Q", title=title, scale=alt.Scale(domain=[0, 1.05 * most], nice=False))
    bars = at.mark_bar(height=10).encode(x=x, fill=alt.Fill("color:N", scale=None, legend=None))
    ends = at.mark_rule(strokeWidth=1.4).encode(x="low:Q", x2="high:Q", stroke=alt.value("var(--ink)"))
    one = alt.Chart(alt.NamedData("d")).mark_rule(strokeDash=[3, 3])
    return finished(alt.layer(bars, ends, one.encode(x=alt.datum(1), stroke=alt.value("var(--soft)"))), LOW)
