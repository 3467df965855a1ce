"""The rows that a command goes on without."""

from collections.abc import Sequence

from kvdelta.harness.caches.contenders import Contender
from kvdelta.harness.caches.specs import canonical
from kvdelta.harness.options import Options
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.references import identity_of


def dropped(options: Options, contenders: Sequence[Contender]) -> set[str]:
    """The labels of the contenders that `options.drop` names. UserError for one that there is not, and for exact."""
    known = {name: one.label for one in contenders for name in (one.label, one.name, identity_of(one.name))}
    asked = {name: name if name in known else _identity(name) for name in options.drop or ()}
    for name, identity in asked.items():
        if known.get(identity, contenders[0].label) == contenders[0].label:
            others = ", ".join(one.label for one in contenders[1:])
            raise UserError(f"drop={name}: it is none of the schemes that can be dropped here, which are {others}")
    return {known[identity] for identity in asked.values()}


def _identity(spec: str) -> str:
    """Of a spec in other words than the contender's; of what is none itself."""
    try:
        return identity_of(canonical(spec))
    except UserError:
        return spec
