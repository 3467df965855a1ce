"""One HTML file from records: its data as JSON, Vega's own code, and the page's scripts and style, with nothing to load."""

import base64
import hashlib
import html
import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from kvdelta.analysis.pages.keys import Keys, model_of
from kvdelta.analysis.pages.parts import packed
from kvdelta.analysis.reading.escaping import printable
from kvdelta.schemes.errors import UserError

LARGEST = 3_000_000  # bytes of a page
SCRIPTS = ("state.js", "table.js", "charts.js", "controls.js", "main.js")


def make_page(
    folders: Sequence[Path], command: str, on_note: Callable[[str], None] = lambda text: None, raw: bool = True
) -> bytes:
    """The page of all records in these folders, at most LARGEST bytes. raw: with the losses of every window, where there is room for
    them; on_note is told what is left out. UserError where a folder holds none, runs do not compare, or a library is missing."""
    from kvdelta.analysis.pages.found import find

    check_libraries()
    found = find(folders, on_note)
    content = contents(found, command)
    vega = vega_bundle()
    if not raw:
        content = without_raw(content, "as asked for")
    page = render(content, vega)
    if len(page) > LARGEST and content["files"]:
        content = without_raw(content, f"since the page would be over {LARGEST / 1e6:g} MB")
        on_note(content["left_out"])
        page = render(content, vega)
    if len(page) > LARGEST:
        raise UserError(
            f"the page would be {len(page) / 1e6:.1f} MB, and one of over {LARGEST / 1e6:g} is not written; give fewer run folders"
        )
    return page


def without_raw(content: Mapping[str, Any], why: str) -> dict[str, Any]:
    lost = " and ".join(file["title"] for file in content["files"])
    said = f"Left out, {why}: {lost}. The records have them." if lost else ""
    return {**content, "files": [], "left_out": said}


def check_libraries() -> None:
    """UserError where what draws the page is not installed."""
    for name in ("altair", "vl_convert"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(f"the report needs {error.name or name}; pip install 'kvdelta[report]' brings it") from None


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"(() => {{\n{bundle}\n}})();"


def contents(found: Any, command: str) -> dict[str, Any]:
    """Everything that the page shows, as JSON has it."""
    from kvdelta.analysis.pages.evidence import files_of
    from kvdelta.analysis.pages.glance import glance, main_cells, main_places
    from kvdelta.analysis.pages.rows import page_rows
    from kvdelta.analysis.pages.sections import sections_of

    called = {identity: name for cell in found.cells for identity, name in cell.called.items()}
    keys = Keys(called)
    rows = page_rows(found.cells, keys)
    top = glance(found.cells, found.failed, keys) if found.cells else None
    sections = [section.as_json() for section in sections_of(found, rows, keys, command)]
    content = {
        "title": title_of(found),
        "glance": None if top is None else vars(top),
        "rows": packed(rows),
        "runs": [cell.name for cell in found.cells],
        "main": main_places(found.cells),
        "main_names": [cell.name for cell in main_cells(found.cells)],
        "sections": sections,
        "files": files_of(found),
        "left_out": "",
        **keys.as_json(),
    }
    return safe(content)


def title_of(found: Any) -> str:
    models = [cell.run for cell in found.cells]
    models += [record for joined in found.measured for _, record in joined.headers]
    models += [replay for _, replay, _ in found.replays]
    names = list(dict.fromkeys(model_of(record) for record in models))
    if not names:
        return "What a smaller KV cache costs"
    return f"What a smaller KV cache costs {', '.join(names[:-1]) + ' and ' if names[:-1] else ''}{names[-1]}"


def safe(value: Any) -> Any:
    """With every text as `printable` has it, so that none steers what it is pasted into; and no NaN."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {name: safe(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [safe(one) for one in value]
    return None if isinstance(value, float) and value != value else value


def render(content: Mapping[str, Any], vega: str) -> bytes:
    """The file. What is in the data cannot end its element, and no script but those two runs."""
    assets = resources.files("kvdelta.analysis.pages") / "assets"
    script = '(() => {\n"use strict";\n' + "\n".join((assets / name).read_text("utf-8") for name in SCRIPTS) + "\n})();"
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        data = data.replace(char, f"\\u{ord(char):04x}")
    slots = {
        "policy": policy([vega, script]),
        "generator": "kvdelta",
        "title": html.escape(f"{content['title']} – kvdelta report"),
        "style": (assets / "page.css").read_text("utf-8"),
        "data": data,
        "vega": vega,
        "script": script,
    }
    page = (assets / "page.html").read_text("utf-8")
    return re.sub(r"<!--slot:(\w+)-->", lambda slot: slots[slot[1]], page).encode()


def policy(scripts: Sequence[str]) -> str:
    """Content-Security-Policy: these scripts by their hashes, the page's own style, and nothing from anywhere."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
