"""Who may race, what fits a budget, and what the screen predicts."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from kvdelta.analysis.measuring.budgets import fitting, mean_bits
from kvdelta.analysis.measuring.candidates import all_candidates, has_key_bias, of_engine, of_specs
from kvdelta.analysis.measuring.errors import measure_errors
from kvdelta.analysis.measuring.fitting import halves
from kvdelta.analysis.measuring.screening import predicted_losses
from kvdelta.analysis.reading.summary import summarize
from kvdelta.harness.comparison import compare
from kvdelta.harness.records.measurement import measured_arrays
from kvdelta.harness.subject.windows import cut_windows
from kvdelta.schemes import SCHEMES, TokenStore, parse_scheme

from ...conftest import SHARP, TINY


def test_every_family_that_can_races():
    """A new family without a word here."""
    specs = [one.spec for one in all_candidates(unbiased=False)]
    named = {name for spec in specs for name in SCHEMES if name in spec.replace("(", ":").split(":") or spec == name}
    able = {
        name for name, family in SCHEMES.items()
        if family.calibrate is None and name not in ("exact", "unbiased", "matched", "sparse")
    }  # fmt: skip
    assert named >= able
    assert len(specs) == len({parse_scheme(spec).identity for spec in specs})
    assert not any(parse_scheme(spec).lossless for spec in specs)


def test_without_the_bias_each_races_twice():
    plain, both = (all_candidates(unbiased) for unbiased in (False, True))
    assert len(both) == 2 * len(plain)
    assert all(parse_scheme(one.spec) for one in both)
    assert "unbiased(symmetric:bits=8):sink_tokens=4" in [one.spec for one in both]


def test_of_each_family_the_largest_that_fits(subject):
    specs = [f"int{bits}:group_size=16" for bits in (2, 4, 8)]
    bits = {one.spec: one.bits for one in fitting(of_specs(specs), 16, [subject], 8).within}
    assert list(bits.values()) == [3, 5, 9]  # codes and a scale of 16 bits for 16 numbers
    one_family = [replace(one, family="int") for one in of_specs(specs)]
    found = fitting(one_family, 5.5, [subject], 8)
    assert [one.spec for one in found.within] == [specs[1]]
    assert [one.spec for one in found.larger] == [specs[2]]


def test_bits_are_those_that_runs_measure_at_each_length(subject, options):
    """Sinks, tails, blocks, rules for layers and a wrapper included: the mean over prefixes of 96, 104, 112 and 120 tokens."""
    specs = [
        "kivi:bits=2,group_size=16,residual_length=32",
        "int4:group_size=16,sink_tokens=4",
        "int4:group_size=16,exact_first_layers=1",
        "hadamard(asym2:group_size=16)",
        "asym2:key_axis=channel,group_size=32",
    ]
    measured = []
    for more in (0, 8, 16, 24):
        sizes = replace(options, window_length=128 + more, out=f"{options.out}-{more}")
        longer = cut_windows(subject.tokens, window_length=128 + more, score_length=32, windows=1)
        run, _ = compare(specs, sizes, subject=replace(subject, windows=longer))
        measured.append([row.bits for row in summarize(run)[1:]])
    found = {one.spec: one.bits for one in fitting(of_specs(specs), 16, [subject], 8).within}
    assert list(found) == specs
    assert list(found.values()) == pytest.approx(np.mean(measured, axis=0))
    assert max(np.ptp(measured, axis=0)) > 1  # no single length tells


def test_blocks_as_long_as_many_steps_are_not_seen_at_one_phase():
    """A suffix of many blocks, whose ends a coarse look would always fall on."""
    x = torch.randn(1, 2, 32 + 1024, 16)
    layer = SimpleNamespace(keys=x, values=x)
    scheme = parse_scheme("asym2:key_axis=channel,value_axis=channel,group_size=32")
    expected = np.mean([held(scheme.key, x[:, :, : 32 + at]) for at in range(0, 1024, 16)])
    assert mean_bits(scheme, {0: layer}, 32, 16) == pytest.approx(expected)


def held(rule, x):
    store = TokenStore(rule)
    store.append(x)
    return 8 * store.counted_bytes() / store.elements


def test_those_of_a_family_that_are_as_large_all_race(subject):
    alike = [
        replace(one, family="one")
        for one in of_specs(["int4:group_size=16", "nf4:group_size=16", "int2:group_size=16"])
    ]
    assert len(fitting(alike, 6, [subject], 8).within) == 2


def test_sliding_layers_are_refused(subject):
    found = fitting(of_specs(["int4:group_size=16,layers=all"]), 16, [subject], 8)
    assert "leave layers=… out" in found.refused["int4:group_size=16,layers=all"]


def test_what_does_not_fit_the_model_says_why(subject):
    found = fitting(of_specs(["kvarn:bits=2", "exllamav3:bits=4"]), 16, [subject], 8)
    assert not found.within
    assert "a prefix of 96 tokens would leave every key exact" in found.refused["kvarn:bits=2"]
    assert "16 channels" in found.refused["exllamav3:bits=4"]


def test_engines():
    assert [one.spec for one in of_engine("llama.cpp")][:2] == ["llama.cpp/q8_0", "llama.cpp/q5_1"]


def test_the_screen_predicts_what_errors_does(subject, options):
    specs = ["int8:group_size=16", "asym4:group_size=16", "kivi:bits=4,group_size=16,residual_length=32"]
    predicted = predicted_losses(specs, [subject])[:, 0]
    record, folder = measure_errors(specs, options, subject)
    arrays = measured_arrays(folder, record)
    squares = sum(arrays[f"{side}_square"].sum(axis=(0, 2, 3)) for side in ("key", "value"))
    exact_to_second_order = squares / 2 / (3 * 31)
    assert (predicted < exact_to_second_order).all()
    assert predicted == pytest.approx(exact_to_second_order, rel=0.2)  # small errors: the logarithm is nearly a line


def test_the_screen_orders_widths_as_a_run_does(subject, options):
    specs = [f"asym{bits}:group_size=16" for bits in (8, 4, 3)]
    predicted = predicted_losses(specs, [subject])[:, 0]
    run, _ = compare(specs, options, subject=subject)
    kl = np.array([row.kl for row in summarize(run)[1:]])
    assert list(np.argsort(predicted)) == list(np.argsort(kl)) == [0, 1, 2]
    assert 0.2 < predicted[0] / kl[0] < 5  # small errors: the second order is what there is


def test_halves_share_no_token(subject, options):
    first, second = halves(options, subject, 4, 5)
    assert (len(first), len(second)) == (4, 5)
    assert max(window.start + 128 for window in first) <= min(window.start for window in second)
    with pytest.raises(ValueError, match="40 windows are wanted in a half of the text, which has "):
        halves(options, subject, 40, 1)


def test_a_key_bias_is_seen(model):
    torch.manual_seed(0)
    qwen = Qwen2ForCausalLM(Qwen2Config(**TINY, **SHARP)).eval()
    assert has_key_bias(qwen)
    assert not has_key_bias(model)
    assert not has_key_bias(Qwen3ForCausalLM(Qwen3Config(**TINY, head_dim=16, attention_bias=True)).eval())
