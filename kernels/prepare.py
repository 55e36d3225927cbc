"""A cell's inputs before its edges: ReLU, 1x1 convolution (or FactorizedReduce), BatchNorm without weights.

Shape suffixes: B batch, H height, W width, I input and O output channels; maps are NHWC.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .checks import MAP_DTYPES, check_like, check_wide
from .errors import KernelError
from .launch import all_registers, blocks_of
from .reference.batchnorm import EPSILON
from .taps import load_pixel, product


@triton.jit
def prepare_kernel(
    x, first, second, out, stats, partial, pixels, tiles, height, width,
    C_IN: tl.constexpr, C: tl.constexpr, REDUCE: tl.constexpr, NORMALISE: tl.constexpr, BP: tl.constexpr,
    BC: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """ReLU and 1x1 convolution; then partial statistics, or the normalised map where they are known.

    height, width: of the output. Grid: tiles of pixels x blocks of output channels.
    """
    tile = tl.program_id(0)
    p = tile * BP + tl.arange(0, BP)
    o = tl.program_id(1) * BN + tl.arange(0, BN)
    alive = p < pixels
    total = tl.zeros((BP, BN), ACC)
    HALF: tl.constexpr = C // 2 if REDUCE else C
    SIZE: tl.constexpr = 2 if REDUCE else 1
    n = p // (height * width)
    h = p % (height * width) // width * SIZE
    w = p % width * SIZE
    for odd in tl.static_range(SIZE):
        weights = second if odd else first
        row = o - odd * HALF
        for block in range(0, C_IN, BC):
            c = block + tl.arange(0, BC)
            value = load_pixel(x, C_IN, n, h + odd, w + odd, alive, c, height * SIZE, width * SIZE, C_IN, ACC)
            inside = (c < C_IN)[:, None] & ((row >= 0) & (row < HALF))[None, :]
            weight = tl.load(weights + row[None, :] * C_IN + c[:, None], mask=inside, other=0.0)
            total = product(tl.maximum(value, 0.0), weight, total, DOT)
    mask = alive[:, None] & (o < C)[None, :]
    if NORMALISE:
        mean = tl.load(stats + o, mask=o < C, other=0.0).to(ACC)
        rstd = tl.load(stats + C + o, mask=o < C, other=0.0).to(ACC)
        total = (total - mean[None, :]) * rstd[None, :]
    else:
        count = tl.minimum(pixels - tile * BP, BP).to(ACC)
        mean = tl.sum(tl.where(mask, total, 0.0), 0) / count
        distance = tl.where(mask, total - mean[None, :], 0.0)
        tl.store(partial + tile * (2 * C) + o, mean, mask=o < C)
        tl.store(partial + tile * (2 * C) + C + o, tl.sum(distance * distance, 0), mask=o < C)
    tl.store(out + p.to(tl.int64)[:, None] * C + o[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def prepare_stats_kernel(
    partial, stats, tiles, pixels, epsilon,
    C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Chan's combination of the tiles in a fixed order. Grid: blocks of channels."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = c < C
    total = tl.zeros((BC,), ACC)
    for first in range(0, tiles, BT):
        t = first + tl.arange(0, BT)
        count = tl.minimum(tl.maximum(pixels - t * BP, 0), BP).to(ACC)
        mask = (t < tiles)[:, None] & inside[None, :]
        total += tl.sum(tl.load(partial + t[:, None] * (2 * C) + c[None, :], mask=mask, other=0.0) * count[:, None], 0)
    mean = total / pixels
    squares = tl.zeros((BC,), ACC)
    for first in range(0, tiles, BT):
        t = first + tl.arange(0, BT)
        count = tl.minimum(tl.maximum(pixels - t * BP, 0), BP).to(ACC)
        mask = (t < tiles)[:, None] & inside[None, :]
        own = partial + t[:, None] * (2 * C) + c[None, :]
        distance = tl.load(own, mask=mask, other=0.0) - mean[None, :]
        m2 = tl.load(own + C, mask=mask, other=0.0)
        squares += tl.sum(tl.where(mask, m2 + distance * distance * count[:, None], 0.0), 0)
    tl.store(stats + c, mean, mask=inside)
    tl.store(stats + C + c, 1.0 / tl.sqrt(squares / pixels + epsilon), mask=inside)


@triton.jit
def normalise_kernel(z, stats, pixels, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr):
    """xhat over z. Grid: tiles of pixels x blocks of channels."""
    p = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (p < pixels)[:, None] & (c < C)[None, :]
    at = z + p[:, None] * C + c[None, :]
    mean = tl.load(stats + c, mask=c < C, other=0.0).to(ACC)
    rstd = tl.load(stats + C + c, mask=c < C, other=0.0).to(ACC)
    value = (tl.load(at, mask=mask, other=0.0).to(ACC) - mean[None, :]) * rstd[None, :]
    tl.store(at, value.to(z.dtype.element_ty), mask=mask)


def prepare_into(
    x_BHWI: Tensor, first_OI: Tensor, second_OI: Tensor | None, out_BHWO: Tensor, stats_2O: Tensor | None
) -> Tensor:
    """Statistics [2, O] of the map before BatchNorm, whose normalised form is written to `out`.

    Args:
        x_BHWI: a cell's output, contiguous.
        first_OI, second_OI: one 1x1 convolution, or the two halves of a FactorizedReduce.
        out_BHWO: contiguous; half of x's sides for a FactorizedReduce.
        stats_2O: statistics of an earlier pass; they are used and returned.

    Raises:
        KernelError: for a tensor of a wrong dtype, device, shape or layout.
    """
    check_prepared(x_BHWI, first_OI, second_OI, out_BHWO, stats_2O, "out_BHWO")
    batch, height, width, c = out_BHWO.shape
    b = blocks_of("point", x_BHWI.dtype, c, x_BHWI.device.type == "cpu")
    pixels = batch * height * width
    tiles = triton.cdiv(pixels, b.pixels)
    known = stats_2O is not None
    partial = x_BHWI.new_empty(0 if known else tiles, 2, c, dtype=b.wide)
    stats = x_BHWI.new_empty(2, c, dtype=b.wide) if stats_2O is None else stats_2O
    prepare_kernel[(tiles, triton.cdiv(c, b.outputs))](
        x_BHWI, first_OI, first_OI if second_OI is None else second_OI, out_BHWO, stats, partial, pixels, tiles,
        height, width, C_IN=x_BHWI.shape[-1], C=c, REDUCE=second_OI is not None, NORMALISE=known, BP=b.pixels,
        BC=b.channels, BN=b.outputs, ACC=b.acc, DOT=b.dot, num_warps=b.num_warps, **all_registers(),
    )  # fmt: skip
    if not known:
        prepare_stats_kernel[(triton.cdiv(c, b.channels),)](
            partial, stats, tiles, pixels, EPSILON, C=c, BP=b.pixels, BC=b.channels, BT=16, ACC=b.acc, num_warps=4
        )
        n = blocks_of("combine", x_BHWI.dtype, c, x_BHWI.device.type == "cpu")
        normalise_kernel[(triton.cdiv(pixels, n.pixels), triton.cdiv(c, n.channels))](
            out_BHWO, stats, pixels, C=c, BP=n.pixels, BC=n.channels, ACC=b.acc, num_warps=n.num_warps
        )
    return stats


def check_prepared(
    x_BHWI: Tensor, first_OI: Tensor, second_OI: Tensor | None, out_BHWO: Tensor, stats_2O: Tensor | None, name: str
) -> None:
    """A cell's output, its 1x1 convolution, the map `name` behind it, and that one's statistics."""
    if x_BHWI.dtype not in MAP_DTYPES or x_BHWI.dim() != 4 or not x_BHWI.is_contiguous():
        got = f"{x_BHWI.dtype}, shape {tuple(x_BHWI.shape)}, strides {x_BHWI.stride()}"
        raise KernelError("x_BHWI", got=got, allowed="contiguous [B, H, W, I] of float32, bfloat16 or float64")
    check_like(name, out_BHWO, x_BHWI)
    size = 1 if second_OI is None else 2
    batch, height, width, channels = x_BHWI.shape
    o = first_OI.shape[0] * size
    expected = (batch, height // size, width // size, o)
    if tuple(out_BHWO.shape) != expected or not out_BHWO.is_contiguous() or height % size or width % size:
        raise KernelError(name, got=f"shape {tuple(out_BHWO.shape)}", allowed=f"contiguous {expected}")
    if stats_2O is not None:
        if tuple(stats_2O.shape) != (2, o) or not stats_2O.is_contiguous():
            raise KernelError("stats_2O", got=f"shape {tuple(stats_2O.shape)}", allowed=f"contiguous (2, {o})")
        check_wide("stats_2O", stats_2O, x_BHWI)
    for side, weight in (("first_OI", first_OI), ("second_OI", second_OI)):
        if weight is not None and (weight.shape != (o // size, channels) or not weight.is_contiguous()):
            raise KernelError(side, got=f"shape {tuple(weight.shape)}", allowed=f"contiguous ({o // size}, {channels})")
        if weight is not None:
            check_wide(side, weight, x_BHWI)
