"""What only a CUDA device can show; skipped, with the reason, where there is none."""

import copy
from dataclasses import replace

import pytest
import torch

from analysis import summary
from harness.comparison import compare
from schemes import parse_scheme

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none"),
]


@pytest.mark.parametrize("spec", ["int4", "asym3", "asym2:key_axis=channel", "asym4:zero=integer"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_codes_are_those_of_the_cpu(spec, dtype):
    """Min–max schemes take no sums, so nothing depends on the order in which a device adds."""
    x = torch.randn(2, 3, 128, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    for side in parse_scheme(spec).sides.values():
        here, there = side.quantizer.quantize(x), side.quantizer.quantize(x.cuda())
        for name, part in here.parts().items():
            assert torch.equal(part, there.parts()[name].cpu()), name
        assert there.dequantize().device.type == "cuda"


def test_hqq_solves_on_the_device():
    x = torch.randn(1, 2, 256, 64, generator=torch.Generator().manual_seed(0))
    quantizer = parse_scheme("hqq3").key.quantizer
    errors = [(quantizer.quantize(y).dequantize() - y).norm().item() for y in (x, x.cuda())]
    assert errors[1] == pytest.approx(errors[0], rel=1e-4)


def test_a_run_in_float16(subject, options):
    """The whole path on the device: believable rows, and deltas near the CPU's in float32."""
    specs = ["exact", "int8:group_size=16", "asym2:group_size=16", "kivi:bits=2,group_size=8,residual_length=16"]
    on_cpu, _ = compare(specs, options, subject=subject)
    model = copy.deepcopy(subject.loaded.model).to("cuda", torch.float16)
    moved = replace(subject, loaded=replace(subject.loaded, model=model))
    run, _ = compare(specs, replace(options, device="cuda", out=options.out + "-gpu"), subject=moved)
    assert run.audit.failures == {}
    assert run.audit.identity_is_exact
    assert run.settings.device == torch.cuda.get_device_name()
    for here, there in zip(summary.summarize(on_cpu), summary.summarize(run), strict=True):
        assert there["delta_nll"] == pytest.approx(here["delta_nll"], abs=0.02)
        assert there["bits"] == here["bits"]
