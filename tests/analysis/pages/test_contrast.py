"""WCAG 2 contrast of the page's colours, in both themes."""

import re
from importlib import resources

import pytest

from kvdelta.analysis.pages.looks import HUE_NAMES

CSS = (resources.files("kvdelta.analysis.pages") / "assets" / "page.css").read_text("utf-8")


def palette(selector):
    block = CSS[CSS.index(selector + " {") :].partition("}")[0]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))


THEMES = {"light": palette(":root"), "dark": palette(':root[data-theme="dark"]')}


def luminance(color):
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_measure():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", THEMES)
def test_text_is_readable(theme):
    colors = THEMES[theme]
    for text in ("ink", "soft", "link", "bad", "good"):
        for paper in ("paper", "panel", "hot"):
            assert contrast(colors[text], colors[paper]) >= 4.5, (text, paper)


@pytest.mark.parametrize("theme", THEMES)
def test_marks_are_seen(theme):
    colors = THEMES[theme]
    assert {f"hue-{name}" for name in HUE_NAMES.values()} <= colors.keys()
    for name in HUE_NAMES.values():
        assert contrast(colors[f"hue-{name}"], colors["paper"]) >= 3, name
        assert contrast(colors[f"hue-{name}"], colors["panel"]) >= 3, name
