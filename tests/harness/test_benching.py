"""Benches: who takes turns with whom, what is timed, and what is left out."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from kvdelta.harness.benching import turns as clocks
from kvdelta.harness.benching.comparing import time_comparison
from kvdelta.harness.benching.decoding import time_steps
from kvdelta.harness.benching.passes import time_passes
from kvdelta.harness.benching.turns import Turns
from kvdelta.harness.caches.contenders import contenders_of
from kvdelta.harness.caches.foreign import ForeignContender
from kvdelta.harness.records.bench import AGAIN, BASELINE, CONTROLS, TWO_PASS
from kvdelta.harness.subject import shapes
from kvdelta.harness.subject.windows import Batch

NARROW = "kivi:bits=2,group_size=8,residual_length=16"


def test_all_take_turns_after_a_warm_up():
    order = []

    def task(name):
        return lambda: order.append(name) or {"part": float(len(order))}

    times = Turns(2).take({name: task(name) for name in "ABA"} | {"A again": task("A again")}, 7)
    assert order == ["A", "B", "A again"] * 3
    assert [(t.name, t.part, t.context, t.seconds) for t in times] == [
        ("A", "part", 7, [4.0, 7.0]),
        ("B", "part", 7, [5.0, 8.0]),
        ("A again", "part", 7, [6.0, 9.0]),
    ]


def test_what_raises_is_left_out_and_the_others_go_on():
    said, calls = [], []

    def breaks():
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no more")
        return {"part": 1.0}

    turns = Turns(4, said.append)
    times = turns.take({"A": lambda: {"part": 2.0}, "bad": breaks}, 7)
    assert [(t.name, t.seconds) for t in times] == [("A", [2.0] * 4)]
    assert turns.left_out == {"bad": "7 tokens: RuntimeError: no more"}
    assert len(calls) == 3
    assert "bad is left out" in said[0]
    assert not turns.take({"bad": breaks}, 9)


@pytest.mark.parametrize("name", ["prefill", BASELINE, AGAIN])
def test_what_all_are_compared_with_is_not_left_out(name):
    def breaks():
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        Turns(2).take({"A": lambda: {"part": 1.0}, name: breaks}, 7)


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand."""
    now = [0.0]
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: now[0])
    return now


class Slow:
    """A foreign cache that takes 3 s to be filled and 5 s to be read, a window."""

    def __init__(self, clock):
        self.clock = clock

    def contender(self):
        clock = self.clock

        class Cache(DynamicCache):
            def update(self, keys, values, layer, *args, **kwargs):
                if layer == 0:
                    clock[0] += 3 if keys.shape[2] > 32 else 5
                    assert keys.shape[0] == 1
                return super().update(keys, values, layer, *args, **kwargs)

        return ForeignContender("slow", lambda config: Cache(config=config))


def test_fill_and_suffix_are_told_apart_and_are_of_a_window(model, subject, clock):
    contenders = [*contenders_of(["exact", NARROW]), Slow(clock).contender()]
    batches = {96: Batch(tuple(subject.windows))}
    times = time_passes(model, contenders, batches, Turns(2))
    parts = {(t.name, t.part): t.seconds for t in times}
    assert parts["slow", "fill"] == [3.0, 3.0]
    assert parts["slow", "suffix"] == [5.0, 5.0]
    assert {name for name, _ in parts} == {"prefill", BASELINE, NARROW, "slow", AGAIN}
    assert {t.context for t in times} == {96}


def test_steps_are_those_of_a_cache_that_grows(model, subject):
    batch = Batch((subject.windows[0],))
    stock = ForeignContender("stock", lambda config: DynamicCache(config=config))
    times, held = time_steps(model, [*contenders_of(["exact", NARROW]), stock], {96: batch}, Turns(5))
    names = [BASELINE, NARROW, f"{NARROW}, mirrored", "stock", AGAIN]
    assert [(t.name, t.part, len(t.seconds)) for t in times] == [(name, "step", 5) for name in names]
    bytes_ = {one.name: one.resident for one in held}
    layers, heads, channels = 2, 2, 16
    assert model.config.num_key_value_heads == heads
    assert bytes_[BASELINE] == bytes_["stock"] == 2 * layers * heads * channels * 4 * (96 + 3 + 5)
    assert bytes_[NARROW] < 0.6 * bytes_[BASELINE] < bytes_[f"{NARROW}, mirrored"]
    assert all(one.transient is None for one in held)  # nobody counts on a CPU


def test_a_cache_that_cannot_be_filled_is_left_out(model, subject):
    class Full(DynamicCache):
        def update(self, *args, **kwargs):
            raise torch.OutOfMemoryError("no memory")

    full = ForeignContender("full", lambda config: Full(config=config))
    turns = Turns(2)
    times, held = time_steps(model, [*contenders_of(["exact"]), full], {96: Batch((subject.windows[0],))}, turns)
    assert {t.name for t in times} == {BASELINE, AGAIN}
    assert [one.name for one in held] == [BASELINE]
    assert turns.left_out == {"full": "96 tokens: OutOfMemoryError: no memory"}


def test_a_comparison_is_timed_as_real_runs(subject, options):
    contenders = contenders_of(["exact", NARROW])
    times = time_comparison(contenders, replace(options, batch="2"), subject, 16, Turns(2))
    parts = {(t.name, t.part): t.seconds for t in times}
    assert {name for name, _ in parts} == {BASELINE, TWO_PASS, CONTROLS, "stepwise 16", AGAIN}
    assert {part for _, part in parts} == {"window", "controls", "prefill", "suffix", "scoring"}
    assert all(len(seconds) == 2 for seconds in parts.values())
    assert all(seconds > 0 for seconds in parts[CONTROLS, "controls"])
    assert [name for name, part in parts if part == "controls"] == [CONTROLS]


def test_a_shape_is_a_model_of_its_sizes(monkeypatch, refused):
    tiny = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny | {"num_key_value_heads": 2, "intermediate_size": 48})
    model = shapes.shaped_model("tiny", "cpu", torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32
    assert model.lm_head.weight.shape == (64, 32)
    with refused("no shape 'other'; there is llama-3.1-8b, tiny"):
        shapes.shaped_model("other", "cpu", torch.float32)
    with torch.device("meta"):
        from transformers import LlamaConfig, LlamaForCausalLM

        large = LlamaForCausalLM(LlamaConfig(**shapes.SHAPES["llama-3.1-8b"]))
    assert sum(parameter.numel() for parameter in large.parameters()) == 8_030_261_248
