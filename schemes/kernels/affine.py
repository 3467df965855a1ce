"""Groups to packed codes and back, one pass over memory each way; the half-quadratic solver in registers.

A tensor is read as rows of `group` numbers that lie `inner` numbers apart: 1 where groups lie along channels, the number
of channels where they lie along tokens. A row has one scale and at most one offset or zero (`other`).
"""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from dataclasses import dataclass
from math import log2
from typing import Literal, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvdelta.schemes.kernels import launch, power_of_two

TILE = 4096  # numbers of a program
SMALL = 2048  # of one that solves for the zero, or reduces along tokens: it needs many registers a number
MOST = 1024  # the longest group that a program takes

Choice = Literal["min-max", "symmetric", "whole-zero", "half-quadratic"]
Rule = Literal["none", "offset", "zero", "whole-zero"]
"""What `other` is: nothing; x̂ = level · scale + offset; x̂ = (code − zero) · scale with codes round(x / scale + zero), or
round(x / scale) + zero."""
RULES: dict[Choice, Rule] = {
    "min-max": "offset",
    "symmetric": "whole-zero",
    "whole-zero": "whole-zero",
    "half-quadratic": "zero",
}


@triton.jit
@no_type_check
def _rounded(x):
    """Half to even, of numbers below 2^22; another rounding would need a library that the interpreter has not."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
@no_type_check
def _clamped(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
@no_type_check
def _stored_scale(scale):
    return _clamped(scale, 5.9604644775390625e-08, 65504.0).to(tl.float16)


@triton.jit
@no_type_check
def _best_zero(
    x, inverse, zero, MAX_CODE: tl.constexpr, GROUP: tl.constexpr, ITERS: tl.constexpr, P: tl.constexpr, LOG2_BETA: tl.constexpr
):  # fmt: skip
    """`HalfQuadratic.solve`: of all iterates the zero with the least mean |x − x̂|."""
    scaled = x * inverse[:, None]
    threshold = (tl.log2(inverse) * (2 - P) - LOG2_BETA)[:, None]
    kept = zero
    least = tl.full(zero.shape, float("inf"), tl.float32)
    for _ in range(ITERS):
        moved = scaled + zero[:, None]
        residual = moved - _rounded(_clamped(moved, 0.0, MAX_CODE))
        size = tl.abs(residual)
        error = tl.sum(size, axis=1)
        kept = tl.where(error < least, zero, kept)
        least = tl.minimum(error, least)
        share = tl.minimum(tl.exp2(threshold + tl.log2(size) * (P - 2)), 1.0)
        zero -= tl.sum(residual * share, axis=1) * (1.0 / GROUP)
    return kept


@triton.jit
@no_type_check
def _encode(
    x, packed, scales, others, bounds, rows,
    CHOICE: tl.constexpr, RULE: tl.constexpr, MAX_CODE: tl.constexpr, ZERO: tl.constexpr, LEVELS: tl.constexpr,
    STEP_OF_RANGE: tl.constexpr, ITERS: tl.constexpr, P: tl.constexpr, LOG2_BETA: tl.constexpr,
    NORMALIZE: tl.constexpr, GROUP: tl.constexpr, INNER: tl.constexpr, BITS: tl.constexpr, UNIT: tl.constexpr,
    BYTES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = tl.arange(0, GROUP)
    inside = row < rows
    start = (row // INNER) * (GROUP * INNER) + row % INNER
    values = tl.load(x + start[:, None] + place[None, :] * INNER, mask=inside[:, None], other=0.0).to(tl.float32)

    # scale and other, as stored, then in float32
    other = tl.full((ROWS,), ZERO, tl.float32)
    if CHOICE == "given":
        scale = tl.load(scales + row, mask=inside, other=1.0).to(tl.float32)
        if others is not None:
            other = tl.load(others + row, mask=inside, other=0.0).to(tl.float32)
    elif CHOICE == "symmetric":
        largest = tl.max(tl.abs(values), axis=1)
        stored = _stored_scale(tl.where(largest == 0, 1.0, largest * (2 * STEP_OF_RANGE)))
        scale = stored.to(tl.float32)
    else:
        low, high = tl.min(values, axis=1), tl.max(values, axis=1)
        spread = high - low
        if CHOICE == "min-max":
            stored = _stored_scale(tl.where(spread == 0, 1.0, spread * STEP_OF_RANGE))
            scale = stored.to(tl.float32)
            kept = _clamped(low, -65504.0, 65504.0).to(tl.float16)
        elif CHOICE == "whole-zero":
            largest = tl.maximum(tl.abs(low), tl.abs(high))
            least = largest * (1.0 / 32750) + 2.98023223876953125e-08
            stored = _stored_scale(tl.where(largest == 0, 1.0, tl.maximum(spread * STEP_OF_RANGE, least)))
            scale = stored.to(tl.float32)
            kept = _clamped(_rounded(tl.math.div_rn(-low, scale)), -32767.0, 32767.0).to(tl.int16)
        else:
            ones = tl.full((ROWS,), 1.0, tl.float32)
            limit = tl.math.div_rn(ones, tl.maximum(tl.max(tl.abs(values), axis=1), 1e-30)) * 65504.0
            narrow = spread <= 1e-4
            inverse = tl.math.div_rn(ones, tl.where(narrow, 1.0, spread)) * MAX_CODE
            inverse = tl.minimum(tl.minimum(tl.where(narrow, 1.0, inverse), 2e4), limit)
            zero = -low * inverse
            if NORMALIZE:
                unit = tl.math.div_rn(inverse, tl.full((ROWS,), MAX_CODE, tl.float32))
                zero = _best_zero(values * unit[:, None], ones * MAX_CODE, zero, MAX_CODE, GROUP, ITERS, P, LOG2_BETA)
            else:
                zero = _best_zero(values, inverse, zero, MAX_CODE, GROUP, ITERS, P, LOG2_BETA)
            stored = _stored_scale(tl.math.div_rn(ones, inverse))
            scale = stored.to(tl.float32)
            kept = _clamped(zero, -65504.0, 65504.0).to(tl.float16)
        other = kept.to(tl.float32)
        tl.store(others + row, kept, mask=inside)
    if CHOICE != "given":
        tl.store(scales + row, stored, mask=inside)

    divisor = tl.broadcast_to(scale[:, None], values.shape)
    quotient = tl.math.div_rn(values - other[:, None], divisor) if RULE == "offset" else tl.math.div_rn(values, divisor)
    if LEVELS > 0:
        codes = tl.zeros((ROWS, GROUP), tl.int32)
        for level in tl.static_range(LEVELS - 1):
            codes += tl.where(quotient <= tl.load(bounds + level), 0, 1)
    elif RULE == "whole-zero":
        numbers = _rounded(_clamped(quotient, -2097152.0, 2097152.0)) + other[:, None]
        codes = _clamped(numbers, 0.0, MAX_CODE).to(tl.int32)
    else:
        if RULE == "zero":
            quotient += other[:, None]
        codes = _rounded(_clamped(quotient, 0.0, MAX_CODE)).to(tl.int32)

    words: tl.constexpr = GROUP // UNIT
    if UNIT > 1:
        shift = (tl.arange(0, UNIT) * BITS)[None, None, :]
        word = tl.sum(tl.reshape(codes, [ROWS, words, UNIT]) << shift, axis=2)
    else:
        word = codes
    at = packed + row[:, None] * (words * BYTES) + (tl.arange(0, words) * BYTES)[None, :]
    for byte in tl.static_range(BYTES):
        tl.store(at + byte, ((word >> (8 * byte)) & 255).to(tl.uint8), mask=inside[:, None])


@triton.jit
@no_type_check
def _decode(
    packed, out, scales, others, levels, rows,
    RULE: tl.constexpr, ZERO: tl.constexpr, LEVELS: tl.constexpr, LIMIT: tl.constexpr, GROUP: tl.constexpr,
    INNER: tl.constexpr, BITS: tl.constexpr, UNIT: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = tl.arange(0, GROUP)
    inside = row < rows
    words: tl.constexpr = GROUP // UNIT
    at = packed + row[:, None] * (words * BYTES) + (tl.arange(0, words) * BYTES)[None, :]
    word = tl.load(at, mask=inside[:, None], other=0).to(tl.int32)
    for byte in tl.static_range(1, BYTES):
        word |= tl.load(at + byte, mask=inside[:, None], other=0).to(tl.int32) << (8 * byte)
    if UNIT > 1:
        shift = (tl.arange(0, UNIT) * BITS)[None, None, :]
        codes = tl.reshape((word[:, :, None] >> shift) & ((1 << BITS) - 1), [ROWS, GROUP])
    else:
        codes = word

    x = tl.load(levels + codes) if LEVELS > 0 else codes.to(tl.float32)
    scale = tl.load(scales + row, mask=inside, other=1.0).to(tl.float32)[:, None]
    if others is not None:
        other = tl.load(others + row, mask=inside, other=0.0).to(tl.float32)[:, None]
    else:
        other = tl.full((ROWS, 1), ZERO, tl.float32)
    if RULE == "offset":
        x = x * scale + other
    elif RULE == "none":
        x = x * scale
    else:
        x = (x - other) * scale
    x = _clamped(x, -LIMIT, LIMIT).to(out.dtype.element_ty)
    start = (row // INNER) * (GROUP * INNER) + row % INNER
    tl.store(out + start[:, None] + place[None, :] * INNER, x, mask=inside[:, None])


@dataclass(frozen=True)
class Layout:
    """How codes lie: `bits` each, in rows of `group` numbers, `inner` apart."""

    bits: int
    group: int
    inner: int

    @property
    def unit(self) -> int:
        """Codes that fill whole bytes."""
        return 8 if self.bits in (1, 3) else 8 // self.bits

    @property
    def works(self) -> bool:
        """Codes of 5, 6 and 7 bits, which two engines alone have, are left to the torch code."""
        return self.bits in (1, 2, 3, 4, 8) and power_of_two(self.group) and self.unit <= self.group <= MOST

    def _constants(self, tile: int) -> dict[str, int]:
        return {
            "GROUP": self.group,
            "INNER": self.inner,
            "BITS": self.bits,
            "UNIT": self.unit,
            "BYTES": 3 if self.bits == 3 else 1,
            "ROWS": max(1, tile // self.group),
        }

    def encode(
        self, x: Tensor, max_code: int, rule: Rule, scale: Tensor, other: Tensor | int | None, bounds: Tensor | None
    ) -> Tensor:
        """Packed codes, flat, for parameters that are given, one a row. bounds: between the levels, ascending, where a
        code is the place of the nearest."""
        return self._encoded(x, max_code, "given", rule, scale, other, bounds)

    def choose_and_encode(
        self, x: Tensor, max_code: int, choice: Choice, *steps: float
    ) -> tuple[Tensor, Tensor, Tensor | int]:
        """Packed codes, scale and other as they are stored, flat. steps: of the half-quadratic solver, iters, p, beta,
        normalize."""
        rows = x.numel() // self.group
        scale = torch.empty(rows, dtype=torch.float16, device=x.device)
        other = max_code // 2
        if choice != "symmetric":
            other = torch.empty_like(scale, dtype=torch.int16 if choice == "whole-zero" else torch.float16)
        return self._encoded(x, max_code, choice, RULES[choice], scale, other, None, *steps), scale, other

    def _encoded(
        self, x: Tensor, max_code: int, choice: str, rule: Rule, scale: Tensor, other: Tensor | int | None,
        bounds: Tensor | None, iters: int = 1, p: float = 1.0, beta: float = 1.0, normalize: bool = False,
    ) -> Tensor:  # fmt: skip
        packed = torch.empty(x.numel() * self.bits // 8, dtype=torch.uint8, device=x.device)
        rows = x.numel() // self.group
        constants = self._constants(SMALL if choice == "half-quadratic" or self.inner > 1 else TILE)
        launch(
            _encode, triton.cdiv(rows, constants["ROWS"]),
            x.contiguous(), packed, _loadable(scale), _loadable(other), bounds, rows,
            CHOICE=choice, RULE=rule, MAX_CODE=max_code, ZERO=other if isinstance(other, int) else 0,
            LEVELS=0 if bounds is None else len(bounds) + 1, STEP_OF_RANGE=1.0 / max_code, ITERS=iters, P=p,
            LOG2_BETA=log2(beta), NORMALIZE=normalize, **constants,
        )  # fmt: skip
        return packed

    def decode(
        self, packed: Tensor, rule: Rule, scale: Tensor, other: Tensor | int | None, levels: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        """The numbers, flat, clamped to what `dtype` can hold."""
        out = torch.empty(packed.numel() * 8 // self.bits, dtype=dtype, device=packed.device)
        rows, constants = out.numel() // self.group, self._constants(TILE)
        launch(
            _decode, triton.cdiv(rows, constants["ROWS"]),
            packed.contiguous(), out, _loadable(scale), _loadable(other), levels, rows,
            RULE=rule, ZERO=other if isinstance(other, int) else 0, LEVELS=0 if levels is None else len(levels),
            LIMIT=torch.finfo(dtype).max, **constants,
        )  # fmt: skip
        return out


def _loadable(parameter: Tensor | int | None) -> Tensor | None:
    """In order, and of a type that a kernel reads."""
    if not isinstance(parameter, Tensor):
        return None
    small = parameter.is_floating_point() and parameter.element_size() == 1
    return (parameter.float() if small else parameter).contiguous()
