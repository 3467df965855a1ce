"""A GGUF file as a folder that loads quickly: reading the file takes half a minute, reading the folder half a second."""

import io
import json
import os
import shutil
from contextlib import redirect_stderr
from pathlib import Path

from kvdelta.harness.subject.errors import OTHER_MODEL, ModelError, one_line
from kvdelta.harness.subject.files import (
    Progress,
    cache_folder,
    file_sha256,
    needs_space,
    one_at_a_time,
    remembered_sha256,
)
from kvdelta.harness.subject.imports import quiet

ORIGIN = "kvdelta.json"  # in a converted folder: which GGUF file it was made from, and the hash of each file beside it
LAYOUT = "v1"  # of a converted folder; a new one is made where it differs


def gguf_folder(gguf: Path, progress: Progress) -> tuple[Path, str]:
    """The converted copy of a user's GGUF file, and the file's SHA-256; converted where it is not in the cache yet."""
    try:
        with gguf.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f'the GGUF file "{gguf.name}" cannot be read: {error.strerror}; {OTHER_MODEL}') from error
    if magic != b"GGUF":
        raise ModelError(f"\"{gguf.name}\" is not a GGUF file: it begins with {magic!r}, a GGUF file with b'GGUF'")
    sha256 = remembered_sha256(gguf)
    converted = converted_folder(sha256)
    if not is_converted(converted):
        with one_at_a_time(progress) as work:
            if not is_converted(converted):
                convert(gguf, sha256, work, progress)
    return converted, sha256


def converted_folder(sha256: str) -> Path:
    return cache_folder() / "models" / f"{sha256[:16]}-{LAYOUT}"


def is_converted(folder: Path) -> bool:
    """Whether a folder holds what was written there, to the last bit: a flipped one would be scored under the GGUF file's hash."""
    try:
        files = json.loads((folder / ORIGIN).read_text())["files"]
        return all(file_sha256(folder / name) == sha256 for name, sha256 in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or from before the hashes
        return False


def convert(gguf: Path, sha256: str, work: Path, progress: Progress) -> None:
    """Write model and tokenizer of a GGUF file as a float32 folder: dequantized weights are not exact in float16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = converted_folder(sha256)
    if os.path.exists(target):
        progress(f"the converted copy of {gguf.name} is not as this version writes it, or is damaged; it is made again")
    progress(f"converting {gguf.name} to safetensors (half a minute; once)")
    try:
        # transformers draws a bar while it dequantizes that has no switch; what goes wrong is raised, not printed
        with quiet(progress_bars=False), redirect_stderr(io.StringIO()):
            # trust_remote_code: a config.json with code of its own may lie beside the file
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
            )
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
    with needs_space(work, needed, f'the converted copy of "{gguf.name}"'), quiet(progress_bars=False):
        model.save_pretrained(part, max_shard_size="100GB")
        tokenizer.save_pretrained(part)
        files = {path.name: file_sha256(path) for path in sorted(part.iterdir())}
        (part / ORIGIN).write_text(json.dumps({"gguf": gguf.name, "sha256": sha256, "files": files}, indent=1) + "\n")
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
