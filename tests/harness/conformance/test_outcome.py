"""How a check ends, whatever a cache does."""

import warnings

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from kvdelta.harness.conformance import checks
from kvdelta.harness.conformance.outcome import LONGEST, Check

CHECKS = {str(check): check for check in checks}
MAY_NOT = ["length", "mask sizes", "contents", "dtype", "positions", "reset", "greedy", "sampling"]


def raising(error, says_so=False):
    class Raising(DynamicCache):
        is_croppable = not says_so

        def __init__(self, config):
            super().__init__(config=config)

        def crop(self, tokens_to_remove):
            raise error

    return Raising


def test_names_are_one_each():
    assert len(CHECKS) == len(checks)
    assert all(check.owed for check in checks)


@pytest.mark.parametrize("error", [NotImplementedError("it only grows"), ValueError("it only grows")])
@pytest.mark.parametrize("says_so", [True, False])
def test_clear_words_are_a_refusal(error, says_so):
    outcome = CHECKS["crop"](raising(error, says_so))
    assert outcome.ending == "refused"
    assert not outcome.passed
    assert outcome.why.endswith("it only grows")


@pytest.mark.parametrize(
    "error", [RuntimeError("sizes"), SystemExit(3), GeneratorExit(), AttributeError("no crop"), KeyError()]
)
def test_other_errors_are_fails_and_end_nothing(error):
    outcome = CHECKS["crop"](raising(error))
    assert outcome.ending == "fail"
    assert outcome.why.startswith(f"raises {type(error).__name__}: ")


def test_what_says_that_it_cannot_be_cropped_may_raise_anything():
    outcome = CHECKS["crop"](raising(IndexError("too many indices"), says_so=True))
    assert outcome.ending == "refused"
    assert outcome.why == "is_croppable is False; crop(-7) raises IndexError: too many indices"


def test_where_there_is_nothing_to_ask():
    """Layers that are none of transformers' kind cannot be offloaded one by one; what is behind an array is not counted."""

    class Behind(DynamicCache):
        def __init__(self, config):
            inner = DynamicCache(config=config)
            self.layers, self.inner, self.codes = [], inner, np.zeros(3)
            for name in ("update", "get_seq_length", "get_mask_sizes", "reset"):
                setattr(self, name, getattr(inner, name))

    for name, why in (("offload", "it has no layers"), ("memory held", "it holds a ndarray, which cannot be counted")):
        outcome = CHECKS[name](Behind)
        assert (outcome.ending, outcome.passed) == ("does not apply", True)
        assert outcome.why.startswith(why)


def test_generate_refuses_in_its_own_words():
    outcome = CHECKS["prompt lookup"](raising(NotImplementedError("no crop"), says_so=True))
    assert outcome.ending == "refused"
    assert "crop" in outcome.why


def test_an_error_that_nobody_meant_is_no_refusal():
    """torch raises NotImplementedError for what it has no kernel for, and Python ValueError for what does not unpack."""

    class OnMeta(DynamicCache):
        def crop(self, tokens_to_remove):
            torch.zeros(3, device="meta").item()

    class Unpacks(DynamicCache):
        def crop(self, tokens_to_remove):
            (self.one,) = 1, 2

    class Splits(DynamicCache):
        def crop(self, tokens_to_remove):
            torch.einsum("ij")  # a ValueError that torch raises in Python

    for kind in (OnMeta, Unpacks, Splits):
        outcome = CHECKS["crop"](lambda config, kind=kind: kind(config=config))
        assert (outcome.ending, outcome.why.split(":")[0][:7]) == ("fail", "raises "), outcome


@pytest.mark.parametrize("name", MAY_NOT)
def test_what_every_cache_owes_cannot_be_refused(name):
    def refuses(config):
        raise NotImplementedError("not here")

    assert CHECKS[name](refuses).why == "raises NotImplementedError: not here"


def test_an_interrupt_is_the_users():
    with pytest.raises(KeyboardInterrupt):
        CHECKS["crop"](raising(KeyboardInterrupt()))


class Wordless(Exception):
    def __str__(self):
        raise RuntimeError


def test_reasons_are_one_short_line():
    def long(factory):
        raise RuntimeError("one\ntwo" if factory(None) else "word " * 100)

    check = Check("long", "", long)
    assert check(lambda config: True).why == "raises RuntimeError: one"
    assert len(check(lambda config: False).why) == len("raises RuntimeError: ") + LONGEST
    assert CHECKS["crop"](raising(Wordless())).why == "raises Wordless: (no words)"


def test_nothing_comes_out_of_a_check(capsys):
    """Neither what a cache prints, nor the random numbers that it draws, nor what it warns of."""

    class Loud(DynamicCache):
        def __init__(self, config):
            super().__init__(config=config)
            print("made")
            warnings.warn("made", stacklevel=1)
            torch.manual_seed(5)

    torch.default_generator.manual_seed(1)
    expected = torch.rand(3)
    torch.default_generator.manual_seed(1)
    assert CHECKS["length"](Loud).passed
    assert torch.equal(torch.rand(3), expected)
    assert torch.is_grad_enabled()
    out, err = capsys.readouterr()
    assert out == ""
    assert "made" in err
