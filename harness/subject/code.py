"""Code as a text: the standard library of the Python that runs, which every machine has."""

import hashlib
import platform
import sys
import sysconfig
import tokenize
from pathlib import Path

from kvdelta.harness.subject.errors import TextError

STDLIB = "python-stdlib"


def stdlib_code() -> tuple[str, dict[str, str]]:
    """The public modules that are single files, in the order of their names, as one text; and where it is from. It differs
    between versions of Python: its SHA-256 tells. TextError where the sources are not there."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    modules = sorted(
        path for path in folder.glob("*.py") if path.stem in sys.stdlib_module_names and path.stem[0] != "_"
    )
    try:
        content = "\n".join(map(_source, modules))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise TextError(f'"{STDLIB}" cannot be read: {error}; give a file of code with --text') from error
    if not content.strip():
        raise TextError(
            f'"{STDLIB}" cannot be had: this Python has its standard library without sources; give a file of code with --text'
        )
    version = f"{platform.python_implementation()} {platform.python_version()}"
    source = {"kind": STDLIB, "id": f"{version} standard library, {len(modules)} modules", "license": "PSF License"}
    return content, source | {"sha256": hashlib.sha256(content.encode()).hexdigest()}


def _source(path: Path) -> str:
    with tokenize.open(path) as file:  # in the encoding that the file declares
        return file.read()
