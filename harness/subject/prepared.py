"""The subject of a run: a loaded model, its text as tokens, and the windows cut from it."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from kvdelta.harness.options import Options
from kvdelta.harness.subject.model import LoadedModel, load_model, pick_device, pick_dtype
from kvdelta.harness.subject.spreading import asked_processes
from kvdelta.harness.subject.text import Text, adds_bos, load_text, tokenize
from kvdelta.harness.subject.windows import Window, check_positions, cut_windows
from kvdelta.schemes.errors import UserError


@dataclass(frozen=True, eq=False)
class Subject:
    """A loaded model, its text as tokens, and the windows cut from it."""

    loaded: LoadedModel
    text: Text
    tokens: torch.Tensor
    windows: list[Window]
    bos_token_id: int | None


def own_device(device: str) -> str:
    """ "cuda" made the GPU of this process, where torchrun or accelerate started several on this machine; UserError where there
    are fewer GPUs."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda" and local:
        if local >= (count := torch.cuda.device_count()):
            raise UserError(
                f"process {local + 1} on this machine has no GPU of its own, there are {count}; start {count} processes, or "
                "name one with --device"
            )
        torch.cuda.set_device(local)
    return device


def load_named(options: Options) -> LoadedModel:
    """The model that `options` name, on the device and in the dtype that they name. ValueError where it cannot be had."""
    if options.device_map and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "device_map spreads a model over all GPUs of the machine, so no second process finds room: start one process, "
            "without torchrun or accelerate launch"
        )
    processes = asked_processes() if options.tensor_parallel else 1
    device = own_device(pick_device(options.device))
    if processes > 1 and options.device not in (None, here := pick_device()):
        raise UserError(
            f"device={options.device}: tensor_parallel takes {here} on this machine, where each process has its own; leave --device out"
        )
    dtype = pick_dtype(options.dtype, device)
    return load_model(
        options.model,
        revision=options.revision,
        device=device,
        dtype=dtype,
        device_map=options.device_map,
        tensor_parallel=processes,
        trust_remote_code=options.trust_remote_code,
    )


def bos_of(options: Options, loaded: LoadedModel) -> int | None:
    """The token that windows begin with; None where they do without."""
    bos = loaded.tokenizer.bos_token_id
    if options.bos == "always" and bos is None:
        raise UserError(f"bos=always, but the tokenizer of {loaded.name} has no BOS token; use --bos never")
    wanted = options.bos == "always" or (options.bos == "auto" and adds_bos(loaded.tokenizer))
    return int(bos) if wanted else None  # type: ignore[arg-type]


def check_vocabulary(tokens: torch.Tensor, loaded: LoadedModel) -> None:
    """UserError for a token that the model has no embedding of: a GPU would read beside its table."""
    table: Any = loaded.model.get_input_embeddings()
    known, largest = len(table.weight), int(tokens.max())
    if largest >= known:
        raise UserError(
            f"the tokenizer of {loaded.name} gives token {largest}, and the model knows {known} (0 to {known - 1}): they do not belong "
            "together; check the files"
        )


def prepare(options: Options, loaded: LoadedModel | None = None) -> Subject:
    """Load what `options` name and cut the windows. ValueError for whatever cannot be had or used. loaded: the model, where it is
    there already."""
    text = load_text(options.text)
    loaded = loaded or load_named(options)
    positions = getattr(loaded.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    check_positions(options.window_length, positions)
    tokens = tokenize(text, loaded.tokenizer)
    check_vocabulary(tokens, loaded)
    bos_token_id = bos_of(options, loaded)
    windows = cut_windows(
        tokens,
        window_length=options.window_length,
        score_length=options.score_length,
        stride=options.stride,
        windows=options.windows,
        offset=options.offset,
        bos_token_id=bos_token_id,
    )
    return Subject(loaded, text, tokens, windows, bos_token_id)
