"""A model whose heads are spread over the processes of a launcher: tensor parallelism as transformers brings it."""

import atexit
import os
from collections.abc import Callable
from typing import Any

from kvdelta.harness.subject.errors import ModelError
from kvdelta.harness.subject.probing import differ, kv_shapes, probe, tokens_for
from kvdelta.schemes.errors import UserError

INSTEAD = "--device-map auto, in one process, takes such a model"


def asked_processes() -> int:
    """How many a launcher has started; UserError where there is but one to spread heads over."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes < 2:
        raise UserError(
            "tensor_parallel spreads the heads of a model over processes, and there is one: start several with torchrun "
            "--nproc-per-node N --no-python kvdelta compare …"
        )
    return processes


def spread_over(model: Any) -> int:
    """How many processes have some of its heads each; 1 where one has all."""
    return getattr(model, "tp_size", None) or 1


def check_plan(config: Any, name: str, processes: int) -> None:
    """ModelError, before weights are read, where transformers cannot spread this model so."""
    text = config.get_text_config(decoder=True)
    if not (getattr(config, "base_model_tp_plan", None) or getattr(text, "base_model_tp_plan", None)):
        raise ModelError(
            f'"{name}" ({config.model_type}) has no plan for tensor parallelism in transformers; {INSTEAD}'
        )
    heads, shared = text.num_attention_heads, _kv_heads(text)
    if not (isinstance(heads, int) and isinstance(shared, int)):
        raise ModelError(f'"{name}" ({config.model_type}) has its number of heads by layer; {INSTEAD}')
    if heads % processes or shared % processes:
        raise ModelError(
            f'"{name}" has {heads} heads and {shared} KV heads, which {processes} processes cannot share evenly; start as many as '
            f"divide both; {INSTEAD}"
        )


def _kv_heads(text: Any) -> Any:
    return getattr(text, "num_key_value_heads", None) or text.num_attention_heads


def plan(processes: int) -> dict[str, Any]:
    """What from_pretrained takes to spread a model by its own plan; it joins the processes."""
    import torch.distributed
    from transformers.distributed.configuration_utils import DistributedConfig

    if not torch.distributed.is_initialized():
        atexit.register(_leave)  # else its threads abort a process that ends early
    return {"distributed_config": DistributedConfig(tp_size=processes)}


def _leave() -> None:
    """Without waiting for the others, as destroy_process_group would on GPUs: they may wait for this one in a forward."""
    from torch.distributed import distributed_c10d

    if distributed_c10d.is_initialized():
        distributed_c10d._abort_process_group()


def check_heads(model: Any, name: str) -> None:
    """ModelError where a layer of a loaded model does not cache its part of the KV heads: bytes are summed over processes."""
    processes, heads = spread_over(model), _kv_heads(model.config.get_text_config(decoder=True))
    for layer, shape in kv_shapes(model, "all").items():
        if shape.heads * processes != heads:
            raise ModelError(
                f'"{name}" is not spread by its KV heads: it has {heads}, and layer {layer} caches {shape.heads} in each of '
                f"{processes} processes; {INSTEAD}"
            )


def check_same_logits(model: Any, gather: Callable[[Any], list[Any]]) -> None:
    """UserError where processes do not come to the same logits: each is to have them whole."""
    first, *others = gather(probe(model, tokens_for(model))[0].cpu())
    if any(differ(other, first, model.dtype) for other in others):
        raise UserError(
            f"the {len(others) + 1} processes that this {model.config.model_type} model is spread over come to other logits; {INSTEAD}"
        )
