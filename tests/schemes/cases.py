"""Settings of the registry's families that cover every pair of choices: bits, axes, dtypes and the like; and data.

A family is read by its fields, so a new one is covered without a word here.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations_with_replacement, product

import pytest
import torch
from _pytest.mark import ParameterSet

from kvdelta.schemes import KV, SCHEMES, Quantizer, TensorScheme, TokenStore, parse_scheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.fields import alternatives, shown
from kvdelta.schemes.registry import own_fields, shorthands

FAMILIES = [  # the others work with a model's layers: test_kvquant, test_unbiased
    family
    for family in SCHEMES.values()
    if not any(side.quantizer.needs_place for side in parse_scheme(family.example).sides.values())
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INNER = ("asym2:axis=channel,group_size=32", "hqq3", "nf4:asymmetric=true", "q5_1", "fp8:scale=head", "kivi2")
NESTED = [f"{family.name}({inner})" for family in FAMILIES if family.wraps for inner in INNER]
NESTED += [
    "centred(hadamard(clip(asym2)))",
    "hadamard(sparse(asym3:axis=channel,group_size=32):block=64)",
    "sparse(sparse(int2))",
]


def pairwise(candidates: Sequence[tuple]) -> list[tuple]:
    """Few of the candidates, in which every pair of choices occurs that occurs in one of all: greedily, in order."""

    def pairs(row):
        return set(combinations_with_replacement(enumerate(row), 2))

    missing = set().union(*map(pairs, candidates))
    rows = []
    while missing or not rows:
        rows.append(max(candidates, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(rows[-1])
    return rows


def choices(family: Family) -> dict[str, list[object]]:
    """The values of each field that is a choice, its default among them; `bits` stands for key_bits and value_bits,
    which are two cases of one code."""
    sides = {side: short for short, both in shorthands(family).items() for side in both}
    values: dict[str, list[object]] = {}
    for name, field in own_fields(family).items():
        options = alternatives(field.type)[0]
        if options:
            values[sides.get(name, name)] = options if field.default in options else [field.default, *options]
    return values


def spec_of(family: Family, values: Sequence[object]) -> str:
    items = [f"{name}={shown(value)}" for name, value in zip(choices(family), values, strict=True)]
    return family.example + (":" + ",".join(items) if items else "")


def sorted_out(family: Family) -> tuple[list[tuple], list[tuple]]:
    """All settings of a family's choices: those that are schemes, and those that are refused."""
    accepted, refused = [], []
    for values in product(*choices(family).values()):
        try:
            parse_scheme(spec_of(family, values))
            accepted.append(values)
        except UserError:
            refused.append(values)
    return accepted, refused


def different(specs: Iterable[str], seen: set[TensorScheme]) -> Iterator[ParameterSet]:
    """The tensor schemes not yet seen: keys and values that are stored alike are one case."""
    for spec in specs:
        for side, scheme in parse_scheme(spec).sides.items():
            if scheme not in seen:
                seen.add(scheme)
                yield pytest.param(scheme, id=f"{spec}-{side}")


PLAIN = [spec_of(family, values) for family in FAMILIES for values in pairwise(sorted_out(family)[0])]
_SEEN: set[TensorScheme] = set()
PLAIN_CASES = list(different(PLAIN, _SEEN))
NESTED_CASES = list(different(NESTED, _SEEN))


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
