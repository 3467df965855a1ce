"""Contenders as a run wants all of them: with the same exact tokens, or stored in layers of other kinds."""

from collections.abc import Sequence
from typing import get_args

from kvdelta.harness.caches.contenders import Contender, SchemeContender
from kvdelta.schemes import LayerKinds, parse_scheme
from kvdelta.schemes.errors import UserError


def matched(contender: Contender, tail: int | None, sinks: int | None) -> Contender:
    """The contender with so many newest, and first, tokens exact, whatever its scheme has; None leaves it as it is. UserError
    for what is no scheme of ours."""
    given = [f"{name}={count}" for name, count in (("tail", tail), ("sinks", sinks)) if count is not None]
    if contender.lossless or not given:
        return contender
    if not isinstance(contender, SchemeContender):
        raise UserError(
            f"{contender.label} has exact tokens of its own, which --match-tail and --match-sinks cannot set; leave one of them out"
        )
    return SchemeContender(contender.label, parse_scheme(f"matched({contender.name}):{','.join(given)}"))


def by_layers(contenders: Sequence[Contender], kinds: Sequence[str]) -> list[Contender]:
    """Each contender once for each of the kinds of layers (full, sliding, all) that it is to store; what is lossless once."""
    known: tuple[LayerKinds, ...] = get_args(LayerKinds)
    if unknown := [kind for kind in kinds if kind not in known]:
        raise UserError(f"layers {unknown[0]!r}: choose {', '.join(known)}")
    chosen: list[LayerKinds] = sorted((kind for kind in known if kind in kinds), key=list(kinds).index)
    return [in_layers(one, kind) for one in contenders for kind in (chosen[:1] if one.lossless else chosen)]


def in_layers(contender: Contender, kinds: LayerKinds) -> Contender:
    """The contender stored in layers of these kinds; its label says so. UserError for what is no scheme of ours."""
    if contender.lossless or kinds == "full":
        return contender
    if not isinstance(contender, SchemeContender):
        raise UserError(f"{contender.label} has no choice of layers: leave it out, or --layers {kinds}")
    label, name = (
        f"matched({spec}):layers={kinds}" if spec.startswith("@") else f"{spec}{_more(spec)}layers={kinds}"
        for spec in (contender.label, contender.name)
    )
    return SchemeContender(label, parse_scheme(name))


def _more(spec: str) -> str:
    """What stands before one more field of a spec."""
    return "," if ":" in spec[spec.rfind(")") + 1 :] else ":"
