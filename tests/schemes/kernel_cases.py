"""The fused kernels against the torch code, on one device: what both a GPU and Triton's interpreter are held to.

Equal bytes in every part, but for two kinds of ties. Half-quadratic zeros: means are summed in another order, so of
iterates whose error is equal to a few last bits another may be kept, and a step at a rounding tie of some code may go the
other way; codes are still exactly those of the stored zero.
Float64 sums in KVarN's balancing: a float16 scale may fall to the other side of a rounding tie.
"""

import pytest
import torch

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.affine import FLOAT16_MAX, QParams
from kvdelta.schemes.half_quadratic import GroupSolver, HalfQuadratic, start
from kvdelta.schemes.kernels import SWITCH
from kvdelta.schemes.packing import unpack

BITS = (1, 2, 3, 4, 8)
AXES = ("token", "channel")
EXACT = [
    *(f"asym{bits}:axis={axis},group_size={32 * 2 ** (i % 3)}" for i, bits in enumerate(BITS) for axis in AXES),
    *(f"asym{bits}:zero=integer,axis={axis},group_size=32" for bits in (1, 3, 4) for axis in AXES),
    *(f"int{bits}:axis={axis}" for bits in (2, 3, 4, 8) for axis in AXES),
    *(f"{name}:group_size=all" for name in ("asym3", "int4", "nf4")),
    *(
        "nf4:axis=channel,asymmetric=true",
        "nf4:group_size=32",
        "nvfp4",
        "mxfp4",
        "turbo1",
        "turbo2",
        "turbo3",
        "turbo4",
    ),
    *("hadamard(asym4)", "hadamard(int3):signs=random", "turboquant:bits=2,rotation=hadamard,correct_norm=true"),
    *("turboquant:bits=2.5", "turboquant-vllm:key_bits=3"),
    *("mxfp4:rule=rceil,group_size=16", "nvfp4:scales=2", "mlx:bits=3", "exllamav3:bits=3", "polarquant:radius_bits=3"),
    *("kivi2", "oscar", "ott", "hqq3:stop=reference", "clip(asym2:axis=channel)", "centred(hadamard(asym3))"),
]
SOLVED = [
    *(f"hqq{bits}:axis={axis},group_size={32 * 2 ** (i % 3)}" for i, bits in enumerate(BITS) for axis in AXES),
    *("hqq2:group_size=all", "hqq3:normalize=true", "hqq2:p=1", "hqq3:iters=3,beta=2,p=0.5"),
]
EVENED = ["kvarn", "kvarn:tile=32", "kvarn:bits=3,tile=16"]
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def hostile(spec, dtype, device, heads=1, channels=64):
    """[8, heads, tokens, channels]: ordinary, loud tokens and channels, constants and tokens that are alike, zeros, largest, tiny, far from 0, mixed signs
    of the largest."""
    quantizer = parse_scheme(spec).key.quantizer
    tokens = 2 * quantizer.tokens_per_group if quantizer.tokens_per_group > 1 else 37
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(8, heads, tokens, channels, generator=rng)
    x[1] = x[1] ** 3 * torch.randn(heads, tokens, 1, generator=rng).exp()
    x[1, ..., 3] = 8 * x[1, ..., 3] + 20
    x[2] = torch.linspace(-1000.7, 1000.7, channels)
    x[2, :, ::2] = 0.7
    x[3] = 0.0
    x[4, :, ::3, ::5] = FLOAT16_MAX
    x[5] *= 1e-6
    x[6] = 1000 + 0.01 * x[6]
    x[7] = FLOAT16_MAX * x[7].sign()
    return x.to(device, dtype)


def both(quantizer, x, monkeypatch):
    """What is stored, by the torch code and by the kernels."""
    monkeypatch.setenv(SWITCH, "off")
    plain = quantizer.quantize(x)
    monkeypatch.setenv(SWITCH, "always")
    return plain, quantizer.quantize(x)


def assert_equal_parts(plain, fused):
    assert plain.parts().keys() == fused.parts().keys()
    for name, part in plain.parts().items():
        ours = fused.parts()[name]
        assert (ours.shape, ours.dtype) == (part.shape, part.dtype)
        assert torch.equal(ours.contiguous().view(torch.uint8), part.contiguous().view(torch.uint8)), name


def assert_equal_reads(held, monkeypatch, exactly=True):
    """exactly=False: to one step of the output's type, which the interpreter rounds down."""
    monkeypatch.setenv(SWITCH, "off")
    plain = held.dequantize()
    monkeypatch.setenv(SWITCH, "always")
    fused = held.dequantize()
    assert (plain.shape, plain.dtype) == (fused.shape, fused.dtype)
    if exactly:
        assert torch.equal(plain, fused)
    else:
        torch.testing.assert_close(fused, plain, rtol=torch.finfo(plain.dtype).eps, atol=0)


def iterates(solver, x, max_code):
    """Of all steps of the torch code, for groups x: zeros and mean errors, [steps, groups]; and how near a number came to a
    rounding tie of its code at any step, [groups]."""
    inverse, zero = start(x, max_code, storable=True)
    steps = HalfQuadratic(max_code, solver.iters, solver.p, solver.beta)
    if solver.normalize:
        x, inverse = x * (inverse / max_code)[:, None], torch.full_like(inverse, max_code)
    scaled, threshold = x * inverse[:, None], steps.threshold(inverse)
    residual, size, share = (torch.empty_like(x) for _ in range(3))
    zeros, errors, near = [], [], []
    for _ in range(solver.iters):
        zeros.append(zero)
        errors.append(steps.error(scaled, zero, residual, size))
        exact = scaled + zero[:, None]
        near.append((exact - exact.floor() - 0.5).abs().amin(-1))
        zero = steps.next_zero(threshold, zero, residual, size, share)
    return torch.stack(zeros), torch.stack(errors), torch.stack(near).amin(0)


def check_solved(quantizer, x, monkeypatch, tie=1e-6, code_tie=1e-5):
    """Scales are equal; codes are those of what is stored; each zero is an iterate of the torch code whose error is the
    least, or larger by `tie` of it, but where a step passed a rounding tie of a code within `code_tie`. Returns how many
    groups have another zero than the torch code kept, and how many of these for a rounding tie."""
    plain, fused = both(quantizer, x, monkeypatch)
    assert isinstance(quantizer.solver, GroupSolver)
    assert torch.equal(plain.scale, fused.scale)
    groups = quantizer.grouping.split(x)[0].float()
    codes = QParams(fused.scale, zero=fused.zero).encode(groups, quantizer.max_code)
    assert torch.equal(codes.flatten(-2), unpack(fused.codes, quantizer.bits))
    zeros, errors, to_tie = iterates(quantizer.solver, groups.flatten(0, -2), quantizer.max_code)
    found = fused.zero.flatten().float()
    stored = zeros.clamp(-FLOAT16_MAX, FLOAT16_MAX)
    near = (stored - found).abs() <= found.abs() * 2.0**-11 + 2.0**-25 + 1e-4
    excess = torch.where(near, errors, float("inf")).amin(0) - errors.amin(0)
    strayed = excess > tie * errors.amin(0) + 1e-12
    assert (to_tie[strayed] <= code_tie).all()
    return int((plain.zero != fused.zero).sum()), int(strayed.sum())


def check_evened(quantizer, x, monkeypatch, tie=1e-6):
    """Vectors are equal but where the float64 scale is within `tie` of a rounding tie (none as a rule); where they are, all
    that is stored is equal."""
    plain, fused = both(quantizer, x, monkeypatch)
    vectors = [held.inner.vector.double() for held in (plain, fused)]
    moved = (vectors[0] != vectors[1]).flatten(0, 2).any(-1)
    assert moved.float().mean() <= tie
    for name, part in plain.parts().items():
        same = [one.flatten(0, 2)[~moved].contiguous().view(torch.uint8) for one in (part, fused.parts()[name])]
        assert torch.equal(*same), name
    return int(moved.sum())


def ids(specs):
    return [pytest.param(spec, id=spec) for spec in specs]
