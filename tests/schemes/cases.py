"""Every setting of the registry's families that is a choice: bits, axes and the like; and data to put in.

A family is read by its fields, so a new one is covered without a word here.
"""

from itertools import product

import pytest
import torch

from schemes import KV, SCHEMES, Quantizer, TensorScheme, TokenStore, parse_scheme
from schemes.fields import alternatives, shown
from schemes.registry import own_fields

FAMILIES = [family for family in SCHEMES.values() if family.calibrate is None]  # those need a file: test_kvquant


def choices(family):
    return {name: alternatives(field.type)[0] for name, field in own_fields(family).items()}


def _plain(family):
    """Bits × axis of both sides."""
    sides = {name.removeprefix("key_"): values for name, values in choices(family).items() if name.startswith("key_")}
    return [
        [f"{name}={value}" for name, value in zip(sides, chosen, strict=True)] for chosen in product(*sides.values())
    ]


def _others(family):
    """What can be chosen besides, such as zero=integer."""
    shared = {name: field for name, field in own_fields(family).items() if not name.startswith(("key_", "value_"))}
    return [
        f"{n}={shown(value)}" for n, field in shared.items() for value in choices(family)[n] if value != field.default
    ]


def _spec(family, items):
    return family.example + (":" + ",".join(items) if items else "")


PLAIN = [_spec(family, items) for family in FAMILIES for items in _plain(family)]
PLAIN += [short for family in FAMILIES for short in family.short]
_INNER = ("asym2:axis=channel,group_size=32", "hqq3", "nf4:asymmetric=true", "q5_1", "fp8:scale=head", "kivi2")
_NESTED = [f"{family.name}({inner})" for family in FAMILIES if family.wraps for inner in _INNER]
_NESTED += [
    "centred(hadamard(clip(asym2)))",
    "hadamard(sparse(asym3:axis=channel,group_size=32):block=64)",
    "sparse(sparse(int2))",
]
_ALL_OTHER = _NESTED + [
    _spec(family, [*items, other]) for family in FAMILIES for other in _others(family) for items in _plain(family)
]
REFUSED = [spec for spec in _ALL_OTHER if "axis=channel" in spec and "group_size=all" in spec]  # no fixed length
OTHER = [spec for spec in _ALL_OTHER if spec not in REFUSED]


def _different(specs, seen):
    """The tensor schemes not yet seen: keys and values that are stored alike are one case."""
    for spec in specs:
        for side, scheme in parse_scheme(spec).sides.items():
            if scheme not in seen:
                seen.add(scheme)
                yield pytest.param(scheme, id=f"{spec}-{side}")


_SEEN: set[TensorScheme] = set()
PLAIN_CASES = list(_different(PLAIN, _SEEN))
OTHER_CASES = list(_different(OTHER, _SEEN))


def sample(scheme: TensorScheme, dtype: torch.dtype, tokens: int = 0, channels: int = 0) -> KV:
    """[2, 2, tokens, channels] with an outlier channel and loud tokens; by default small, and two groups long."""
    tokens = tokens or max(6, 2 * scheme.quantizer.tokens_per_group)
    channels = channels or (64 if scheme.quantizer.tokens_per_group == 1 else 32)
    rng = torch.Generator().manual_seed(7)
    x = torch.randn(2, 2, tokens, channels, generator=rng) * torch.randn(2, 2, tokens, 1, generator=rng).exp()
    x[..., 3] = 8 * x[..., 3] + 20
    return x.to(dtype)


def rebuild(quantizer: Quantizer, x: KV) -> KV:
    return quantizer.quantize(x).dequantize()


def filled(scheme: TensorScheme, *pieces: KV) -> TokenStore:
    store = TokenStore(scheme)
    for piece in pieces:
        store.append(piece)
    return store
