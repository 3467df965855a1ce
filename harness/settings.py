"""What decides a run's numbers, and the header of its record, from options and subject."""

from collections.abc import Sequence
from typing import Any

import torch

from kvdelta.harness.options import Options
from kvdelta.harness.records.provenance import MEASURES, commit, versions
from kvdelta.harness.records.run import Settings
from kvdelta.harness.subject.prepared import Subject
from kvdelta.harness.subject.spreading import spread_over
from kvdelta.harness.subject.text import token_sha256


def settings_of(
    options: Options, subject: Subject, contenders: Sequence[str], measured: dict[str, Any] | None = None
) -> Settings:
    """contenders: canonical specs, of which the record keeps what is no path. measured: what a measurement's numbers also depend on."""
    model = subject.loaded.model
    return Settings(
        model=subject.loaded.source,
        text_sha256=token_sha256(subject.tokens),
        protocol=options.protocol,  # type: ignore[arg-type]
        step=options.step,
        window_length=options.window_length,
        score_length=options.score_length,
        stride=options.stride or options.score_length,
        windows=[window.index for window in subject.windows],
        offset=options.offset,
        bos_token_id=subject.bos_token_id,
        device=torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=str(model.config._attn_implementation),
        seed=options.seed,
        until_se=options.until_se,
        tensor_parallel=spread_over(model),
        batch="auto" if options.batch == "auto" else int(options.batch),
        contenders=list(contenders),
        versions=versions(),
        commit=commit(),
        measures=MEASURES,
        measured=measured or {},
    )


def header_of(options: Options, subject: Subject, settings: Settings) -> dict[str, Any]:
    """The fields that every record begins with."""
    return {
        "kvdelta": settings.versions["kvdelta"],
        "command": options.command,
        "flags": dict(options.flags),
        "commit": settings.commit,
        "model_name": subject.loaded.name,
        "text_name": subject.text.name,
        "text_source": subject.text.source,
        "text_tokens": len(subject.tokens),
        "layers": subject.loaded.model.config.get_text_config(decoder=True).num_hidden_layers,
        "threads": torch.get_num_threads(),
        "settings": settings,
    }
