"""What only a CUDA device can show; skipped, with the reason, where there is none."""

import copy
import functools
from dataclasses import replace

import pytest
import torch

from kvdelta.analysis.reading import summary
from kvdelta.harness.audit import Observer
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.comparison import compare
from kvdelta.harness.passes import Passes
from kvdelta.harness.protocols import prefill, suffix_logits
from kvdelta.harness.recorded import Recorded
from kvdelta.harness.subject.windows import Batch, cut_windows
from kvdelta.schemes import parse_scheme

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none"),
]


NO_SUMS = [
    *(
        "int4",
        "asym3",
        "asym2:key_axis=channel",
        "asym4:zero=integer",
        "nf4",
        "nvfp4",
        "mxfp4",
        "fp8",
        "fp8:scale=none",
    ),
    *("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "clip(asym2)", "sparse(asym2)", "hadamard(asym2)"),
]
SUMS = [
    *(
        "iq4_nl",
        "nf4:asymmetric=true",
        "turbo2",
        "turbo2:correct_norm=true",
        "centred(asym2)",
        "kitty",
        "kvarn",
        "oscar",
        "ott",
    ),
    *("gear(asym2)", "kivi-hqq2", "hqq3", "hqq3:normalize=true"),
]


@pytest.mark.parametrize("spec", NO_SUMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_codes_are_those_of_the_cpu(spec, dtype):
    """They take no sums, or, the Hadamard transform, in one order: nothing depends on how a device adds."""
    x = torch.randn(2, 3, 128, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    for side in parse_scheme(spec).sides.values():
        here, there = side.quantizer.quantize(x), side.quantizer.quantize(x.cuda())
        for name, part in here.parts().items():
            same = [y.cpu().contiguous().view(torch.uint8) for y in (part, there.parts()[name])]
            assert torch.equal(*same), name
        assert there.dequantize().device.type == "cuda"


@pytest.mark.parametrize("spec", SUMS)
def test_errors_are_those_of_the_cpu(spec):
    """A mean in another order may move a code, not the error."""
    x = torch.randn(1, 2, 256, 64, generator=torch.Generator().manual_seed(0))
    for side in parse_scheme(spec).sides.values():
        errors = [(side.quantizer.quantize(y).dequantize() - y).norm().item() for y in (x, x.cuda())]
        assert errors[1] == pytest.approx(errors[0], rel=1e-3)


def test_a_run_in_float16(subject, options):
    """The whole path on the device: believable rows, in the order of the CPU's in float32."""
    specs = ["exact", "int8:group_size=16", "asym4:group_size=16", "asym2:group_size=16"]
    on_cpu, _ = compare(specs, options, subject=subject)
    model = copy.deepcopy(subject.loaded.model).to("cuda", torch.float16)
    moved = replace(subject, loaded=replace(subject.loaded, model=model))
    run, _ = compare(specs, replace(options, device="cuda", out=options.out + "-gpu"), subject=moved)
    assert run.audit.failures == {}
    assert run.audit.identity_is_exact
    assert run.settings.device == torch.cuda.get_device_name()
    rows = [summary.summarize(one) for one in (on_cpu, run)]
    assert [row.bits for row in rows[0]] == [row.bits for row in rows[1]]
    # The deltas themselves differ: in float16 a number near a tie gets another code, which is a whole step at 2 bits.
    # What must not differ is which scheme is nearer to exact, and that both are further from it than round-off.
    kl = [{row.scheme: row.kl for row in one} for one in rows]
    assert sorted(kl[0], key=kl[0].get) == sorted(kl[1], key=kl[1].get) == specs
    assert kl[1]["int8:group_size=16"] > run.noise_floor.kl


@pytest.fixture
def on_gpu(subject):
    model = copy.deepcopy(subject.loaded.model).to("cuda", torch.float16)
    return replace(subject, loaded=replace(subject.loaded, model=model))


@pytest.mark.parametrize("step", [1, 5])
def test_recorded_forwards_give_what_forwards_give(on_gpu, step):
    """Bit for bit, for every scheme that replays them, and whoever watches the cache is told."""
    model, batch = on_gpu.loaded.model, Batch(tuple(on_gpu.windows))
    prefilled, recorded = prefill(model, batch.prefix), Recorded(model)
    for spec in ("exact", "asym2:group_size=16", "kivi:bits=2,group_size=8,residual_length=16", "exact"):
        logits, reads = [], []
        for replayed in (None, recorded):
            cache = SchemeCache.for_model(parse_scheme(spec), model).fill(prefilled)
            observer = Observer(cache, 31, [0, 1], declared=True)
            observer.watch()
            logits.append(suffix_logits(model, cache, batch.suffix, step, replayed))
            reads.append(observer.stop().reads)
        assert recorded.works
        assert torch.equal(*logits), spec
        assert reads[0] == reads[1]


def test_a_model_whose_forward_cannot_be_recorded_runs_as_it_is(on_gpu, monkeypatch):
    model, batch = on_gpu.loaded.model, Batch(tuple(on_gpu.windows))
    prefilled, recorded = prefill(model, batch.prefix), Recorded(model)
    forward = model.forward

    def waits(*args, **kwargs):
        float(torch.ones(1, device="cuda"))  # a synchronization, which a recording does not take
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", functools.wraps(forward)(waits))
    caches = [SchemeCache.for_model(parse_scheme("exact"), model).fill(prefilled) for _ in range(2)]
    one, other = (suffix_logits(model, c, batch.suffix, 8, r) for c, r in zip(caches, (recorded, None), strict=True))
    assert not recorded.works
    assert torch.equal(one, other)


def test_a_stepwise_run_with_recorded_forwards(on_gpu, options):
    specs = ["int8:group_size=16", "asym2:group_size=16", "kivi:bits=2,group_size=8,residual_length=16"]
    run, _ = compare(specs, replace(options, device="cuda", protocol="stepwise", step=4, batch="3"), subject=on_gpu)
    assert run.audit.identity_is_exact
    assert run.audit.failures == {}
    assert run.batches == [3]


WHOLE = ["int8:group_size=16", "kivi:bits=2,group_size=8,residual_length=16", "hqq4:group_size=16", "gear(asym2:group_size=16)",
         "hadamard(asym4:group_size=16)", "turbo4"]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("step", [None, 4])
def test_a_comparison_waits_for_the_device_once_a_batch(step, on_gpu, options, monkeypatch):
    """From the second batch on, when all is compiled, recorded and controlled: fill, suffix and scoring of every contender are
    asked for without the host waiting, which it does when it looks at the scores. (kvquant's keys wait once a layer, to learn how
    many outliers there are: memory for them is asked for on the host.)"""
    over, watched = Passes.over, []

    def without_waiting(self, position, run, batch, prefilled):
        if not run.windows:
            return over(self, position, run, batch, prefilled)
        watched.append(self.contenders[position].label)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return over(self, position, run, batch, prefilled)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Passes, "over", without_waiting)
    windows = cut_windows(on_gpu.tokens, window_length=128, score_length=32, windows=6)
    protocol = "stepwise" if step else "two-pass"
    asked = replace(options, device="cuda", protocol=protocol, step=step, batch="3", windows=6)
    run, _ = compare(WHOLE, asked, subject=replace(on_gpu, windows=windows))
    assert run.batches == [3, 3]
    assert [one.error for one in run.contenders] == [None] * (len(WHOLE) + 1)
    assert watched == ["exact", *WHOLE]
