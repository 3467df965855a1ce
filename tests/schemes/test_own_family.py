"""A new scheme is one new file and no other line: that of docs/own-scheme.md, in a copy of the packages."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

USED = """
import json
import torch
from kvdelta.analysis.cli.catalogue import listing
from kvdelta.schemes import parse_scheme
from tests.schemes.cases import PLAIN_CASES
from tests.schemes.conformance import CHECKS

cases = [case.values[0] for case in PLAIN_CASES if type(case.values[0].quantizer).__name__ == "RoundedQuantizer"]
for check in CHECKS:
    check(cases[-1], torch.float32)
print(json.dumps({
    "listed": [row["bits K / V"] for row in json.loads(listing("json")) if row["scheme"] == "rounded"],
    "name": parse_scheme("rounded:bits=4,sink_tokens=4").name,
    "bits of the cases": sorted({case.quantizer.bits for case in cases}),
}))
"""


def test_the_file_that_the_docs_show_is_all_that_a_scheme_needs(tmp_path):
    """In a copy of the packages: it is listed with its measured bits, takes the fields of every scheme, and is a case of
    the conformance suite, which it passes."""
    for folder in ("kvdelta", "schemes", "harness", "analysis", "tests/schemes"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    blocks = re.findall(
        r"```python\n# (schemes/families/\w+\.py)\n(.*?)```", (ROOT / "docs" / "own-scheme.md").read_text(), re.S
    )
    assert [name for name, _ in blocks] == ["schemes/families/rounded.py"]
    (tmp_path / blocks[0][0]).write_text(blocks[0][1])
    here = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", USED], cwd=tmp_path, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "listed": ["4.50 / 4.50"],
        "name": "rounded:bits=4,sink_tokens=4",
        "bits of the cases": [1, 2, 3, 4, 8],
    }
