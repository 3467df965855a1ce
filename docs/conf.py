"""Sphinx: the pages of this folder, and an API reference from docstrings. `make docs` builds them; a warning is an error."""

import importlib.metadata
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<!!)(\[[^\]]*\])\(\.\./([^)#\s]+)")  # to a file of the repository, beside this folder
WHOLE = 2_000_000  # bytes up to which a linked folder's files go into the built pages

project = "kvdelta"
copyright = "the developers of kvdelta, Apache-2.0"
release = version = importlib.metadata.version("kvdelta")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"kvdelta {version}"
myst_heading_anchors = 3
myst_url_schemes = {"http": None, "https": None, "repository": "repository/{{path}}"}
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
suppress_warnings = ["myst.strikethrough"]

linked: set[str] = set()


def mark_links(app, page, source):
    """Links to files beside this folder become links to copies in the built pages."""
    source[0] = LINK.sub(lambda link: f"{link[1]}({_of(link[2])}", source[0])


def _of(path):
    linked.add(path.rstrip("/"))
    return f"repository:{path}"


def copy_linked(app, error):
    if error:
        return
    for name in sorted(linked):
        source, target = ROOT / name, Path(app.outdir) / "repository" / name
        if not source.exists():
            raise FileNotFoundError(f"a page links {name}, which is not there")
        files = [source] if source.is_file() else [file for file in source.rglob("*") if file.is_file()]
        if source.is_dir() and sum(file.stat().st_size for file in files) > WHOLE:
            files = [file for file in files if file.suffix in (".md", ".png", ".svg", ".html")]
        for file in files:
            place = target if source.is_file() else target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def setup(app):
    app.connect("source-read", mark_links)
    app.connect("build-finished", copy_linked)
