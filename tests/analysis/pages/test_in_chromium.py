"""The page as its reader has it, in headless Chromium."""

import base64
import time

import pytest

from .conftest import UNREAD, data_of, rows_of

WIDTHS = (390, 820, 1440)
LIT = "return [...document.querySelectorAll('#rows tbody tr.hot th span')].map((one) => one.textContent)"
DIMMED = """const found = [...document.querySelectorAll('.chart')].map((chart) => [...chart.querySelectorAll('.mark-symbol path, .mark-rect path')]
    .map((mark) => Number(getComputedStyle(mark).opacity)));
return found.filter((one) => one.some((opacity) => opacity < 0.2)).length;"""


class Reader:
    """Opens pages and asks them."""

    def __init__(self, chrome, folder):
        self.chrome, self.folder = chrome, folder

    def open(self, page, width=1440, theme="light", hash=""):
        path = self.folder / f"{len(page)}-{hash or 'page'}.html"
        path.write_text(page)
        self.chrome.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.chrome.get_log("browser")
        self.chrome.get(path.as_uri())
        self.until("return document.documentElement.dataset.ready === 'true'")
        return self

    def ask(self, script, *values):
        return self.chrome.execute_script(script, *values)

    def until(self, script, *values, seconds=30):
        end = time.monotonic() + seconds
        while not (answer := self.ask(script, *values)):
            assert time.monotonic() < end, script
            time.sleep(0.05)
        return answer

    def errors(self):
        return [entry["message"] for entry in self.chrome.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def reader(browser, tmp_path_factory):
    return Reader(browser, tmp_path_factory.mktemp("pages"))


@pytest.fixture
def page(reader, several):
    return reader.open(several)


def names(page):
    return page.ask("return [...document.querySelectorAll('#rows tbody th span')].map((one) => one.textContent)")


def column(page, name):
    place = "[...document.querySelectorAll('#rows thead th')].findIndex((one) => one.dataset.column === arguments[0])"
    return page.ask(
        f"const at = {place}; return [...document.querySelectorAll('#rows tbody tr')].map((row) => row.children[at].textContent)",
        name,
    )


def test_no_error_and_nothing_is_asked_of_the_network(page):
    assert page.errors() == []
    assert (
        page.ask("return performance.getEntriesByType('resource').filter((one) => !one.name.startsWith('data:'))") == []
    )
    assert page.ask("return document.querySelectorAll('.chart svg').length") > 10


def test_headings_sort_by_click_and_by_key(page):
    bits = "document.querySelector('#rows th[data-column=bits]')"
    page.ask(f"{bits}.querySelector('button').click()")
    first = [float(text) for text in column(page, "bits") if text != "–"]
    assert first == sorted(first)
    assert page.ask(f"return {bits}.ariaSort || {bits}.getAttribute('aria-sort')") == "ascending"
    page.ask(f"{bits}.querySelector('button').focus()")
    page.chrome.switch_to.active_element.send_keys("\n")
    second = [float(text) for text in column(page, "bits") if text != "–"]
    assert second == sorted(first, reverse=True)
    assert page.ask(f"return {bits}.getAttribute('aria-sort')") == "descending"
    assert page.ask("return document.querySelectorAll('#rows th[aria-sort=none]').length") > 5


def test_search_leaves_rows_and_marks(page):
    marks = "return document.querySelectorAll('#front .mark-symbol path').length"
    before = page.ask(marks)
    page.chrome.find_element("id", "search").send_keys("TURBO")
    assert set(names(page)) == {"turbo4", "unbiased(turbo4)"} & set(names(page))
    assert names(page)
    page.until(f"return (() => {{ {marks} }})() < arguments[0]", before)
    assert page.ask("return document.getElementById('status').textContent").startswith(f"{len(names(page))} of ")
    page.chrome.find_element("id", "search").send_keys(" nothing has this name")
    page.until("return document.querySelectorAll('#front figure:not([hidden])').length === 0")
    assert "No row is of what is chosen" in page.ask("return document.querySelector('#rows tbody').textContent")
    page.until("return !document.querySelector('#front .empty').hidden")


def test_a_filter_changes_every_chart(page):
    shown = "return [...document.querySelectorAll('figure:not([hidden]) figcaption')].map((one) => one.textContent).join('|')"
    assert "SmolLM2" in page.ask(shown)
    page.ask("document.querySelector('[data-filter=\"model-SmolLM2-135M-Instruct\"]').click()")
    page.until(f"return !(() => {{ {shown} }})().includes('SmolLM2')")
    assert set(column(page, "model")) == {"qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"}
    page.ask("document.querySelector('[data-filter=\"protocol-two-pass\"]').click()")
    page.until("return document.querySelectorAll('#front figure:not([hidden])').length === 1")
    assert set(column(page, "protocol")) == {"stepwise (step 16)"}


def test_pointing_at_a_row_or_a_mark_is_seen_everywhere(page):
    assert page.ask(DIMMED) == 0
    page.ask("""const row = [...document.querySelectorAll('#rows tbody tr')].find((one) => one.textContent.includes('turbo4'));
        row.dispatchEvent(new MouseEvent('mouseenter'))""")
    page.until(f"return (() => {{ {DIMMED} }})() > 5")
    assert page.ask("return document.querySelectorAll('.key li.hot').length") > 0
    page.ask(
        "document.querySelectorAll('#rows tbody tr').forEach((one) => one.dispatchEvent(new MouseEvent('mouseleave')))"
    )
    page.until(f"return (() => {{ {DIMMED} }})() === 0")
    place = page.ask("""const mark = document.querySelector('#front .mark-symbol path'); mark.scrollIntoView({ block: 'center', behavior: 'instant' });
        const box = mark.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]""")
    where = {"x": place[0], "y": place[1]}
    page.chrome.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", **where})
    page.until("return !document.getElementById('tip').hidden")
    assert "KL: " in page.ask("return document.getElementById('tip').textContent")
    assert len(set(page.until(LIT))) == 1
    buttons = {"button": "left", "clickCount": 1}
    for kind in ("mousePressed", "mouseReleased"):
        page.chrome.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **where, **buttons})
    page.until("return document.querySelectorAll('#rows input:checked').length > 0")
    assert "1 chosen" in page.ask("return document.getElementById('status').textContent")


def test_it_prints(page):
    printed = page.chrome.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") + pdf.count(b"/Type/Page/") >= 3


def test_hostile_names_stay_text(reader, hostile):
    page = reader.open(hostile, hash="hostile")
    assert page.errors() == []
    assert page.ask("return document.querySelectorAll('img').length") == 0
    assert page.ask("return document.scripts.length") == 3
    text = page.ask("return document.body.innerText")
    assert "<img src=x onerror=alert(1)>" in text
    assert "</script><script>alert(2)</script>" in text
    assert "\\x1b[31m" in text
    assert "failed: </script>" in text


def test_what_cannot_be_believed_has_no_score(reader, hostile):
    page = reader.open(hostile, hash="hostile")
    lines = page.ask("return [...document.querySelectorAll('#rows tbody tr')].map((one) => one.innerText)")
    refused = [line for line in lines if UNREAD in line]
    assert len(refused) == 1
    row = next(row for row in rows_of(data_of(hostile)) if row["verdict"] == UNREAD)
    assert f"{row['ppl']:.4f}" not in refused[0]
    assert f"{row['kl']:.2g}" not in refused[0]
    drawn = page.ask("return [...document.querySelectorAll('#front text')].map((one) => one.textContent)")
    assert row["scheme"] not in drawn
    assert "hqq4" in drawn


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_in_both_themes(reader, several, width):
    for theme, paper in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 27)")):
        page = reader.open(several, width, theme)
        assert page.ask("return document.documentElement.scrollWidth") <= width
        assert page.ask("return getComputedStyle(document.body).backgroundColor") == paper
        wide = "return [...document.querySelectorAll('.chart svg')].filter((one) => one.getBoundingClientRect().right > innerWidth + 1).length"
        assert page.ask(wide) == 0
    page.ask("const theme = document.getElementById('theme'); theme.click()")
    assert page.ask("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_it_can_be_read_without_seeing_it(page):
    unnamed = """const name = (one) => one.getAttribute('aria-label') || one.textContent.trim() || (one.labels && one.labels.length && one.labels[0].textContent.trim());
        return [...document.querySelectorAll('button, input, a, summary, [role=img], [role=region], section')].filter((one) => !name(one)).map((one) => one.outerHTML)"""
    assert page.ask(unnamed) == []
    assert page.ask("return document.documentElement.lang") == "en"
    assert page.ask("return [...document.querySelectorAll('h1')].length") == 1
    labels = page.ask(
        "return [...document.querySelectorAll('[role=img]')].map((one) => one.getAttribute('aria-label'))"
    )
    assert all(len(label) > 40 for label in labels)
    page.ask("document.querySelector('#front details.data summary').click()")
    page.until("return document.querySelectorAll('#front details.data tbody tr').length > 10")
    page.chrome.find_element("tag name", "body").send_keys("\t")
    assert page.ask("return document.activeElement.className") == "skip"
