"""Windows as batch rows: what a window gets does not depend on those beside it, and no window is lost for want of memory."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from kvdelta.harness import controls
from kvdelta.harness.batching import batch_size, fused_kernels, rows_of, window_bytes
from kvdelta.harness.caches.contenders import SchemeContender, contender_of
from kvdelta.harness.caches.foreign import ForeignContender
from kvdelta.harness.comparison import compare
from kvdelta.harness.protocols import prefill
from kvdelta.harness.records.run_folder import load_run
from kvdelta.harness.runner import Progress, Runner
from kvdelta.harness.subject.probing import kv_shapes
from kvdelta.harness.subject.windows import Batch
from kvdelta.schemes import kernels, parse_scheme, together
from kvdelta.schemes.errors import UserError

from ..architectures import tiny
from ..conftest import tiny_config, tiny_subject
from ..schemes.cases import FAMILIES

NARROW = {  # blocks that a prefix of 96 tokens fills
    "centred": "centred(asym4):block=32",
    "fp8": "fp8:block=32",
    "gear": "gear(asym4):block=32",
    "kcvt": "kcvt:block=32",
    "kitty": "kitty:group_size=32,residual_length=32",
    "kivi": "kivi:bits=2,group_size=8,residual_length=16",
    "kivi-hqq": "kivi-hqq:bits=2,group_size=8,residual_length=16",
    "kvarn": "kvarn:tile=32",
    "oscar": "oscar:group_size=16,block=32",
    "ott": "ott:group_size=32,residual_length=16",
    "polarquant": "polarquant:group_size=32",
}


@pytest.fixture(scope="module")
def wide():
    """A tiny model with heads of 64 channels, which every family takes."""
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(head_dim=64)).eval().requires_grad_(False)


def test_every_family_gives_a_window_what_it_gives_it_alone(wide, tokens, options):
    """Batches of two and a ragged one of one; on a CPU in float32 rows of a matrix product differ in the last bits."""
    subject = tiny_subject(wide, tokens)
    specs = [NARROW.get(family.name, family.example) for family in FAMILIES]
    specs += ["hqq4:solver=library", "sink-window:bits=4", "gear(asym4):block=16,prompt=64"]
    together, _ = compare(specs, replace(options, batch="2"), subject=subject)
    alone, _ = compare(specs, replace(options, batch="1", out=options.out + "-1"), subject=subject)
    assert together.batches == [2, 1]
    assert alone.batches == [1, 1, 1]
    assert together.audit.failures == alone.audit.failures == {}
    for one, other in zip(together.windows, alone.windows, strict=True):
        assert torch.allclose(torch.tensor(one.nll), torch.tensor(other.nll), atol=2e-3)
        assert (one.index, one.pairs, one.key_pairs, one.value_pairs) == (
            other.index, other.pairs, other.key_pairs, other.value_pairs,
        )  # fmt: skip
    for one, other in zip(together.contenders, alone.contenders, strict=True):
        assert one.bytes == other.bytes, one.label  # of one window
        assert one.window_by_window == ("library" in one.label)
    # the tolerance is that of a code that moved; most windows move by round-off alone
    moved = [
        abs(a - b)
        for x, y in zip(together.windows, alone.windows, strict=True)
        for a, b in zip(x.nll, y.nll, strict=True)
    ]
    assert sorted(moved)[len(moved) // 2] < 1e-4


def test_what_cannot_be_stored_together_goes_window_by_window(subject, options):
    made = []

    class Counted(DynamicCache):
        def update(self, keys, values, layer, *args, **kwargs):
            made.append(keys.shape[0])
            return super().update(keys, values, layer, *args, **kwargs)

    foreign = ForeignContender("mine", lambda config: Counted(config=config))
    run, _ = compare([foreign], replace(options, batch="3"), subject=subject)
    assert set(made) == {1}
    assert run.contenders[1].window_by_window
    assert run.windows[0].nll[1] == pytest.approx(run.windows[0].nll[0], abs=1e-4)


@pytest.fixture(params=[False, True], ids=["scores at once", "scores one contender later"])
def when(request, monkeypatch):
    """As on a CPU, and as on a GPU, which works on the next contender while the scores of the last arrive."""
    if request.param:
        monkeypatch.setattr(Runner, "_prompt", lambda self, at: at == 0 or self.passes.contenders[at].foreign)


def test_a_continued_run_has_the_batches_of_an_unbroken_one(subject, options, when):
    specs = ["int4:group_size=16"]

    def stop(windows, contender, label, nll):
        if windows.start == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(specs, replace(options, batch="2"), subject=subject, progress=Progress(stop))
    assert load_run(options.out).batches == [2]
    run, _ = compare(specs, replace(options, batch="2"), subject=subject)
    whole, _ = compare(specs, replace(options, batch="2", out=options.out + "-whole"), subject=subject)
    assert run.windows == whole.windows
    assert run.batches == whole.batches == [2, 1]


class Hungry(SchemeContender):
    """Takes so many windows at a time and no more."""

    most = 1
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    def fill(self, cache, model, batch, prefilled):
        if len(batch) > self.most:
            if self.error is None:
                torch.empty(2**50)  # what a CPU says to that
            raise self.error
        super().fill(cache, model, batch, prefilled)


@pytest.mark.parametrize("from_window", [0, 2])
def test_out_of_memory_halves_the_batch_and_loses_no_window(subject, options, monkeypatch, from_window, when):
    """At the start, or in the middle of a run: each window is scored once, and the controls are those of one run."""
    spec, notes = "int4:group_size=16", []
    hungry = Hungry("hungry", parse_scheme(spec))
    fill = Hungry.fill

    def later(self, cache, model, batch, prefilled):
        if batch.windows[0].index >= subject.windows[from_window].index:
            fill(self, cache, model, batch, prefilled)
        else:
            SchemeContender.fill(self, cache, model, batch, prefilled)

    monkeypatch.setattr(Hungry, "fill", later)
    six = replace(subject, windows=[*subject.windows, *(replace(w, index=w.index + 100) for w in subject.windows)])
    run, folder = compare(
        [hungry],
        replace(options, batch="2" if from_window else "4"),
        subject=six,
        progress=Progress(on_note=notes.append),
    )
    assert run.batches == ([2, 1, 1, 1, 1] if from_window else [1] * 6)
    assert run.batch == 1
    assert any("out of memory with 2 windows at once: going on with 1" in note for note in notes)
    assert [window.index for window in run.windows] == [window.index for window in six.windows]
    assert load_run(folder) == run
    alone, _ = compare([hungry], replace(options, batch="1", out=options.out + "-1"), subject=six)
    assert len(run.contenders) == 2
    assert {name: route["tokens"] for name, route in run.noise_floor.routes.items() if name != "window by window"} == {
        name: route["tokens"] for name, route in alone.noise_floor.routes.items()
    }
    for one, other in zip(run.windows, alone.windows, strict=True):
        assert one.nll == pytest.approx(other.nll, abs=2e-3)


def test_one_window_that_is_too_much_says_what_was_needed(subject, options, monkeypatch):
    """A scheme's own row; of exact, the run."""
    monkeypatch.setattr(Hungry, "most", 0)
    hungry = Hungry("hungry", parse_scheme("int4:group_size=16"))
    run, _ = compare([hungry], replace(options, batch="2"), subject=subject)
    assert "9.00 GiB" in run.contenders[1].error
    assert run.batches == [1, 1, 1]
    with pytest.raises(UserError, match=r"one window at a time is too much .* 9\.00 GiB.*use shorter windows"):
        compare(
            [Hungry("exact", parse_scheme("exact"))],
            replace(options, batch="1", out=f"{options.out}-2"),
            subject=subject,
        )


OUT_OF_MEMORY = {
    "CPU": (None, "can't allocate memory: you tried to allocate"),
    "Python": (MemoryError(), "MemoryError"),
    "cuBLAS": (
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        "CUBLAS_STATUS_ALLOC_FAILED",
    ),
    "driver": (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …"), "CUDA error: out of memory"),
}


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_every_allocator_is_understood(subject, options, monkeypatch, refused, kind):
    """A batch is halved; a single window that is too much fails its row, and of exact ends the run."""
    error, said = OUT_OF_MEMORY[kind]
    monkeypatch.setattr(Hungry, "error", error)
    hungry = Hungry("hungry", parse_scheme("int4:group_size=16"))
    run, _ = compare([hungry], replace(options, batch="3"), subject=subject)
    assert run.batches == [1, 1, 1]
    assert run.contenders[1].error is None
    monkeypatch.setattr(Hungry, "most", 0)
    run, _ = compare([hungry], replace(options, batch="2", out=f"{options.out}-row"), subject=subject)
    assert run.batches == [1, 1, 1]
    assert said in run.contenders[1].error
    with refused(f"one window at a time is too much for the memory of this device: .*{said}"):
        compare(
            [Hungry("exact", parse_scheme("exact"))],
            replace(options, batch="2", out=f"{options.out}-exact"),
            subject=subject,
        )


def test_another_error_is_no_want_of_memory(subject, options, monkeypatch):
    """It fails its row at once, and the batch is not halved."""
    monkeypatch.setattr(Hungry, "error", RuntimeError("out of resource: shared memory"))
    run, _ = compare(
        [Hungry("hungry", parse_scheme("int4:group_size=16"))], replace(options, batch="3"), subject=subject
    )
    assert run.batches == [3]
    assert run.contenders[1].error == "RuntimeError: out of resource: shared memory"


def test_a_foreign_cache_that_is_too_much_alone_fails_its_row(subject, options):
    def factory(config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    run, _ = compare([ForeignContender("mine", factory)], replace(options, batch="2"), subject=subject)
    assert run.batches == [1, 1, 1]
    assert "9.00 GiB" in run.contenders[1].error


def test_a_row_that_is_not_finite_keeps_the_windows_before(subject, options, when):
    class Poisoned(SchemeContender):
        def fill(self, cache, model, batch, prefilled):
            super().fill(cache, model, batch, prefilled)
            for _, side, store in cache.stores():
                if side == "value":
                    store.runs[0].held.scale[1] = float("inf")

    bad = Poisoned("bad", parse_scheme("int8:group_size=16"))
    run, _ = compare([bad, "int4:group_size=16"], replace(options, batch="3"), subject=subject)
    second = subject.windows[1]
    assert run.contenders[1].error == f"NaN or infinite logits in window {second.index} (tokens from {second.start})"
    assert [w.nll[1] == w.nll[1] for w in run.windows] == [True, False, False]
    assert [w.key_pairs[1] > 0 for w in run.windows] == [True, False, False]
    assert all(w.nll[2] == w.nll[2] for w in run.windows)


def test_the_noise_floor_is_that_of_the_runs_own_batches(subject, options):
    run, _ = compare(["exact"], replace(options, batch="3"), subject=subject)
    assert {name: route["tokens"] for name, route in run.noise_floor.routes.items()} == {
        "single pass": 3 * 31,
        "token by token, 16 tokens a window": 3 * 16,
        "window by window": 3 * 31,
    }


def test_codes_that_are_not_read_in_one_window_of_a_batch_are_found_out(subject, options):
    """Of the second window the zeroed twin gives what the intact cache gives."""

    class Cheat(SchemeContender):
        def zero_codes(self, cache):
            for _, _, store in cache.stores():
                for run in store.runs:
                    kept = {name: part.clone() for name, part in run.held.parts().items()}
                    run.held = run.held.with_zeroed_codes()
                    for name, part in run.held.parts().items():
                        part[1] = kept[name][1]
            return True

    run, _ = compare([Cheat("cheat", parse_scheme("int4:group_size=16"))], replace(options, batch="3"), subject=subject)
    assert run.audit.zeroed_codes_move_logits == {"cheat": False}
    assert "zeroing its stored codes does not move the logits" in run.audit.failures["cheat"]


@pytest.mark.parametrize("at_once", [1, 2**20])
def test_layers_are_packed_together_as_they_are_alone(model, subject, options, monkeypatch, at_once):
    monkeypatch.setitem(together.AT_ONCE, "cpu", at_once)
    calls = []
    pack = together._pack
    monkeypatch.setattr(together, "_pack", lambda some: (calls.append(len(some)), pack(some)))
    prefilled = prefill(model, Batch(tuple(subject.windows)).prefix)
    for spec in (
        "asym2:group_size=16",
        NARROW["kivi"],
        "hqq4:group_size=16",
        "oscar:group_size=8,block=16",
        "gear(asym4:group_size=16):block=16,prompt=32",
        "fp8:scale=none",
    ):
        contender = contender_of(spec)
        filled = contender.empty(model)
        filled.fill(prefilled)
        live = contender.empty(model)
        for index, layer in enumerate(prefilled.layers):
            live.update(layer.keys, layer.values, index)
        for (_, _, one), (_, _, other) in zip(filled.stores(), live.stores(), strict=True):
            assert torch.equal(one.read(), other.read())
            assert one.nbytes() == other.nbytes()
    assert max(calls) == (1 if at_once == 1 else 4)  # two layers, and keys beside values where both are stored alike


def test_rows_of_a_batch_are_those_of_its_windows(model, subject):
    batch = Batch(tuple(subject.windows))
    for spec in ("asym2:group_size=16", NARROW["kivi"], "sink-window:bits=4"):
        contender = contender_of(spec)
        whole, alone = contender.empty(model), contender.empty(model)
        prefilled = prefill(model, batch.prefix)
        whole.fill(prefilled)
        alone.fill(rows_of(prefilled, slice(1, 2)))
        new = torch.randn(3, 2, 4, 16)
        for index in range(len(whole.layers)):
            got = rows_of(whole, slice(1, 2)).update(new[1:2], new[1:2], index)
            expected = alone.update(new[1:2], new[1:2], index)
            assert all(map(torch.equal, got, expected))


def test_the_batch_that_fits(model, monkeypatch):
    assert batch_size("7", model, 128, 32) == 7
    assert batch_size("auto", model, 128, 32) == 1  # on a CPU
    assert [batch_size("auto", model, 128, 32, step=step) for step in (1, 16, 20, 100)] == [64, 4, 3, 1]
    needed = window_bytes(model, 128, 32)
    little = type("Memory", (), {"available": int(2 * 5 * needed / 0.7) + 1})
    monkeypatch.setattr("psutil.virtual_memory", lambda: little)
    assert batch_size("auto", model, 128, 32, step=1) == 4

    class OnAGpu:
        device = torch.device("cuda")
        dtype, config = model.dtype, model.config

    monkeypatch.setattr("kvdelta.harness.batching.kv_shapes", lambda one, kinds: kv_shapes(model, kinds))
    # a CPU keeps exact's probabilities too
    assert needed - window_bytes(OnAGpu(), 128, 32) == 32 * model.config.vocab_size * 4
    needed = window_bytes(OnAGpu(), 128, 32)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    for windows, size in ((0.5, 1), (1, 1), (3.9, 2), (20, 16), (1e6, 64)):
        free = int(windows * needed / 0.7) + 1
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert batch_size("auto", OnAGpu(), 128, 32) == size
    # the exact cache, a scheme's and the logits of both are in it; in a backward pass all layers' activations too
    assert needed > 3 * 2 * 2 * 2 * 16 * 128 * 4 + 2 * 32 * 128 * 4
    assert window_bytes(OnAGpu(), 128, 32, backward=True) > needed + 2 * 32 * (10 * 64 + 4 * 128) * 4


def test_a_user_is_told_of_kernels_once():
    said = []
    with fused_kernels(32, said.append):
        for name in ("encode", "decode"):
            for listener in kernels._listeners:
                listener(name)
    assert len(said) == 1
    assert said[0].startswith("loading kernels for this GPU")


@pytest.mark.parametrize("name", ["Gemma3nText", "GPT2", "OPT", "Mpt", "Qwen3Next"])
def test_every_config_tells_what_a_window_takes(name):
    """Gemma 3n has a width for each layer, GPT-2 none."""
    assert 0 < window_bytes(tiny(name), 48, 16) < window_bytes(tiny(name), 48, 16, backward=True)


def test_controls_take_few_windows_of_a_large_batch(subject, options, monkeypatch):
    seen = []
    check = controls.check_zeroed_codes

    def spy(audit, contender, model, batch, intact, *more):
        seen.append((len(batch), [store.read().shape[0] for _, _, store in intact.stores()]))
        check(audit, contender, model, batch, intact, *more)

    monkeypatch.setattr(controls, "check_zeroed_codes", spy)
    monkeypatch.setattr(controls, "FLOOR_WINDOWS", 2)
    compare(["int4:group_size=16"], replace(options, batch="3"), subject=subject)
    assert seen == [(2, [2] * 4)]
