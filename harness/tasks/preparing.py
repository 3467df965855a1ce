"""What tasks are run with, checked before any forward: the model, the samples of the user's own, and how others are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kvdelta.harness.caches.contenders import Contender
from kvdelta.harness.leaks import check_calibrations
from kvdelta.harness.options import Options
from kvdelta.harness.records.tasks import TaskRecord
from kvdelta.harness.settings import header_of, settings_of
from kvdelta.harness.subject.model import LoadedModel
from kvdelta.harness.subject.prepared import Subject, bos_of, check_vocabulary
from kvdelta.harness.subject.probing import check_continues
from kvdelta.harness.subject.text import Text, load_text, tokenize
from kvdelta.harness.subject.windows import Window, check_positions
from kvdelta.harness.tasks.given import given_samples
from kvdelta.harness.tasks.haystack import Haystack
from kvdelta.harness.tasks.lengths import check_lengths
from kvdelta.harness.tasks.levels import LADDERS, named
from kvdelta.harness.tasks.options import TaskOptions
from kvdelta.harness.tasks.samples import Maker, Sample


@dataclass(frozen=True)
class Work:
    """record: as it begins. maker: None without tasks that are made here. given: samples of the user's own."""

    loaded: LoadedModel
    record: TaskRecord
    maker: Maker | None
    given: list[Sample]


def prepared(loaded: LoadedModel, options: Options, how: TaskOptions, contenders: Sequence[Contender]) -> Work:
    """UserError, before any forward, for what cannot be used."""
    model, tokenizer, bos = loaded.model, loaded.tokenizer, bos_of(options, loaded)
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if options.step != 1:
        check_continues(model)
    given, sha256 = given_samples(how.task_file, tokenizer, bos, positions) if how.task_file else ([], "")
    maker, text, tokens = None, Text(Path(how.task_file or "").name, "", {"kind": "tasks", "sha256": sha256}), None
    if how.generated:
        check_positions(max(how.lengths), positions)
        text = load_text(options.text)
        tokens = tokenize(text, tokenizer)
        maker = Maker(tokenizer, bos, Haystack.of(text, tokenizer), options.seed, positions)
    own = torch.cat([sample.window.tokens for sample in given]) if given else tokens
    for one in (own, tokens):
        if one is not None:
            check_vocabulary(one, loaded)
    tokens = own if tokens is None else tokens
    assert tokens is not None  # there are tasks of one kind at least
    subject = Subject(loaded, text, tokens, [Window(0, 0, tokens, 0)], bos)
    for contender in contenders:
        check_lengths(contender, model, how, given)
    check_calibrations(contenders, options, subject)
    measured = {
        "tasks": list(how.generated),
        "lengths": list(how.lengths) if how.generated else [],
        "depths": how.depths,
        "samples": how.samples,
        "difficulty": how.difficulty,
        "search": how.search,
        "ladders": {task: [named(level) for level in LADDERS[task]] for task in how.generated},
        "task_file": sha256,
    }
    settings = settings_of(options, subject, [contender.name for contender in contenders], measured)
    settings = settings.model_copy(update={"windows": []})
    return Work(loaded, TaskRecord(**header_of(options, subject, settings)), maker, given)
