"""Figures from small records made by hand: what is in them, and that they look the same everywhere and each time."""

from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Annotation, Text

from kvdelta.analysis import plots
from kvdelta.analysis.plots import canvas
from kvdelta.analysis.plots.style import HUES, SIDE_LOOKS, binned, floored, scheme_label, scheme_style, spread
from kvdelta.harness.records.measurement import Measurement
from kvdelta.harness.records.run import Settings
from kvdelta.schemes import parse_scheme

from ..rows import summary_row

LAYERS, HEADS, TOKENS, CHANNELS = [2, 3, 5], [0, 1], 40, 16
SPECS = ["int8", "int4", "kivi2"]
NAMES = [parse_scheme(spec).name for spec in SPECS]
USUAL = [
    "exact", "int8", "int4", "int2", "asym4", "asym2", "asym2:group_size=32", "asym2:key_axis=channel,group_size=32",
    "asym2:value_axis=channel,group_size=32", "asym2:axis=channel,group_size=32", "hqq4", "hqq2", "kivi4", "kivi2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def styled():
    with plots.styled():
        yield


def record(kind, windows=2, specs=(), **measured):
    settings = Settings(
        model={"kind": "test"}, text_sha256="0", protocol="two-pass", step=None, window_length=60, score_length=20,
        stride=20, windows=list(range(windows)), bos_token_id=None, device="cpu", dtype="float32", attention="sdpa",
        seed=0, contenders=[parse_scheme(spec).name for spec in specs], versions={}, measured=measured,
    )  # fmt: skip
    return Measurement(
        kvdelta="0", status="complete", command="kvdelta", commit=None, model_name="a model", text_name="a text",
        text_source={}, text_tokens=300, layers=6, threads=1, settings=settings, kind=kind, labels=list(specs),
        measured_layers=LAYERS, kv_heads=HEADS,
    )  # fmt: skip


def outliers(windows=2, pre_rope=True):
    """Head 1 of layer 3 is kept; its key channels 4, 5 and 6 are large, and token 1 of its keys is 100 in channel 9."""
    rng = np.random.default_rng(0)
    arrays = {"pictured": np.array([[[3, 1]]])}
    for side in ("key", "value", *(["pre_rope_key"] if pre_rope else [])):
        x = rng.uniform(0.9, 1.1, (windows, len(LAYERS), len(HEADS), TOKENS, CHANNELS))
        if side == "key":
            x[:, 1, 1, :, 4:7] *= 20
            x[:, 1, 1, 0, 9] = 100
        arrays |= {f"{side}_mean_abs": x.mean(axis=-2), f"{side}_max": x.max(axis=-2)}
        arrays |= {f"{side}_norm": np.linalg.norm(x, axis=-1), f"picture_{side}": x[:1, 1:2, 1].astype(np.float16)}
    return record("outliers", windows, pre_rope=pre_rope), arrays


def errors():
    rng = np.random.default_rng(1)
    names = ["rows", "attention_kl", "logit_norm2", "logit_error2", "score_norm2", "score_error2", "output_norm2"]
    names += [f"output_error2_{side}" for side in ("key", "value", "both")]
    names += [f"{side}_{n}" for side in ("key", "value") for n in ("error2", "norm2", "decoded2", "dot", "max")]
    shape = (2, len(SPECS), len(LAYERS), len(HEADS))
    arrays = {name: rng.uniform(0.1, 1, shape) for name in names}
    arrays["key_error2"][:, 0, 1] = 0  # int8 rebuilds the keys of layer 3 exactly
    return record("errors", specs=SPECS), arrays


def sensitivity(windows=3, sides=("key", "value")):
    rng = np.random.default_rng(2)
    shape = (windows, len(SPECS), len(sides), len(LAYERS))
    arrays = {name: rng.uniform(1, 2, shape) for name in ("nll", "kl", "square", "absolute")}
    arrays |= {"exact_nll": np.full(windows, 1.5), "count": np.full(windows, 10.0)}
    return record("sensitivity", windows, SPECS, sides=list(sides)), arrays


def point(spec, bits, delta, half=0.001, **figures):
    interval = {"delta_nll_low": delta - half, "delta_nll_high": delta + half}
    return summary_row(spec, **{"bits": bits, "delta_nll": delta, "kl": 0.1, "kl_se": 0.01, **interval, **figures})


ROWS = [point("exact", 16.0, 0.0), point("int8", 8.25, -2e-4), point("kivi2", 3.5, 0.2)]
SCATTER = [
    plots.Series("K relative error", np.array([0.1, 0.0, 0.3]), np.array([1.0, 2.0, -3.0]), ["2", "3", "5"], NAMES, "ρ 0.9"),
    plots.Series("attention KL (nats)", np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, np.nan]), ["2", "3", "5"], NAMES),
]  # fmt: skip

DRAWN = {
    "heat maps": (lambda: plots.heat_maps(*outliers()), 3),
    "surfaces": (lambda: plots.surfaces(*outliers()), 3),
    "channels": (lambda: plots.channel_profile(*outliers()), 3),
    "ratio": (lambda: plots.ratio_by_layer(*outliers(windows=1)), 1),
    "persistence": (lambda: plots.persistence_by_layer(*outliers()), 1),
    "norms": (lambda: plots.token_norms(*outliers()), 3),
    "errors": (lambda: plots.errors_by_layer(*errors()), 4),
    "sensitivity": (lambda: plots.sensitivity_by_layer(*sensitivity()), 4),
    "scatter": (lambda: plots.measure_scatter(SCATTER, "KL (nats a token)", "what predicts"), 2),
    "bits": (lambda: plots.bits_against_loss(ROWS, "what a bit buys"), 1),
    "allocation": (lambda: plots.bits_by_layer({"key": {2: 4.5, 3: 2.5}, "value": {2: 2.5, 3: 2.5}}, "bits"), 1),
}  # fmt: skip


def panels(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def legend(figure):
    (one,) = figure.legends
    return [text.get_text() for text in one.get_texts()]


def said(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def lines_in(axes, color):
    return [line for line in axes.lines if line.get_color() == color]


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_has_its_panels_named_axes_and_both_files(name, tmp_path):
    draw, count = DRAWN[name]
    figure = draw()
    assert len(panels(figure)) == count
    assert figure.get_figwidth() == 6.5
    assert panels(figure)[0].get_ylabel()
    for axes in panels(figure):
        if axes.get_subplotspec() is None or axes.get_subplotspec().is_last_row():
            assert axes.get_xlabel()
    for label in {axes.get_ylabel() for axes in figure.axes} - {""}:
        assert label.rstrip().endswith(")") or "bits" in label
    assert [path.name for path in plots.save(figure, tmp_path, "it")] == ["it.svg", "it.png"]
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")


def test_there_are_only_the_panels_that_are_needed():
    assert len(panels(plots.heat_maps(*outliers(pre_rope=False)))) == 2
    assert len(panels(plots.errors_by_layer(*errors(), ("key_error", "key_max", "value_max")))) == 3
    assert len(panels(plots.sensitivity_by_layer(*sensitivity(1, ["both"])))) == 2


@pytest.mark.parametrize("name", ["surfaces", "bits"])
def test_the_same_svg_each_time(name, tmp_path):
    first, second = (plots.save(DRAWN[name][0](), tmp_path, text)[0].read_bytes() for text in ("first", "second"))
    assert first == second
    assert b"<dc:date>" not in first


@pytest.mark.parametrize("name", ["heat maps", "ratio", "errors", "sensitivity"])
def test_titles_name_model_text_and_windows(name):
    title = DRAWN[name][0]().get_suptitle()
    of = {"heat maps": "first window", "ratio": "1 window", "errors": "2 windows", "sensitivity": "3 windows"}[name]
    assert title.endswith(f"a model; a text, {of}")


def test_a_kept_head_is_named_by_its_own_numbers_and_must_exist():
    assert "layer 3, KV head 1" in plots.heat_maps(*outliers()).get_suptitle()
    with pytest.raises(ValueError, match="kept 1 heads"):
        plots.heat_maps(*outliers(), picture=1)


def test_key_sides_share_a_colour_scale_and_values_have_their_own():
    key, before, value = (axes.images[0] for axes in panels(plots.heat_maps(*outliers())))
    assert key.get_clim() == before.get_clim() == (0, 100)
    assert value.get_clim()[1] == pytest.approx(1.1, abs=0.01)


def test_a_lone_token_survives_downsampling():
    x = np.zeros((1000, 4), dtype=np.float16)
    x[777, 2], x[778, 2] = -9, 5
    image, step = binned(x, 96)
    assert len(image) <= 96
    assert 777 // step == 778 // step
    assert image[777 // step, 2] == image.sum() == 9


def test_outlier_channels_are_named_where_they_are_apart():
    figure = plots.channel_profile(*outliers())
    keys, before, values = panels(figure)
    assert [text.get_text() for text in keys.texts] == ["4", "5", "6", "9"]
    assert not before.texts
    assert not values.texts
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in keys.texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_places_are_spread_no_more_than_needed():
    assert list(spread(np.array([3, 30]), 2, 60)) == [3, 30]
    close = spread(np.array([0, 1, 2, 62, 63]), 3, 63)
    assert np.diff(close).min() > 2.9
    assert close.min() >= 0
    assert close.max() <= 63


def test_ratio_draws_each_head_and_the_largest():
    (axes,) = panels(plots.ratio_by_layer(*outliers(pre_rope=False)))
    line, dots = lines_in(axes, SIDE_LOOKS["key"]["color"])
    assert len(dots.get_xdata()) == len(LAYERS) * len(HEADS)
    assert line.get_ydata()[1] == pytest.approx(20, rel=0.05)
    assert max(dots.get_ydata()) == max(line.get_ydata())
    assert any(set(other.get_ydata()) == {5.0} for other in axes.lines)


def test_persistence_of_one_window_says_how_many_are_needed():
    with pytest.raises(ValueError, match="2 are needed"):
        plots.persistence_by_layer(*outliers(windows=1))


def test_the_sink_is_marked_and_compared_with_the_median():
    keys, _, ratio = panels(plots.token_norms(*outliers(pre_rope=False)))
    stars = [line for line in keys.lines if line.get_marker() == "*"]
    assert [float(star.get_xdata()[0]) for star in stars] == [1.0] * len(LAYERS)
    assert keys.get_xscale() == "log"
    line = lines_in(ratio, SIDE_LOOKS["key"]["color"])[0]
    assert line.get_ydata()[0] == pytest.approx(1, rel=0.05)
    assert line.get_ydata()[1] > 1.5


def test_errors_name_every_scheme_once_and_mark_an_error_of_zero():
    figure = plots.errors_by_layer(*errors())
    assert legend(figure) == SPECS
    axes = panels(figure)[0]
    line, mark = lines_in(axes, scheme_style(NAMES[0]).color)
    assert np.isnan(line.get_ydata()).tolist() == [False, True, False]
    assert (mark.get_xdata().tolist(), mark.get_marker()) == ([LAYERS[1]], "v")
    assert axes.get_ylim()[0] < mark.get_ydata()[0] < min(min(other.get_ydata()) for other in axes.lines[2:])
    assert "hollow ▽: 0 or less" in said(figure)


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_in_a_figure_is_read_as_markup(name):
    """A $ in a name, which has to be drawn; and no label of an axis relies on it."""
    with plots.styled():
        figure = DRAWN[name][0]()
    figure.suptitle(r"a model of $\frac{1}$ and $$")
    figure.canvas.draw()
    assert not [text for text in figure.findobj(Text) if text.get_parse_math() and "$" in text.get_text()]
    assert not [one for one in said(figure) if "mathdefault" in one]


def test_a_scheme_has_one_colour_in_every_figure():
    color = scheme_style("kivi:bits=2").color
    for name in ("errors", "sensitivity", "bits", "scatter"):
        handles = {text.get_text(): handle for text, handle in zip(*parts(DRAWN[name][0]()), strict=True)}
        assert handles["kivi2"].get_color() == color, name


def parts(figure):
    return figure.legends[0].get_texts(), figure.legends[0].get_lines()


def test_whiskers_are_the_interval_over_windows():
    measurement, arrays = sensitivity()
    divergence = panels(plots.sensitivity_by_layer(measurement, arrays))[0]
    each = arrays["kl"][:, 0, 0, 0] / 10
    half = 4.302653 * each.std(ddof=1) / np.sqrt(3)  # t of 2 degrees of freedom
    low, high = divergence.collections[0].get_segments()[0][:, 1]
    assert (low, high) == (pytest.approx(each.mean() - half), pytest.approx(each.mean() + half))


def test_one_window_has_no_whiskers():
    figure = plots.sensitivity_by_layer(*sensitivity(1))
    assert "interval" not in figure.get_suptitle()
    ends = [segment for axes in panels(figure) for lines in axes.collections for segment in lines.get_segments()]
    assert not any(np.isfinite(segment[:, 1]).all() for segment in ends if len(segment))


def test_scatter_keeps_what_is_not_positive_and_says_what_is_not_finite():
    first, second = panels(plots.measure_scatter(SCATTER, "KL (nats a token)", "what predicts"))
    drawn = [line for line in first.lines if len(line.get_xdata())]
    assert sum(len(line.get_xdata()) for line in drawn) == 3
    assert [line.get_markerfacecolor() == "none" for line in drawn] == [False, True, True]
    assert first.get_title(loc="left") == "ρ 0.9; 2 at the edge: ≤ 0"
    assert second.get_title(loc="left") == "1 not finite"
    assert {text.get_text() for text in first.texts} <= {"2", "3", "5"}


def test_the_floor_of_a_log_axis_lies_below_what_is_positive():
    drawn, moved = floored(np.array([3.0, -1.0, 0.0, np.nan]))
    assert drawn[:3].tolist() == [3.0, 1.0, 1.0]
    assert moved.tolist() == [False, True, True, False]
    assert floored(np.array([0.0]))[0].tolist() == [1.0]


def test_bits_leave_exact_out_and_labels_do_not_overlap():
    crowd = [point(f"asym4:group_size={16 * g}", 4 + 0.14 * (g % 8), 0.1 + 0.02 * (g // 8)) for g in range(1, 21)]
    # the right one has room on its left alone, where the label of its neighbour is
    crowd += [point("asym8:group_size=32", 6.9, 0.01), point("asym8:group_size=16", 9.0, 0.01)]
    figure = plots.bits_against_loss([*ROWS, *crowd], "crowded")
    assert len(legend(figure)) == 2 + len(crowd)
    assert "exact" not in legend(figure)
    assert panels(figure)[0].get_yscale() == "symlog"
    labels = [text for text in figure.findobj(Annotation) if text.get_text()]
    assert {"asym8 token/token g32", "kivi2"} <= {text.get_text() for text in labels}
    boxes = [text.get_window_extent() for text in labels]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert panels(plots.bits_against_loss([ROWS[2]], "above 0"))[0].get_yscale() == "log"


def test_of_many_schemes_the_unbeaten_are_named():
    """KL against bits, no legend: 28 schemes with the same KL, one below them, and one that failed."""
    rows = [point(f"asym4:group_size={8 * g}", 2 + 0.1 * g, 0.5, kl=0.5, kl_se=0.1) for g in range(1, 29)]
    rows += [point("kivi2", 3.05, 0.1, kl=0.05, kl_se=0.01)]
    rows += [point("int2", 2.0, 0.1, kl=float("nan"), kl_se=float("nan"), error="RuntimeError: no more")]
    figure = plots.bits_against_loss(rows, "many")
    assert figure.legends == []
    (axes,) = panels(figure)
    assert "KL" in axes.get_ylabel()
    assert axes.get_yscale() == "log"
    named = {text.get_text() for text in figure.findobj(Annotation) if text.get_text()}
    assert named == {"kivi2", scheme_label(rows[0].name)}  # the others have as much KL at more bits
    assert "named: 2 of 29" in axes.get_title(loc="left")


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        ("hadamard(clip(asym2):c=0.8)", "hadamard(clip(asym2) c=0.8)"),
        ("hadamard(asym2:group_size=32)", "hadamard(asym2 token/token g32)"),
        ("kvquant:bits=3,calibration=a.safetensors#12345678", "kvquant3"),
    ],
)
def test_labels_of_what_is_nested_or_calibrated(spec, label):
    name = spec if "kvquant" in spec else parse_scheme(spec).name
    assert scheme_label(name) == label


def test_rows_that_cannot_be_believed_are_named_and_not_drawn():
    """A scheme whose cache was not read has the exact loss at its own bits: it would beat all others."""
    perfect = point("int4", 4.25, 0.0, audit="cache not read (key and value coverage 0)")
    failed = point("int2", None, float("nan"), error="RuntimeError: no more", audit="it failed")
    figure = plots.bits_against_loss([*ROWS, perfect, failed], "believed")
    assert legend(figure) == ["int8", "kivi2"]
    assert figure.get_suptitle() == "believed\nleft out (cache not read): int4; left out (failed): int2"


def test_a_layer_whose_cache_was_not_read_has_no_cost():
    measurement, arrays = sensitivity()
    arrays["kl"][:, 0, 0, 1] = 0  # int8's keys of layer 3: nothing moved
    figure = plots.sensitivity_by_layer(measurement, arrays)
    assert "left out (cache not read): int8 key of layer 3" in figure.get_suptitle()
    for axes in panels(figure)[:2]:
        lines = lines_in(axes, scheme_style(NAMES[0]).color)
        assert [np.isnan(line.get_ydata()).tolist() for line in lines] == [[False, True, False]]
    assert not any("▽" in text for text in said(figure))


def test_allocation_has_a_bar_a_layer_and_side():
    (axes,) = panels(DRAWN["allocation"][0]())
    assert [bar.get_height() for bar in axes.patches] == [4.5, 2.5, 2.5, 2.5]
    assert axes.patches[0].get_hatch() != axes.patches[2].get_hatch()


def luminance(color):
    return float(np.dot(to_rgb(color), (0.2126, 0.7152, 0.0722)))


def test_the_usual_schemes_differ_in_colour_and_in_greyscale():
    styles = {spec: scheme_style(parse_scheme(spec).name) for spec in USUAL}
    assert len({(style.color, style.hollow) for style in styles.values()}) == len(USUAL)
    for (a, one), (b, other) in combinations(styles.items(), 2):
        same_shape = (one.marker, one.hollow) == (other.marker, other.hollow)
        assert not same_shape or abs(luminance(one.color) - luminance(other.color)) > 0.08, (a, b)


def test_fewer_bits_are_darker_and_other_options_hollow():
    shades = [luminance(scheme_style(f"asymmetric:bits={bits}").color) for bits in (8, 4, 3, 2, 1)]
    assert shades == sorted(shades, reverse=True)
    assert scheme_style("symmetric:bits=4,group_size=16").hollow
    assert not scheme_style("symmetric:bits=4").hollow


def test_a_foreign_cache_and_a_map_of_layers_have_a_lasting_look():
    assert scheme_style("foreign.py:Cache") == scheme_style("foreign.py:Cache")
    looks = {scheme_style(name) for name in ("@a.json#1", "@b.json#1", "@c.json#1", "other", "kivi:bits=2 (keys only)")}
    assert len(looks) > 2
    assert scheme_style("foreign.py:Cache").marker not in {marker for _, marker in HUES.values()}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("symmetric:bits=4", "int4"),
        ("symmetric:bits=4,group_size=16", "int4 g16"),
        ("asymmetric:bits=2,key_axis=channel,group_size=32", "asym2 channel/token g32"),
        ("asymmetric:bits=2,group_size=32", "asym2 token/token g32"),
        ("kivi:key_bits=4,value_bits=2", "kivi4/2"),
        ("hqq:bits=4", "hqq4"),
        ("exllamav3:bits=4", "exllamav3 4"),
        ("exact", "exact"),
        ("@maps/three.json#12345678", "three.json#12345678"),
        ("foreign.py:Cache", "foreign.py:Cache"),
    ],
)
def test_labels_are_short(name, label):
    assert scheme_label(name) == label


def test_labels_of_the_usual_schemes_differ():
    assert len({scheme_label(parse_scheme(spec).name) for spec in USUAL}) == len(USUAL)


def test_a_style_goes_above_ours(tmp_path):
    path = tmp_path / "own.mplstyle"
    path.write_text("font.size: 13\n")
    with plots.styled(str(path)):
        assert matplotlib.rcParams["font.size"] == 13
        assert matplotlib.rcParams["xtick.labelsize"] == 7
    with plots.styled("dark_background"):
        assert panels(DRAWN["ratio"][0]())[0].get_facecolor()[:3] == (0, 0, 0)


def test_an_unknown_style_is_one_line_with_a_guess():
    with pytest.raises(ValueError, match=r"did you mean 'ggplot'\? .*classic") as caught, plots.styled("gplot"):
        pass
    assert "\n" not in str(caught.value)


def test_a_layout_needs_no_minor_ticks():
    """It is that of all ticks, and the ticks are there afterwards; labels between powers of ten count."""
    for tidy in (True, False):
        places = []
        for settle in (canvas.settle, lambda figure: figure.get_layout_engine().execute(figure)):
            figure, panels = canvas.grid_figure("a title", 2, 2, 2.1)
            for axes in panels.flat:
                axes.plot([1e-4, 3.0], [2e-5, 7e-5])
                axes.set(xscale="log", yscale="log", xlabel="x", ylabel="y")
                for axis in (axes.xaxis, axes.yaxis) if tidy else ():
                    canvas.tidy_log(axis)
            settle(figure)
            ticks = [tuple(axes.xaxis.get_minorticklocs()) for axes in panels.flat]
            places.append(([axes.get_position().bounds for axes in panels.flat], ticks))
            assert not tidy or len(ticks[0]) > 20
        assert places[0] == places[1]
