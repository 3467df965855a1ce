"""Model and tokenizer: a hub id, a local folder, a GGUF file, or the packaged default.

What the user names is loaded or refused; it is never replaced by something else.
"""

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kvdelta.harness.subject import hub
from kvdelta.harness.subject.errors import OTHER_MODEL, ModelError, one_line
from kvdelta.harness.subject.files import Progress, remembered_sha256
from kvdelta.harness.subject.gguf import gguf_folder
from kvdelta.harness.subject.imports import quiet
from kvdelta.harness.subject.packaged import GGUF_MEMBER, GGUF_SHA256, PACKAGED_NAME, WHEEL, packaged_folder
from kvdelta.harness.subject.probing import why_unusable
from kvdelta.harness.subject.spreading import check_heads, check_plan, plan
from kvdelta.schemes.errors import UserError

if TYPE_CHECKING:  # importing transformers takes seconds; `kvdelta --help` does without
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in eval mode, its tokenizer, and what outputs and run records say of them.

    `source` holds kind ("packaged", "hub", "folder" or "gguf"), id, architecture, and revision or sha256: names and
    hashes, no path of this machine.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    source: dict[str, str]


@dataclass(frozen=True)
class Place:
    """Where a model's weights go, and as what. trusted: whether code that it brings is run. processes: that share its heads."""

    device: str | torch.device
    dtype: torch.dtype
    device_map: str | None
    trusted: bool = False
    processes: int = 1


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def load_model(
    name: str | None = None,
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    device_map: str | None = None,
    trust_remote_code: bool = False,
    tensor_parallel: int = 1,
    progress: Progress = _to_stderr,
) -> LoadedModel:
    """Load a hub id (with `revision`), a local folder or a GGUF file; None is the packaged default.

    device_map: how transformers spreads the layers over devices, in place of `device`. trust_remote_code: run the Python code that a
    hub model or a folder brings; without it such a model is refused. tensor_parallel: processes that share its heads, all that the
    launcher has started, each on its own device.
    Raises ModelError where it cannot be had (what was tried) or is no decoder-only model with a KV cache.
    """
    place = Place(device, dtype, device_map, trust_remote_code, tensor_parallel)
    if name is None:
        _refuse_revision(revision, "the packaged default")
        folder = packaged_folder(progress)
        source = {"kind": "packaged", "id": f"{WHEEL} {GGUF_MEMBER}", "sha256": GGUF_SHA256}
        return _load(str(folder), None, PACKAGED_NAME, source, place)
    path = Path(os.path.expanduser(name))  # as it is, where there is no such user
    if os.path.isfile(path) and path.suffix == ".gguf":
        _refuse_revision(revision, f'the GGUF file "{name}"')
        folder, sha256 = gguf_folder(path, progress)
        source = {"kind": "gguf", "id": path.name, "sha256": sha256}
        return _load(str(folder), None, path.name, source, place)
    if os.path.isdir(path):
        _refuse_revision(revision, f'the folder "{name}"')
        if not os.path.isfile(path / "config.json"):
            raise ModelError(f'the folder "{name}" holds no model: there is no config.json in it')
        if not any(path.glob("*.safetensors")) and any(path.glob("*.bin")):
            raise ModelError(
                f'the folder "{name}" has pickled weights (*.bin) alone, which can run code when they are read; load it with '
                "transformers where you trust it, and save it again: save_pretrained writes safetensors"
            )
        base = path.resolve().name
        loaded = _load(str(path), None, base, {"kind": "folder", "id": base}, place)
        loaded.source["sha256"] = _folder_sha256(path, trust_remote_code)
        return loaded
    if os.path.isfile(path):
        raise ModelError(f'"{name}" is neither a model folder nor a GGUF file (*.gguf)')
    if name.startswith((".", "/", "~")) or name.endswith(".gguf") or "\\" in name or name.count("/") > 1:
        raise ModelError(
            f'model path "{name}" does not exist; give an existing folder or GGUF file, a hub id ("org/name"), '
            "or leave --model out for the packaged default"
        )
    with hub.asked():
        return _load(name, revision, name, {"kind": "hub", "id": name}, place)


def _refuse_revision(revision: str | None, what: str) -> None:
    if revision is not None:
        raise ModelError(f'revision "{revision}" goes with a hub id only, and {what} has none; leave --revision out')


def _load(
    where: str,
    revision: str | None,
    name: str,
    source: dict[str, str],
    place: Place,
) -> LoadedModel:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from kvdelta.harness.subject import attention

    pinned: dict[str, Any] = {} if source["kind"] != "hub" else {"revision": revision or "main"}
    # trust_remote_code: unset, transformers asks on the terminal whether to run the model's own code
    with quiet(progress_bars=source["kind"] == "hub"):
        try:
            config = AutoConfig.from_pretrained(where, trust_remote_code=place.trusted, **pinned)
        except Exception as error:
            raise _unavailable(name, pinned, error) from error
        _refuse_unsupported(config, name, place.trusted)
        if place.processes > 1:
            check_plan(config, name, place.processes)
        if pinned:  # a branch may move between the config and the weights; its commit does not
            pinned["revision"] = getattr(config, "_commit_hash", None) or pinned["revision"]
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=place.trusted, **pinned)
            spread = {"device_map": place.device_map} if place.device_map else {}
            spread |= plan(place.processes) if place.processes > 1 else {}
            # Any: transformers declares one return value, and two come with output_loading_info.
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where, dtype=place.dtype, output_loading_info=True, trust_remote_code=place.trusted,
                use_safetensors=True, **spread, **pinned,
            )  # fmt: skip
            model, report = loaded
        except Exception as error:  # OSError, ValueError, KeyError, safetensors' own: all mean it cannot be had
            raise _unavailable(name, pinned, error) from error
    if report["missing_keys"]:  # transformers fills these with random numbers and goes on
        raise ModelError(
            f'"{name}" lacks {len(report["missing_keys"])} weights of {type(model).__name__}, such as '
            f"{min(report['missing_keys'])}; it would be scored with random numbers in their place; {OTHER_MODEL}"
        )
    source |= {"architecture": type(model).__name__}
    if place.trusted and _own_code(config):
        source |= {"code": "its own"}
    if pinned:
        source |= pinned
    model = model.eval().requires_grad_(False)
    if not spread:
        model = model.to(place.device)
    with quiet(progress_bars=True):
        reason = why_unusable(model)
    if reason:
        raise ModelError(f'"{name}" ({type(model).__name__}) {reason}; kvdelta compares KV caches; {OTHER_MODEL}')
    if place.processes > 1:
        check_heads(model, name)
    attention.use_where_it_pays(model)
    return LoadedModel(model, tokenizer, name, source)


def _unavailable(name: str, pinned: dict[str, Any], error: Exception) -> ModelError:
    tried = f'the model hub (revision "{pinned["revision"]}")' if pinned else "the local files"
    reason = hub.refusal(name, error) if pinned else one_line(error)
    advice = "check the id, the revision and the network" if pinned else "check the files"
    if "trust_remote_code" in str(error):
        advice = "it brings Python code of its own: read that, and give --trust-remote-code where you want it run"
    return ModelError(
        f'model "{name}" cannot be loaded; tried {tried}: {reason}; {advice}, '
        "or leave --model out for the packaged default"
    )


def _own_code(config: Any) -> str | None:
    """The class of Python code that a model brings for itself, and names in its config."""
    return (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")


def _refuse_unsupported(config: Any, name: str, trusted: bool) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if trusted and _own_code(config):
        return
    if getattr(config, "is_encoder_decoder", False):
        reason = "is an encoder-decoder model"
    elif type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        reason = "has no causal language model in transformers"
    else:
        return
    raise ModelError(f'"{name}" ({config.model_type}) {reason}; kvdelta needs a decoder-only model; {OTHER_MODEL}')


def _folder_sha256(folder: Path, code: bool) -> str:
    """One hash over config.json, the weight files and, where it is run, the code, names included."""
    digest = hashlib.sha256()
    for path in [
        folder / "config.json",
        *sorted(folder.glob("*.safetensors")),
        *(sorted(folder.glob("*.py")) if code else []),
    ]:
        digest.update(f"{path.name}\0{remembered_sha256(path)}\n".encode())
    return digest.hexdigest()


def pick_device(name: str | None = None) -> str:
    """CUDA where there is one, unless named; ValueError for a device this machine has not."""
    allowed = ["cpu"]
    if torch.cuda.is_available():
        allowed += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    name = name or ("cuda" if "cuda" in allowed else "cpu")
    if name not in allowed:
        raise UserError(f'device "{name}" is not available here; choose one of: {", ".join(allowed)}')
    return name


def pick_dtype(name: str | None = None, device: str | torch.device = "cpu") -> torch.dtype:
    """float16 on a GPU (bfloat16's noise floor is as large as what is measured), float32 on a CPU, unless named."""
    name = name or ("float16" if torch.device(device).type == "cuda" else "float32")
    if name not in DTYPES:
        raise UserError(f'unknown dtype "{name}"; choose one of: {", ".join(DTYPES)}')
    return DTYPES[name]
