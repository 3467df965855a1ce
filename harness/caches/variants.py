"""Contenders as a run wants all of them: with the same exact tokens, or stored in layers of other kinds."""

from collections.abc import Sequence
from math import lcm
from typing import get_args

from kvdelta.harness.caches.contenders import Contender, SchemeContender
from kvdelta.harness.records.run import MATCHED
from kvdelta.schemes import LayerKinds, Scheme, parse_scheme
from kvdelta.schemes.errors import UserError


def matched(contenders: Sequence[Contender], tail: int | None, sinks: int | None) -> list[Contender]:
    """The contenders with so many newest, and first, tokens exact, whatever their schemes have; None leaves that as it is. Tokens
    leave every tail in the same blocks, which whole groups of each scheme fill: a tail that differs would be compared too. UserError
    for what is no scheme of ours."""
    if tail is None and sinks is None:
        return list(contenders)
    lossy = [one for one in contenders if not one.lossless]
    for one in lossy:
        if not isinstance(one, SchemeContender):
            raise UserError(
                f"{one.label} has exact tokens of its own, which --match-tail and --match-sinks cannot set; leave one of them out"
            )
    given = {"tail": tail, "sinks": sinks}
    if tail is not None:
        given["block"] = lcm(*(_group(one.scheme) for one in lossy if isinstance(one, SchemeContender)))
    rule = ",".join(f"{name}={count}" for name, count in given.items() if count is not None)
    return [
        one if one.lossless else SchemeContender(one.label, parse_scheme(f"matched({one.name}):{rule}"))
        for one in contenders
    ]


def and_matched(contenders: Sequence[Contender], tail: int | None, sinks: int | None) -> list[Contender]:
    """The contenders as they are, and once more with the same exact tokens, which their labels say."""
    alike = [
        SchemeContender(one.label + MATCHED, one.scheme)
        for one in matched(contenders, tail, sinks)
        if isinstance(one, SchemeContender) and not one.lossless
    ]
    return [*contenders, *alike]


def _group(scheme: Scheme) -> int:
    """Tokens that fill whole groups of all its quantizers."""
    sides = [side for one in scheme.variants for side in one.sides.values()]
    return lcm(*(side.quantizer.tokens_per_group for side in sides if not side.quantizer.lossless))


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
