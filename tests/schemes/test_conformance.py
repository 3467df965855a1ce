"""The conformance suite, for every scheme of the registry."""

from itertools import combinations, cycle, pairwise
from math import prod

import pytest
import torch

from kvdelta.schemes import parse_scheme

from .cases import DTYPES, FAMILIES, NESTED, NESTED_CASES, PLAIN_CASES, choices, rebuild, sorted_out, spec_of
from .conformance import CHECKS, DEPEND_ON_DTYPE, claimed


def suite():
    """(check, scheme, dtype) of what must hold; and what is exempt, (check, reason) → [(scheme, dtype)].

    Checks that depend on the dtype run in each, for plain settings; all others in one, in turn."""
    holds, exempt = [], {}
    for case, own in zip(PLAIN_CASES + NESTED_CASES, cycle(DTYPES), strict=False):
        (scheme,) = case.values
        for check in CHECKS:
            each = check in DEPEND_ON_DTYPE and case in PLAIN_CASES
            claim = claimed(check, scheme)
            for dtype in DTYPES if each or claim is not True else [own]:  # an exemption may show in one dtype alone
                if claim is True:
                    name = f"{case.id}-{str(dtype).removeprefix('torch.')}-{check.__name__.removeprefix('check_')}"
                    holds.append(pytest.param(check, scheme, dtype, id=name))
                elif claim:
                    exempt.setdefault((check, claim), []).append((scheme, dtype))
    return holds, exempt


HOLDS, EXEMPT = suite()


@pytest.mark.parametrize(("check", "scheme", "dtype"), HOLDS)
def test_conformance(check, scheme, dtype):
    check(scheme, dtype)


@pytest.mark.parametrize(
    ("check", "cases"),
    [
        pytest.param(
            check,
            cases,
            id=f"{check.__name__}-{reason}",
            marks=pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason),
        )
        for (check, reason), cases in EXEMPT.items()
    ],
)
def test_exempt(check, cases):
    """An exemption that no scheme needs is a promise not made."""
    for scheme, dtype in cases:
        check(scheme, dtype)


def test_every_family_width_and_choice_is_a_case():
    """No pair of choices that a family accepts is left out, and no family is without a case in each dtype."""
    checked = {scheme for _, scheme, dtype in (case.values for case in HOLDS) if dtype == torch.bfloat16}
    for family in FAMILIES:
        accepted, _ = sorted_out(family)
        chosen = [values for values in accepted if set(parse_scheme(spec_of(family, values)).sides.values()) <= checked]
        for pair in combinations(range(len(choices(family))), 2):
            assert {tuple(row[i] for i in pair) for row in chosen} == {tuple(row[i] for i in pair) for row in accepted}
        assert chosen


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_specs_round_trip(family):
    shorts = [*family.short, *(spec for spec in NESTED if spec.startswith(family.name + "("))]
    for spec in [*shorts, *(spec_of(family, values) for values in sorted_out(family)[0])]:
        scheme, twin = parse_scheme(spec), parse_scheme(parse_scheme(spec).name)
        assert (twin, twin.name) == (scheme, scheme.name)
        assert hash(twin) == hash(scheme)


TOGETHER = {  # what does not go together, and the sentence that says so
    "group_size=all with axis=channel": lambda axis="", group_size=0, **_: (axis, group_size) == ("channel", "all"),
    "solver=library takes no": lambda solver="", normalize=False, stop="groups", **_: (
        solver == "library" and (normalize, stop) != (False, "groups")
    ),
    "stop=reference gives": lambda stop="", normalize=False, **_: (stop, normalize) == ("reference", True),
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_choices_are_refused_where_they_do_not_go_together_and_nowhere_else(family, refused):
    accepted, others = sorted_out(family)
    assert len(accepted) + len(others) == prod(map(len, choices(family).values()))
    for values in accepted + others:
        reasons = [
            why for why, applies in TOGETHER.items() if applies(**dict(zip(choices(family), values, strict=True)))
        ]
        assert bool(reasons) == (values in others)
        if reasons:
            with refused("|".join(reasons)):
                parse_scheme(spec_of(family, values))


@pytest.mark.parametrize("side", ["key", "value"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if "bits" in choices(family)], ids=lambda f: f.name)
def test_error_falls_with_bits(family, side):
    errors, x = [], torch.randn(1, 2, 256, 64)
    for bits in choices(family)["bits"]:
        quantizer = parse_scheme(f"{family.name}:{side}_bits={bits}").sides[side].quantizer
        errors.append((float(bits), (rebuild(quantizer, x) - x).norm()))
    for (bits, error), (more, next_) in pairwise(errors):
        # a bit more about halves the step; half a bit is one more for a quarter of the channels
        assert (1.5 if more - bits >= 1 else 1.05) * next_ < error
