"""Pictures of single KV heads of an outliers record: |x| over tokens and channels."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kvdelta.analysis.plots.canvas import record_figure
from kvdelta.analysis.plots.style import SIDE_NAMES, binned
from kvdelta.harness.records.measurement import Arrays, Measurement
from kvdelta.schemes.errors import UserError

SIDES = ("key", "pre_rope_key", "value")
HEAT = "magma"
ACTIVATION = "|x| (activation units)"


def heat_maps(record: Measurement, arrays: Arrays, picture: int = 0) -> Figure:
    """|x| of one head's keys (after and before RoPE, on one colour scale) and values, token by channel."""
    return _pictures(record, arrays, picture, surface=False)


def surfaces(record: Measurement, arrays: Arrays, picture: int = 0) -> Figure:
    """The same as `heat_maps` in three dimensions, the key sides with one height."""
    return _pictures(record, arrays, picture, surface=True)


def _pictures(record: Measurement, arrays: Arrays, picture: int, surface: bool) -> Figure:
    sides = drawn_sides(arrays)
    layer, head = pictured_head(arrays, picture)
    images = {side: binned(arrays[f"picture_{side}"][0, picture], 96 if surface else 384) for side in sides}
    tokens = arrays[f"picture_{sides[0]}"].shape[2]
    key_top = max((float(image.max()) for side, (image, _) in images.items() if side != "value"), default=0.0)
    what, height = f"{ACTIVATION} of keys and values", 2.7 if surface else 3.4
    figure = record_figure(record, f"{what}, layer {layer}, KV head {head}", height, "first window")
    last: dict[bool, Any] = {}
    for i, side in enumerate(sides):
        image, step = images[side]
        top, (rows, channels) = (float(image.max()) if side == "value" else key_top), image.shape
        if surface:
            figure.set_layout_engine("none")
            axes: Any = figure.add_axes(((i - 0.05) / len(sides), -0.04, 1 / len(sides), 1.0), projection="3d")
            x, y = np.meshgrid(np.arange(channels), np.arange(rows) * step)
            axes.plot_surface(
                x, y, image, cmap=HEAT, vmin=0, vmax=top, rcount=rows, ccount=channels, linewidth=0,
                antialiased=False, rasterized=True,
            )  # fmt: skip
            axes.patch.set_visible(False)  # it would cover its neighbour's labels
            axes.set(zlim=(0, top))
            axes.set_title(SIDE_NAMES[side], loc="center", y=0.9)
            axes.set_xlabel("channel (index)", labelpad=-5)
            axes.set_ylabel("token (position)", labelpad=-5)
            axes.locator_params(nbins=4)
            axes.tick_params(pad=-2)
            axes.view_init(elev=28, azim=-52)
            axes.set_box_aspect((4, 4, 3), zoom=0.84)
            continue
        axes = figure.add_subplot(1, len(sides), i + 1)
        shown = axes.imshow(
            image, cmap=HEAT, vmin=0, vmax=top, aspect="auto", origin="lower", interpolation="nearest",
            extent=(-0.5, channels - 0.5, 0.5, rows * step + 0.5),
        )  # fmt: skip
        axes.grid(visible=False)
        axes.set(title=SIDE_NAMES[side], xlabel="channel (index)", ylim=(0.5, tokens + 0.5))
        if i == 0:
            axes.set_ylabel(f"token (position; max of each {step})" if step > 1 else "token (position)")
        last[side == "value"] = (shown, axes)
    for shown, axes in last.values():
        figure.colorbar(shown, ax=axes, label=ACTIVATION, pad=0.03)
    return figure


def drawn_sides(arrays: Arrays) -> list[str]:
    """Those that were measured, keys first."""
    return [side for side in SIDES if f"{side}_mean_abs" in arrays]


def pictured_head(arrays: Arrays, picture: int) -> tuple[int, int]:
    """Layer and KV head that a record kept whole."""
    pictured = arrays["pictured"][0]
    if not 0 <= picture < len(pictured):
        raise UserError(f"picture {picture}: this record kept {len(pictured)} heads, numbered from 0")
    return int(pictured[picture][0]), int(pictured[picture][1])
