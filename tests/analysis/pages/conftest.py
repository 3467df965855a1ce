"""Pages of records of real runs, and of one whose names are hostile; and a browser to read them in."""

import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from kvdelta.analysis.pages.page import make_page
from kvdelta.harness.records.run import Run
from kvdelta.harness.records.run_folder import load_run, save_run

RESULTS = Path(__file__).parents[3] / "results"
HOSTILE = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "$x$ \x1b[31m")
UNREAD = "cache not read"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--hide-scrollbars",
)  # fmt: skip


def data_of(page: str) -> dict:
    """The JSON in a page."""
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def rows_of(content: dict) -> list[dict]:
    return [dict(zip(content["rows"]["fields"], values, strict=True)) for values in content["rows"]["values"]]


@pytest.fixture(scope="session")
def several():
    """Two models by two protocols, errors and an ablation, and a replay."""
    names = ("articles-cpu/smollm2", "articles-cpu/qwen", "explained-qwen-cpu", "replay-qwen-h200")
    return make_page([RESULTS / name for name in names], "kvdelta report").decode()


def hostile_run() -> Run:
    run = load_run(RESULTS / "demo").model_copy(deep=True)
    run.model_name, run.text_name = f"org/{HOSTILE[0]}{HOSTILE[1]}, float32", HOSTILE[2] + HOSTILE[0]
    run.command = f"kvdelta compare --scheme '{HOSTILE[1]}'"
    run.contenders[2].label, run.contenders[3].label = HOSTILE[0], HOSTILE[1]
    run.contenders[4].note, run.contenders[5].error = HOSTILE[2] + HOSTILE[0], HOSTILE[1] + HOSTILE[0]
    run.audit.failures = {run.contenders[6].label: [UNREAD]}
    for window in run.windows:
        window.nll[5] = window.kl[5] = window.probability[5] = float("nan")
    return run


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "run"
    save_run(hostile_run(), folder)
    return make_page([folder], f"kvdelta report {HOSTILE[1]}").decode()


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window, with a profile of its own; the test is left out where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    from selenium.webdriver.chrome.service import Service

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not found or not driver:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = found
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        chrome = webdriver.Chrome(options=options, service=Service(driver))
        chrome.set_script_timeout(30)
        yield chrome
        chrome.quit()
