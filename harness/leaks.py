"""Nothing is scored, unasked, on tokens that it was made from, neither a calibration nor a map that was fitted; and no calibration
on another model than its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvdelta.harness.caches.contenders import Contender
from kvdelta.harness.options import Options
from kvdelta.harness.subject.model import LoadedModel
from kvdelta.harness.subject.prepared import Subject
from kvdelta.harness.subject.text import token_sha256
from kvdelta.harness.subject.token_runs import RUN, seen_runs, shared_runs
from kvdelta.schemes.errors import UserError


def seen_text(subject: Subject) -> dict[str, str]:
    """What a calibration, or a map, keeps of the windows that it was made from: name and sha256 of the text, token_sha256
    of all its tokens, and runs, hashes of the tokens that the windows hold."""
    return {
        "name": subject.text.name,
        "sha256": subject.text.source.get("sha256", ""),
        "token_sha256": token_sha256(subject.tokens),
        "runs": " ".join(seen_runs(subject.tokens, subject.windows)),
    }


def check_models(contenders: Sequence[Contender], loaded: LoadedModel) -> None:
    """UserError where a contender was calibrated on another model."""
    for contender in contenders:
        for model in contender.calibrated_for:
            if differs := _differs(model, loaded.source):
                raise UserError(
                    f"scheme {contender.label} was calibrated on another model, {model.get('id', 'unknown')} ({differs}); calibrate "
                    f"it on this one: kvdelta calibrate"
                )


def check_calibrations(contenders: Sequence[Contender], options: Options, subject: Subject) -> None:
    """UserError where a contender was calibrated on another model, or has seen tokens of the windows that it would be scored on, unless
    that is asked for."""
    check_models(contenders, subject.loaded)
    if options.same_text:
        return
    for contender in contenders:
        texts = {text["token_sha256"] + text.get("runs", ""): text for text in contender.calibrated_on}  # one a layer
        for text in texts.values():
            if overlap := _overlap(text, subject):
                raise UserError(
                    f"scheme {contender.label} has seen this text ({text['name']}; {overlap}), so its score would flatter "
                    "it; score it on another text, or say --same-text"
                )


def _differs(model: Mapping[str, Any], source: Mapping[str, str]) -> str:
    """What tells two models apart, in words; empty where nothing does: a folder may be the copy of a hub's model."""
    names = ("sha256", "id", "revision") if model.get("kind") == source["kind"] else ("architecture",)
    for name in names:
        if model.get(name) and source.get(name):
            return f"its {name} is {model[name]}" if model[name] != source[name] else ""
    return ""


def _overlap(text: Mapping[str, Any], subject: Subject) -> str:
    """What of the windows was seen, in words; empty where nothing was."""
    sha256 = subject.text.source.get("sha256")
    same_text = bool(sha256) and text["sha256"] == sha256
    same_tokens = text["token_sha256"] == token_sha256(subject.tokens)
    runs = text.get("runs", "").split()
    if not runs or (same_text and not same_tokens):  # from before runs were kept; or cut by another tokenizer
        return "all of it" if same_text or same_tokens else ""
    shared = shared_runs(runs, subject.tokens, subject.windows)
    return f"{shared} of the {len(runs)} runs of {RUN} tokens that it saw are in the windows" if shared else ""
