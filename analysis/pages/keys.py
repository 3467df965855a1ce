"""What tells the marks of all panels apart: schemes, and the sources (model, text, protocol, context) that figures are of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvdelta.analysis.pages.looks import look_of
from kvdelta.analysis.plots.style import scheme_label
from kvdelta.harness.records.run import Header, named
from kvdelta.schemes.references import identity_of

LONG = 22  # characters of a scheme's name, from which a chart has a shorter one
WEIGHTS = ", weights "  # behind it stands what was done to them
AXIS_NAMES = ("model", "text", "protocol", "prefix")


@dataclass(eq=False)
class Keys:
    """Schemes by identity and sources by what they are of, numbered in the order in which they are met. called: identities that
    have a name in common (cells.Cell.called)."""

    called: Mapping[str, str] = field(default_factory=dict)
    schemes: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: dict[tuple, int] = field(default_factory=dict)

    def scheme(self, name: str, label: str) -> int:
        identity = identity_of(name)
        key = self.called.get(identity, identity)
        if key not in self.schemes:
            self.schemes[key] = {"i": len(self.schemes), "label": label, "name": name, **look_of(name)}
            short = scheme_label(name)
            self.schemes[key]["short"] = short if len(label) > LONG and len(short) < len(label) else label
        return self.schemes[key]["i"]

    def source(self, record: Header, protocol: bool = True) -> int:
        """protocol: whether the record is of one; a measurement is not."""
        prefix = record.settings.window_length - record.settings.score_length
        of_run = (record.text_name, named(record.settings), prefix) if protocol else (None, None, None)
        key = (model_of(record), *of_run)
        return self.sources.setdefault(key, len(self.sources))

    def as_json(self) -> dict[str, Any]:
        shorts = [one["short"] for one in self.schemes.values()]
        for one in self.schemes.values():
            one["short"] = one["short"] if shorts.count(one["short"]) == 1 else one["label"]
        return {
            "schemes": list(self.schemes.values()),
            "sources": [dict(zip(AXIS_NAMES, key, strict=True)) for key in self.sources],
        }


def model_of(record: Header) -> str:
    """Its name, with the organization that tells it from another of the same name; without what was done to its weights."""
    return record.model_name.partition(WEIGHTS)[0]
