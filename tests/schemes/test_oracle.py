"""10,000 cases of scheme × shape × dtype × chunking × batch × data, seeded, through the store that a cache has.

Families with a published formula of one line are held to an oracle in float64, written here in numpy from the formula and nothing of
the code: a number that the formula puts clear of a rounding tie must be what the oracle gives, to the last bit that float32 arithmetic
and the dtype can hold; one within 1e-4 steps of a tie, or in a group whose stored scale is itself at such a tie, may be one step beside.
What is not packed must be as it came, bit for bit.

Wrappers (hadamard, clip, centred, sparse) are held to it around symmetric and asymmetric, turboquant at whole bits: the wrapper's map in
float64, then the oracle of what is inside, which is told by how much float32 may be off in the numbers that it gets. Rotated back, a
number is sure where all of its token are.

The other families (solvers, low-rank parts; and whatever family is new), and these wrappers and turboquant in all their settings, are
their own oracle: fed at once, in chunks, and a row alone give the same bits. That is the cases of OTHERS, 60 a family.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jaxtyping
import numpy as np
import pytest
import torch

from kvdelta.schemes import TokenStore, UserError, parse_scheme
from kvdelta.schemes.registry import own_fields

from .cases import DTYPES, FAMILIES, NESTED, PLAIN

Array = np.ndarray

KINDS = ("normal", "outliers", "constants", "huge", "tiny", "zeros", "mixed")
LARGEST_FLOAT16, LEAST_FLOAT16 = 65504.0, 2.0**-24
TIE = 1e-4  # of a step: float32 arithmetic errs by less than this over all codes of 8 bits
FLOAT32 = 2.0**-22  # relative: a few roundings in float32


@dataclass
class Decoded:
    """What a group decodes to, in float64. step: how far the next code is; sure: not near a tie; slack: what float32 may err by."""

    x: Array
    step: Array
    sure: Array
    slack: Array


Codec = Callable[[Array], Decoded]  # of groups on the last axis


class InnerCodec(Protocol):
    """The same, of numbers each of which may be off by its error."""

    def __call__(self, x: Array, error: Array | float = 0.0) -> Decoded: ...


def float16(x: Array) -> Array:
    return np.clip(x, -LARGEST_FLOAT16, LARGEST_FLOAT16).astype(np.float16).astype(np.float64)


def stored_scale(x: Array, error: Array | float = 0.0) -> tuple[Array, Array]:
    """As float16, and whether float32 arithmetic must come to the same, of numbers that may be off by the error."""
    low, middle, high = (
        float16(np.clip(x * (1 + d) + e, LEAST_FLOAT16, LARGEST_FLOAT16))
        for d, e in ((-FLOAT32, -error), (0.0, 0.0), (FLOAT32, error))
    )
    return middle, low == high


def neighbour(x: Array) -> Array:
    """How far the next float16 is, at most."""
    return np.abs(x) * 2.0**-10 + LEAST_FLOAT16


def largest(x: Array, error: Array | float) -> tuple[Array, Array]:
    """Of each group, and by how much it may be off."""
    most = x.max(-1, keepdims=True)
    return most, np.maximum((x + error).max(-1, keepdims=True) - most, most - (x - error).max(-1, keepdims=True))


def inexact(held: Decoded, error: Array | float, scale_error: Array) -> Decoded:
    """Of numbers that were off by the error: what is not sure may be so much further off."""
    return Decoded(held.x, held.step + 2 * error + scale_error, held.sure, held.slack)


def clear(v: Array, least: float, most: float, wide: Array | float = 0.0) -> Array:
    """Whether codes v, before rounding, are clear of ties, or beyond the ends; wide: how far float32 may be off besides."""
    margin = TIE + wide
    beside = np.abs(v - np.floor(v) - 0.5) > margin
    return beside | (v < least - margin) | (v > most + margin)


def affine(code: Array, scale: Array, offset: Array, sure: Array) -> Decoded:
    x = code * scale + offset
    size = np.abs(code * scale) + np.abs(offset)
    other = np.maximum(np.abs(scale) * 2.0**-9, 2 * LEAST_FLOAT16)  # the scale's own neighbour
    return Decoded(x, np.abs(scale) + (np.abs(code) + 1) * other, sure, FLOAT32 * size)


def symmetric(bits: int) -> InnerCodec:
    def codec(x: Array, error: Array | float = 0.0) -> Decoded:
        most = 2 ** (bits - 1) - 1
        absmax, off = largest(np.abs(x), error)
        scale, exact = stored_scale(np.where(absmax == 0, 1.0, absmax / most), off / most)
        exact = exact & ((off == 0) | (off < absmax))
        v = x / scale
        held = affine(
            np.clip(np.rint(v), -most, most), scale, np.zeros_like(x), clear(v, -most, most, error / scale) & exact
        )
        return inexact(held, error, off)

    return codec


def float_zero(bits: int) -> InnerCodec:
    def codec(x: Array, error: Array | float = 0.0) -> Decoded:
        (low, low_off), (high, high_off), most = largest(-x, error), largest(x, error), 2**bits - 1
        low, off = -low, low_off + high_off
        scale, exact = stored_scale(np.where(high == low, 1.0, (high - low) / most), off / most)
        exact = exact & ((off == 0) | (off < high - low))
        offset, same = float16(low), float16(low - low_off) == float16(low + low_off)
        v = (x - offset) / scale
        sure = clear(v, 0, most, error / scale) & exact & same
        held = affine(np.clip(np.rint(v), 0, most), scale, offset + 0 * x, sure)
        return inexact(held, error, off + ~same * (neighbour(low) + low_off))

    return codec


def integer_zero(bits: int) -> Codec:
    """The scale is at least what a zero of 16 bits needs: largest/32750 and half of float16's least number."""

    def codec(x: Array) -> Decoded:
        low, high, most = x.min(-1, keepdims=True), x.max(-1, keepdims=True), 2**bits - 1
        largest = np.abs(x).max(-1, keepdims=True)
        scale, exact = stored_scale(
            np.where(largest == 0, 1.0, np.maximum((high - low) / most, largest / 32750 + LEAST_FLOAT16 / 2))
        )
        away = -low / scale
        zero = np.clip(np.rint(away), -32767, 32767)
        v = x / scale
        sure = (
            clear(v + zero, 0, most, FLOAT32 * np.abs(v)) & clear(away, -32767, 32767, FLOAT32 * np.abs(away)) & exact
        )
        code = np.clip(np.rint(v) + zero, 0, most)
        held = affine(code - zero, scale, np.zeros_like(x), sure)
        return Decoded(held.x, 2 * held.step, held.sure, held.slack)  # the zero has ties of its own

    return codec


def levels(values: Array, scale: Array, offset: Array, sure: Array, x: Array, wide: Array | float = 0.0) -> Decoded:
    """The nearest of ascending levels times the scale, around the offset; wide: how far float32 may be off besides."""
    v = (x - offset) / scale
    between = (values[1:] + values[:-1]) / 2
    code = np.searchsorted(between, v)
    gap = np.diff(values).max()
    near = np.abs(v[..., None] - between).min(-1)
    sure = sure & (near > TIE * gap + FLOAT32 * np.abs(v) + wide)
    return (
        affine(values[code], scale, offset + 0 * x, sure)
        if gap <= 1
        else _wide(values[code], scale, offset + 0 * x, sure, gap)
    )


def _wide(level: Array, scale: Array, offset: Array, sure: Array, gap: float) -> Decoded:
    held = affine(level, scale, offset, sure)
    return Decoded(held.x, gap * held.step, held.sure, held.slack)


NF4 = np.array([
    -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0,
])  # fmt: skip
E2M1 = np.array([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6])


def nf4(asymmetric: bool) -> Codec:
    def codec(x: Array) -> Decoded:
        mean = x.mean(-1, keepdims=True) if asymmetric else np.zeros((*x.shape[:-1], 1))
        error = asymmetric * 2.0**-22 * np.abs(x).mean(-1, keepdims=True)  # of a mean in float32
        offset, same = float16(mean), float16(mean - error) == float16(mean + error)
        scale, exact = stored_scale(np.abs(x - offset).max(-1, keepdims=True))
        return levels(NF4, scale, offset, exact & same, x)

    return codec


def mxfp4(rule: str) -> Codec:
    def codec(x: Array) -> Decoded:
        absmax = np.maximum(np.abs(x).max(-1, keepdims=True), 2.0**-120)
        exponent = np.floor(np.log2(absmax))
        exponent += absmax >= 2.0 ** (exponent + 1)  # log2 is rounded
        share = absmax / 2.0**exponent
        more = {"floor": share > 2, "even": share >= 1.75, "rceil": share > 1.5}[rule]
        return levels(E2M1, 2.0 ** (exponent - 2 + more), np.zeros_like(x), np.full(x.shape, True), x)

    return codec


def to_float8(v: Array, mantissa: int, least: int, largest: float) -> tuple[Array, Array]:
    """The nearest 8-bit float, and the distance of its neighbours; least: the exponent of the smallest normal number."""
    exponent = np.floor(np.log2(np.maximum(np.abs(v), 2.0**least)))
    quantum = 2.0 ** (exponent - mantissa)
    return np.clip(np.rint(v / quantum) * quantum, -largest, largest), quantum


FLOAT8 = {"e4m3": (3, -6, 448.0), "e5m2": (2, -14, 57344.0)}


def fp8(format: str, scaled: bool) -> Codec:
    def codec(x: Array) -> Decoded:
        absmax = np.abs(x).max(-1, keepdims=True)
        scale = np.ones_like(absmax)
        if scaled:
            scale = float16(np.clip(np.where(absmax == 0, 1.0, absmax), LEAST_FLOAT16, None)) / FLOAT8[format][2]
        v = x / scale
        code, quantum = to_float8(v, *FLOAT8[format])
        held = affine(code, scale, np.zeros_like(x), clear(v / quantum, -np.inf, np.inf))
        return Decoded(held.x, scale * quantum * 2.01, held.sure, held.slack)

    return codec


def nvfp4() -> Codec:
    def codec(x: Array) -> Decoded:
        absmax = np.abs(x).max(-1, keepdims=True)
        sixth = np.clip(np.where(absmax == 0, 1.0, absmax / 6), 2.0**-9, 448.0)
        scale, quantum = to_float8(sixth, *FLOAT8["e4m3"])
        held = levels(
            E2M1, scale, np.zeros_like(x), clear(sixth / quantum, -np.inf, np.inf) & np.full(x.shape, True), x
        )
        return Decoded(held.x, held.step + 2 * quantum * 6, held.sure, held.slack)

    return codec


def ggml(format: str) -> Codec:
    """Blocks of 32: codes from the scale as it is, which is stored as float16."""

    def codec(x: Array) -> Decoded:
        low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
        first = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)
        middle = {"q4_0": 8, "q5_0": 16, "q6_0": 32}.get(format, 0)
        least, most, offset = 0, 2 * middle - 1, np.zeros_like(x)
        if format == "q8_0":
            d, least, most = np.abs(first) / 127, -127, 127
        elif middle:
            d = first / -middle
        else:
            most = 15 if format == "q4_1" else 31
            d, offset = (high - low) / most, low + 0 * x
        with np.errstate(divide="ignore", invalid="ignore"):
            v = np.where(d == 0, 0.0, (x - offset) / np.where(d == 0, 1.0, d))
        code = np.sign(v) * np.floor(np.abs(v) + 0.5) if format == "q8_0" else np.floor(v + middle + 0.5) - middle
        code = np.clip(code, least - middle, most - middle)
        stored = float16(d)
        exact = float16(d * (1 - FLOAT32)) == float16(d * (1 + FLOAT32))
        held = affine(code, stored, float16(offset), clear(v, least - middle, most - middle) & exact)
        return Decoded(held.x, np.abs(held.step) + 2 * LEAST_FLOAT16 * np.abs(code), held.sure, held.slack)

    return codec


IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])


def iq4_nl(rule: str) -> Codec:
    """Levels nearest for largest/−127 give a scale by least squares, weighted by x²; rule: whether they are kept ("first")
    or looked for again ("nearest")."""

    def codec(x: Array) -> Decoded:
        start = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1) / -127
        first = levels(IQ4_NL, np.where(start == 0, 1.0, start), np.zeros_like(x), np.full(x.shape, True), x)
        level = np.where(start == 0, 0.0, np.rint(first.x / np.where(start == 0, 1.0, start)))
        above = (x**3 * level).sum(-1, keepdims=True)
        below = (x**2 * level**2).sum(-1, keepdims=True)
        scale = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        stored, error = float16(scale), 2.0**-20 * np.abs(scale)  # of two sums of 32 numbers in float32
        same, clean = float16(scale - error) == float16(scale + error), first.sure.all(-1, keepdims=True)
        # where one of the first levels is not sure: by how much the two sums may change, gap by gap
        gap = np.diff(IQ4_NL).max()
        more = (np.abs(x) ** 3 * gap * ~first.sure).sum(-1, keepdims=True)
        under = (x**2 * (2 * np.abs(level) + gap) * gap * ~first.sure).sum(-1, keepdims=True)
        away = np.divide(more + np.abs(scale) * under, below - under, out=0 * above, where=below > under)
        if rule == "first":
            held = affine(level, stored, np.zeros_like(x), first.sure & same & clean)
            held = Decoded(held.x, gap * held.step, held.sure, held.slack)
        else:
            held = levels(IQ4_NL, np.where(stored == 0, 1.0, stored), np.zeros_like(x), same & clean, x)
            held = Decoded(np.where(stored == 0, 0.0, held.x), held.step, held.sure, held.slack)
        return Decoded(held.x, held.step + 127 * (away + neighbour(scale)), held.sure, held.slack)

    return codec


LLOYD_MAX = {  # the positive half for N(0, 1): Max 1960, table I
    1: (0.7979,),
    2: (0.4528, 1.5104),
    3: (0.2451, 0.7560, 1.3439, 2.1519),
    4: (0.1284, 0.3880, 0.6568, 0.9423, 1.2562, 1.6180, 2.0690, 2.7326),
}


def lloyd_max(bits: int, corrected: bool) -> InnerCodec:
    """The norm over √width is the scale; corrected: the norm over that of the levels, which are nearest for the former."""

    def codec(x: Array, error: Array | float = 0.0) -> Decoded:
        half = np.array(LLOYD_MAX[bits])
        values = np.concatenate([-half[::-1], half])
        norm = np.linalg.norm(x, axis=-1, keepdims=True)
        off = np.linalg.norm(error + 0 * x, axis=-1, keepdims=True) + 2.0**-21 * norm
        root = x.shape[-1] ** 0.5
        scale, exact = stored_scale(np.where(norm == 0, 1.0, norm / root), off / root)
        exact = exact & ((norm == 0) | (norm > 1e-17))  # squares below float32
        wide = error / scale + ~exact * np.abs(x / scale) * 2.0**-9
        held = levels(values, scale, np.zeros_like(x), np.full(x.shape, True), x, wide)
        sure, gap = held.sure & exact, np.diff(values).max()
        if corrected:
            level = held.x / scale
            size = np.linalg.norm(level, axis=-1, keepdims=True)
            away = (
                gap * np.sqrt((~held.sure).sum(-1, keepdims=True)) / size
            )  # of the norm, where some levels are not sure
            scale, same = stored_scale(np.where(norm == 0, 1.0, norm / size), off / size)
            held = affine(level, scale, np.zeros_like(x), held.sure)
            sure = np.broadcast_to((sure & same).all(-1, keepdims=True), x.shape)
            held = Decoded(held.x, (1 + gap) * held.step + 2 * away * np.abs(held.x), sure, held.slack)
        step = held.step + 2 * error + off / root * values.max()
        return Decoded(np.where(norm == 0, 0.0, held.x), step, sure | (norm == 0), held.slack)

    return codec


def exact() -> Codec:
    return lambda x: Decoded(x, 0 * x, np.full(x.shape, True), 0 * x)


@dataclass
class Rule:
    """How one side is stored: what each group decodes to, which elements are one (axis "token", "channel", or "head" and "tensor" over
    blocks of so many tokens), and what stays exact."""

    codec: Callable[..., Decoded]  # a Codec; of what is inside a wrapper an InnerCodec
    axis: str
    group: int | str
    keep: int = 0
    every: int = 1

    def decode(self, x: Array, dtype: torch.dtype, error: Array | None = None) -> Decoded:
        """Of packed tokens [batch, heads, tokens, channels], each number of which may be off by its error."""
        batch, heads = x.shape[:2]
        out = Decoded(*(np.zeros(x.shape) for _ in range(4)))
        given = (x,) if error is None else (x, np.broadcast_to(error, x.shape))
        if self.axis == "token":
            for here in self.groups(x.shape):
                self._put(out, here, self.codec(*(part[here] for part in given)))
            return out
        for here in self.groups(x.shape):
            if self.axis == "channel":
                held = self.codec(*(part[here].swapaxes(2, 3) for part in given))
                self._put(out, here, held, lambda part: part.swapaxes(2, 3))
            else:
                block = x[here]
                flat = block.reshape((batch, -1) if self.axis == "tensor" else (batch, heads, -1))
                self._put(out, here, self.codec(flat), lambda part, like=block: part.reshape(like.shape))
        return out

    def groups(self, shape: tuple[int, ...]) -> list[tuple]:
        """Where the channels of a group of each token are, or the tokens of a block."""
        length = shape[3] if self.axis == "token" else shape[2]
        size = length if self.group == "all" else int(self.group)
        before = (slice(None),) * (3 if self.axis == "token" else 2)
        return [(*before, slice(start, start + size)) for start in range(0, length, size)]

    def _put(
        self, out: Decoded, here: tuple, held: Decoded, back: Callable[[Array], Array] = lambda part: part
    ) -> None:
        shape = held.x.shape
        for name in ("x", "step", "sure", "slack"):
            getattr(out, name)[here] = back(np.broadcast_to(getattr(held, name), shape))


@dataclass
class Wrapped:
    inner: Rule
    every: int

    @property
    def keep(self) -> int:
        return self.inner.keep


@dataclass
class Rotated(Wrapped):
    """The inner rule of x R, rotated back: a number is sure where all of its token are. matrix: R by the width, float64."""

    matrix: Callable[[int], Array]

    def decode(self, x: Array, dtype: torch.dtype) -> Decoded:
        matrix = self.matrix(x.shape[3])
        held = self.inner.decode(x @ matrix, torch.float32, self._error(x))
        aside = np.abs(matrix.T)
        return Decoded(
            held.x @ matrix.T,
            (held.step * (held.sure == 0)) @ aside,
            np.broadcast_to(held.sure.all(-1, keepdims=True), x.shape),
            held.slack @ aside + self._error(held.x),
        )

    def _error(self, x: Array) -> Array:
        """Of the additions in float32: a rounding for each of log₂ width ≤ 6 rounds, and two more."""
        return 2.0**-21 * np.linalg.norm(x, axis=-1, keepdims=True)


def hadamard_matrix(width: int) -> Array:
    """Sylvester's, normalised; block-diagonal of the largest powers of two, where the width is none."""
    matrix, start = np.zeros((width, width)), 0
    while start < width:
        part = np.ones((1, 1))
        while 2 * len(part) <= width - start:
            part = np.block([[part, part], [part, -part]])
        matrix[start : start + len(part), start : start + len(part)] = part / len(part) ** 0.5
        start += len(part)
    return matrix


def random_rotation(kind: str, seed: int) -> Callable[[int], Array]:
    """What the seed draws: random signs before Hadamard's matrix, or Q of a normal matrix whose R has a positive diagonal."""

    def matrix(width: int) -> Array:
        drawn = torch.Generator().manual_seed(seed)
        if kind == "hadamard":
            return (2.0 * torch.randint(0, 2, (width,), generator=drawn).numpy() - 1)[:, None] * hadamard_matrix(width)
        normal = torch.randn(width, width, generator=drawn, dtype=torch.float64).numpy()
        q, r = np.linalg.qr(normal)
        return q * np.sign(np.diagonal(r))

    return matrix


@dataclass
class Clipped(Wrapped):
    """The inner rule of numbers between c·min and c·max of its groups, which have the dtype of what came."""

    c: float

    def decode(self, x: Array, dtype: torch.dtype) -> Decoded:
        y, error = x.copy(), np.zeros(x.shape)
        axis = 3 if self.inner.axis == "token" else 2
        for here in self.inner.groups(x.shape):
            part = x[here]
            ends = [self.c * end(axis=axis, keepdims=True) for end in (part.min, part.max)]
            (low, low_off), (high, high_off) = (self._rounded(end, dtype) for end in ends)
            y[here] = np.clip(part, low, high)
            error[here] = (part <= ends[0]) * low_off + (part >= ends[1]) * high_off
        return self.inner.decode(y, dtype, error)

    def _rounded(self, end: Array, dtype: torch.dtype) -> tuple[Array, Array]:
        """In the dtype, and by how much a product in float32 may come to another."""
        below, middle, above = (
            torch.from_numpy(end * (1 + d)).to(dtype).double().numpy() for d in (-(2.0**-24), 0.0, 2.0**-24)
        )
        return middle, np.abs(above - below)


@dataclass
class Centred(Wrapped):
    """The inner rule of x − m, and m on top: the float16 mean of a channel over a block."""

    def decode(self, x: Array, dtype: torch.dtype) -> Decoded:
        blocks = x.reshape(*x.shape[:2], -1, self.every, x.shape[3])
        mean = blocks.mean(3, keepdims=True)
        error = 2.0**-22 * np.abs(blocks).mean(3, keepdims=True)  # of a mean in float32
        low, stored, high = (
            np.broadcast_to(float16(m), blocks.shape).reshape(x.shape) for m in (mean - error, mean, mean + error)
        )
        y, same = x - stored, low == high
        held = self.inner.decode(y, torch.float32, 2.0**-24 * np.abs(y) + high - low)
        slack = held.slack + FLOAT32 * (np.abs(held.x) + np.abs(stored))
        return Decoded(held.x + stored, held.step + high - low, (held.sure > 0) & same, slack)


@dataclass
class Sparse(Wrapped):
    """The largest |x| of a head and block in float16, and the inner rule of the rest, with the lower median of the channel
    in the block, or of the token, in their place. Where the last of the largest has an equal, either may be kept."""

    fraction: float

    def decode(self, x: Array, dtype: torch.dtype) -> Decoded:
        batch, heads, _, channels = x.shape
        blocks = x.reshape(batch, heads, -1, self.every, channels)
        size = np.abs(blocks).reshape(batch, heads, -1, self.every * channels)
        count = max(1, round(self.fraction * size.shape[-1]))
        ordered = np.sort(size, axis=-1)
        least, next_one = ordered[..., -count, None, None], ordered[..., -count - 1, None, None]
        kept = np.abs(blocks) >= least
        line = 3 if self.every > 1 else 4
        median = np.take(np.sort(blocks, axis=line), [(blocks.shape[line] - 1) // 2], axis=line)
        held = self.inner.decode(np.where(kept, median, blocks).reshape(x.shape), torch.float32)
        kept, clean, most = (
            np.broadcast_to(part, blocks.shape).reshape(x.shape)
            for part in (kept, least > next_one, ordered[..., -1, None, None])
        )
        return Decoded(
            np.where(kept, float16(x), held.x),
            np.where(clean, held.step, held.step + 2 * most),
            (kept | (held.sure > 0)) & clean,
            np.where(kept, 0.0, held.slack),
        )


AnyRule = Rule | Rotated | Clipped | Centred | Sparse


def packed(rule: AnyRule, tokens: int, sinks: int) -> int:
    return max(0, (tokens - sinks - rule.keep) // rule.every * rule.every)


@dataclass
class Case:
    """spec: without rules for tokens. key, value: what the oracle says of each side."""

    spec: str
    key: AnyRule
    value: AnyRule


def _affine_case(
    rng: np.random.Generator, family: str, widths: list[int], codecs: Callable[[int], Codec], more: str = ""
) -> Case:
    sides, items = [], []
    group = rng.choice(["8", "16", "32", "all"])
    for side in ("key", "value"):
        bits, axis = int(rng.choice(widths)), str(rng.choice(["token", "channel"])) if group != "all" else "token"
        every = int(group) if axis == "channel" else 1
        sides.append(Rule(codecs(bits), axis, group if group == "all" else int(group), every=every))
        items += [*([f"{side}_bits={bits}"] if len(widths) > 1 else []), f"{side}_axis={axis}"]
    return Case(f"{family}:{','.join(items)},group_size={group}{more}", *sides)


def _asymmetric(rng: np.random.Generator) -> Case:
    zero = rng.choice(["float", "integer"])
    return _affine_case(
        rng, "asymmetric", [1, 2, 3, 4, 8], float_zero if zero == "float" else integer_zero, f",zero={zero}"
    )


def _kivi(rng: np.random.Generator) -> Case:
    group, bits, other = (
        int(rng.choice([8, 16, 32])),
        int(rng.choice([1, 2, 3, 4, 8])),
        int(rng.choice([1, 2, 3, 4, 8])),
    )
    recent = group * int(rng.integers(1, 3))
    key, value = (
        Rule(float_zero(bits), "channel", group, every=recent),
        Rule(float_zero(other), "token", group, keep=recent),
    )
    return Case(f"kivi:key_bits={bits},value_bits={other},group_size={group},residual_length={recent}", key, value)


def _kcvt(rng: np.random.Generator) -> Case:
    block, bits, other = int(rng.choice([8, 16])), int(rng.choice([1, 2, 3, 4, 8])), int(rng.choice([1, 2, 3, 4, 8]))
    key, value = (
        Rule(float_zero(bits), "channel", block, every=block),
        Rule(float_zero(other), "token", "all", every=block),
    )
    return Case(f"kcvt:key_bits={bits},value_bits={other},block={block}", key, value)


def _nf4(rng: np.random.Generator) -> Case:
    asymmetric = bool(rng.integers(2))
    return _affine_case(rng, "nf4", [4], lambda bits: nf4(asymmetric), f",asymmetric={str(asymmetric).lower()}")


def _fp8(rng: np.random.Generator) -> Case:
    format, scale, block = (
        rng.choice(["e4m3", "e5m2"]),
        rng.choice(["none", "token", "head", "tensor"]),
        int(rng.choice([1, 4, 16])),
    )
    if scale in ("head", "tensor"):
        rule, more = Rule(fp8(format, True), scale, block, every=block), f",block={block}"
    else:
        rule, more = Rule(fp8(format, scale == "token"), "token", "all"), ""
    return Case(f"fp8:format={format},scale={scale}{more}", rule, rule)


def _mxfp4(rng: np.random.Generator) -> Case:
    rule, group = str(rng.choice(["floor", "even", "rceil"])), int(rng.choice([16, 32]))
    side = Rule(mxfp4(rule), "token", group)
    return Case(f"mxfp4:rule={rule},group_size={group}", side, side)


def _block_format(format: str) -> Callable[[np.random.Generator], Case]:
    side = Rule(ggml(format), "token", 32)
    return lambda rng: Case(format, side, side)


def _iq4_nl(rng: np.random.Generator) -> Case:
    rule = str(rng.choice(["nearest", "first"]))
    side = Rule(iq4_nl(rule), "token", 32)
    return Case(f"iq4_nl:codes={rule}", side, side)


def _inner(rng: np.random.Generator) -> tuple[str, Rule]:
    """What stands inside a wrapper."""
    name, codecs = (("symmetric", symmetric), ("asymmetric", float_zero))[rng.integers(2)]
    bits, axis = int(rng.choice([2, 3, 4, 8])), str(rng.choice(["token", "channel"]))
    group = int(rng.choice([8, 16])) if axis == "channel" else str(rng.choice(["16", "32", "all"]))
    rule = Rule(codecs(bits), axis, group, every=int(group) if axis == "channel" else 1)
    return f"{name}:bits={bits},axis={axis},group_size={group}", rule


def _hadamard(rng: np.random.Generator) -> Case:
    (spec, inner), seed, drawn = _inner(rng), int(rng.integers(100)), bool(rng.integers(2))
    side = Rotated(inner, inner.every, random_rotation("hadamard", seed) if drawn else hadamard_matrix)
    return Case(f"hadamard({spec}):{f'signs=random,seed={seed}' if drawn else 'signs=none'}", side, side)


def _turboquant(rng: np.random.Generator) -> Case:
    kind, corrected, seed = str(rng.choice(["orthogonal", "hadamard"])), bool(rng.integers(2)), int(rng.integers(100))
    bits, other = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    key, value = (
        Rotated(Rule(lloyd_max(width, corrected), "token", "all"), 1, random_rotation(kind, seed))
        for width in (bits, other)
    )
    more = f"rotation={kind},correct_norm={str(corrected).lower()},seed={seed}"
    return Case(f"turboquant:key_bits={bits},value_bits={other},{more}", key, value)


def _turboquant_vllm(rng: np.random.Generator) -> Case:
    corrected, bits, other = bool(rng.integers(2)), int(rng.choice([3, 4, 8])), int(rng.choice([3, 4]))
    rotated = Rotated(Rule(lloyd_max(min(bits, 4), corrected), "token", "all"), 1, hadamard_matrix)
    return Case(
        f"turboquant-vllm:key_bits={bits},value_bits={other},correct_norm={str(corrected).lower()}",
        Rule(fp8("e4m3", False), "token", "all") if bits == 8 else rotated,
        Rule(float_zero(other), "token", "all"),
    )


def _clip(rng: np.random.Generator) -> Case:
    (spec, inner), c = _inner(rng), float(rng.choice([0.5, 0.8, 0.92, 1.0]))
    side = Clipped(inner, inner.every, c)
    return Case(f"clip({spec}):c={c}", side, side)


def _centred(rng: np.random.Generator) -> Case:
    (spec, inner), block = _inner(rng), int(rng.choice([16, 32]))
    side = Centred(inner, block)
    return Case(f"centred({spec}):sides=both,block={block}", side, side)


def _sparse(rng: np.random.Generator) -> Case:
    (spec, inner), fraction = _inner(rng), float(rng.choice([0.01, 0.05, 0.2]))
    side = Sparse(inner, max(int(rng.choice([1, 16])), inner.every), fraction)
    return Case(f"sparse({spec}):block={side.every},fraction={fraction}", side, side)


NVFP4, EXACT = Rule(nvfp4(), "token", 16), Rule(exact(), "token", "all")

ORACLES: dict[str, tuple[int, Callable[[np.random.Generator], Case]]] = {
    "exact": (300, lambda rng: Case("exact", EXACT, EXACT)),
    "symmetric": (1500, lambda rng: _affine_case(rng, "symmetric", [2, 3, 4, 8], symmetric)),
    "asymmetric": (1600, _asymmetric),
    "kivi": (1000, _kivi),
    "kcvt": (400, _kcvt),
    "fp8": (800, _fp8),
    "nf4": (600, _nf4),
    "mxfp4": (500, _mxfp4),
    "nvfp4": (300, lambda rng: Case("nvfp4", NVFP4, NVFP4)),
    **{format: (140, _block_format(format)) for format in ("q8_0", "q6_0", "q4_0", "q4_1", "q5_0", "q5_1")},
    "iq4_nl": (140, _iq4_nl),
    "turboquant-vllm": (140, _turboquant_vllm),
    "hadamard": (420, _hadamard),
    "turboquant": (140, _turboquant),
    "clip": (140, _clip),
    "centred": (140, _centred),
    "sparse": (140, _sparse),
}
LEAST_SURE = {
    "hadamard": 0.7
}  # of the packed numbers; a rotated one is sure where all of its token are. 0.95 of the others
IN_PART = ("hadamard", "turboquant", "clip", "centred", "sparse")  # around what has an oracle; of whole bits
OTHERS = [family.name for family in FAMILIES if family.name not in ORACLES or family.name in IN_PART]
OTHER_CASES = 60
WIDTHS = ("symmetric", "asymmetric", "nf4", "kivi", *IN_PART, "turboquant-vllm")  # that take other widths than 32


@pytest.fixture(autouse=True)
def unchecked_annotations():
    """They are checked in the other tests, and would be nine tenths of the time here."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def tokens_of(rng: np.random.Generator, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    x = rng.standard_normal(shape)
    if kind == "outliers":
        x[..., rng.integers(shape[3])] += 30 * rng.standard_normal()
        x[:, :, rng.integers(shape[2])] *= 20
    elif kind == "constants":
        x = 0 * x + 10 * rng.standard_normal((1, 1, 1, int(rng.choice([1, shape[3]]))))
    elif kind == "huge":
        x *= 10.0 ** (rng.uniform(3, 4) if dtype == torch.float16 else rng.uniform(3, 30))
    elif kind == "tiny":
        x *= 10.0 ** -rng.uniform(4, 30)
    elif kind == "zeros":
        x *= rng.random(shape) < rng.choice([0.0, 0.1])
    elif kind == "mixed":
        x *= 10.0 ** rng.uniform(-6, 3, (*shape[:3], 1))
    limit = torch.finfo(dtype).max
    return torch.from_numpy(x).clamp(-limit, limit).to(dtype)


def chunks_of(rng: np.random.Generator, x: torch.Tensor) -> list[torch.Tensor]:
    cuts = sorted({int(cut) for cut in rng.integers(1, x.shape[2] + 1, size=rng.integers(0, 4))} - {x.shape[2]})
    return list(x.tensor_split(cuts, dim=2))


def stored(side, chunks: list[torch.Tensor]) -> torch.Tensor:
    store = TokenStore(side)
    for chunk in chunks:
        store.append(chunk)
    read = store.read()
    assert read is not None
    return read


def wrong(rule: AnyRule, sinks: int, x: torch.Tensor, read: torch.Tensor) -> tuple[str, float]:
    """What is wrong with what was read, or "", and which share of the packed numbers the oracle was sure of."""
    count = packed(rule, x.shape[2], sinks)
    begin, end = min(sinks, x.shape[2]), min(sinks, x.shape[2]) + count
    if (read.shape, read.dtype) != (x.shape, x.dtype):
        return f"{tuple(read.shape)} {read.dtype}", 0.0
    if not (torch.equal(read[:, :, :begin], x[:, :, :begin]) and torch.equal(read[:, :, end:], x[:, :, end:])):
        return "exact tokens are others", 0.0
    if not count:
        return "", 1.0
    info = torch.finfo(x.dtype)
    with np.errstate(over="ignore"):
        held = rule.decode(x[:, :, begin:end].double().numpy(), x.dtype)
    off = np.abs(read[:, :, begin:end].double().numpy() - np.clip(held.x, -info.max, info.max))
    allowed = held.slack + 0.51 * info.eps * np.abs(held.x) + info.smallest_normal * info.eps
    allowed = np.where(held.sure, allowed, allowed * 2 + held.step)
    bad = ~(off <= allowed)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        return (
            f"{bad.sum()} of {bad.size}: at {at} off by {off[at]:.3g}, allowed {allowed[at]:.3g}, sure {held.sure[at]}",
            0.0,
        )
    return "", float(held.sure.mean())


@pytest.mark.parametrize("family", ORACLES)
def test_what_is_stored_is_what_the_formula_says(family):
    count, make = ORACLES[family]
    rng = np.random.default_rng(list(family.encode()))
    ran, failed, sure = 0, [], []
    for i in range(count):
        case, dtype, kind = make(rng), DTYPES[i % 3], KINDS[i % len(KINDS)]
        channels = 32 if family not in WIDTHS else int(rng.choice([32, 48, 64]))
        if family == "kivi" and isinstance(case.value, Rule) and channels % int(case.value.group):
            channels = 32
        shape = (int(rng.integers(1, 4)), int(rng.integers(1, 3)), int(rng.integers(1, 50)), channels)
        sinks = int(rng.choice([0, 0, 3]))
        side, rule = (("key", case.key), ("value", case.value))[i % 2]
        x = tokens_of(rng, kind, shape, dtype)
        scheme = parse_scheme(f"{case.spec}{',' if ':' in case.spec else ':'}sink_tokens={sinks}")
        what, share = wrong(rule, sinks, x, stored(scheme.sides[side], chunks_of(rng, x)))
        if what:
            failed.append(f"case {i}: {scheme.name} {side}, {shape} {dtype} {kind}: {what}")
        elif kind == "normal" and dtype == torch.float32:
            sure.append(share)
        ran += 1
    assert failed == []
    assert ran == count
    assert np.mean(sure) > LEAST_SURE.get(family, 0.95)  # else the oracle says nothing


def small_specs(family: str, rng: np.random.Generator) -> str:
    """A setting of the family, with groups and blocks short enough that they fill."""
    nested = [spec for spec in NESTED if spec.startswith(f"{family}(")]
    specs = [spec for spec in PLAIN if spec.partition(":")[0].partition("(")[0] == family] + nested
    lengths = {"block": 16, "tile": 16, "residual_length": 16, "group_size": 16}
    fields = own_fields(next(one for one in FAMILIES if one.name == family))
    while True:
        spec = str(rng.choice(specs))
        tail = spec.rpartition(")")[2] if ")" in spec else spec
        items = [f"{name}={size}" for name, size in lengths.items() if name in fields and f"{name}=" not in tail]
        for some in (items, items[:1], []):
            longer = spec + (("," if ":" in tail else ":") + ",".join(some) if some else "")
            try:
                sides = parse_scheme(longer).sides.values()
            except UserError:
                continue
            if all(side.quantizer.rows_independent is True for side in sides):  # hqq's package stops all rows at once
                return longer
            break


@pytest.mark.parametrize("family", OTHERS)
def test_chunks_and_batches_make_no_difference(family):
    rng = np.random.default_rng(list(family.encode()))
    ran, failed, compared = 0, [], {"chunks": 0, "rows": 0}
    for i in range(OTHER_CASES):
        spec, dtype, kind = small_specs(family, rng), DTYPES[i % 3], KINDS[i % len(KINDS)]
        side = parse_scheme(spec).sides[("key", "value")[i % 2]]
        exact = side.keep_recent + side.sink_tokens
        tokens = exact + max(side.first_tokens, side.flush_every) * int(rng.integers(1, 3)) + int(rng.integers(0, 7))
        shape = (int(rng.integers(2, 4)), int(rng.integers(1, 3)), tokens, 64)
        x = tokens_of(rng, kind, shape, dtype)
        whole = stored(side, [x])
        what = f"case {i}: {spec}, {shape} {dtype} {kind}"
        if side.quantizer.appends is True:
            compared["chunks"] += 1
            if not torch.equal(stored(side, chunks_of(rng, x)), whole):
                failed.append(f"{what}: chunks")
        if side.quantizer.rows_independent is True:
            compared["rows"] += 1
            row = int(rng.integers(shape[0]))
            if not torch.equal(stored(side, [x[row : row + 1]]), whole[row : row + 1]):
                failed.append(f"{what}: a row alone")
        if not whole.isfinite().all():
            failed.append(f"{what}: not finite")
        ran += 1
    assert failed == []
    assert ran == OTHER_CASES
    assert min(compared.values()) > OTHER_CASES / 2


def test_there_are_10_000_cases():
    assert sum(count for count, _ in ORACLES.values()) + OTHER_CASES * len(OTHERS) >= 10_000
