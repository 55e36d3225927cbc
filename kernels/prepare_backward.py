"""Gradients of a cell's prepared inputs; see `prepare`. relu(x) is never a map of its own.

Shape suffixes: B batch, H height, W width, I input and O output channels; maps are NHWC.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import all_registers, blocks_of
from .prepare import check_prepared
from .stage_weights import MAX_GROUPS
from .taps import load_pixel, product


@triton.jit
def _dz(d, xhat, stats, sums, p, alive, o, pixels, C: tl.constexpr, ACC: tl.constexpr):
    """[BP, BO] of dz = rstd * (dy - S1 / P - xhat * S2 / P) for rows p of the prepared map."""
    mask = alive[:, None] & (o < C)[None, :]
    at = p.to(tl.int64)[:, None] * C + o[None, :]
    dy = tl.load(d + at, mask=mask, other=0.0).to(ACC)
    x = tl.load(xhat + at, mask=mask, other=0.0).to(ACC)
    rstd = tl.load(stats + C + o, mask=o < C, other=0.0).to(ACC)
    s1 = tl.load(sums + o, mask=o < C, other=0.0).to(ACC) / pixels
    s2 = tl.load(sums + C + o, mask=o < C, other=0.0).to(ACC) / pixels
    return tl.where(mask, (dy - s1[None, :] - x * s2[None, :]) * rstd[None, :], 0.0)


@triton.jit
def prepare_reduce_kernel(
    d, xhat, partial, pixels, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, REPEAT: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Partials (sum of dy, sum of dy * xhat). Grid: groups of REPEAT tiles x blocks of channels."""
    t = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    first = tl.zeros((BC,), ACC)
    second = tl.zeros((BC,), ACC)
    for i in range(REPEAT):
        p = (tl.cast(t, tl.int64) * REPEAT + i) * BP + tl.arange(0, BP)
        mask = (p < pixels)[:, None] & (c < C)[None, :]
        at = p[:, None] * C + c[None, :]
        dy = tl.load(d + at, mask=mask, other=0.0).to(ACC)
        first += tl.sum(dy, 0)
        second += tl.sum(dy * tl.load(xhat + at, mask=mask, other=0.0).to(ACC), 0)
    tl.store(partial + t * (2 * C) + c, first, mask=c < C)
    tl.store(partial + t * (2 * C) + C + c, second, mask=c < C)


@triton.jit
def prepare_sum_kernel(partial, total, count, size, BLOCK: tl.constexpr, BT: tl.constexpr, ACC: tl.constexpr):
    """Sum of `count` rows of `size` numbers in their order. Grid: blocks of numbers."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = tl.zeros((BLOCK,), ACC)
    for first in range(0, count, BT):
        t = first + tl.arange(0, BT)
        mask = (t < count)[:, None] & (at < size)[None, :]
        found += tl.sum(tl.load(partial + t.to(tl.int64)[:, None] * size + at[None, :], mask=mask, other=0.0), 0)
    tl.store(total + at, found.to(total.dtype.element_ty), mask=at < size)


@triton.jit
def prepare_input_kernel(
    d, xhat, stats, sums, x, first, second, dx, pixels, in_pixels, height, width,
    C_IN: tl.constexpr, C: tl.constexpr, REDUCE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """dx. height, width: of x. Grid: tiles of x's pixels x blocks of its channels."""
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    alive = p < in_pixels
    total = tl.zeros((BP, BN), ACC)
    HALF: tl.constexpr = C // 2 if REDUCE else C
    own = p
    read = alive
    odd = alive & False
    if REDUCE:
        n = p // (height * width)
        h = p % (height * width) // width
        w = p % width
        odd = h % 2 == 1
        read = alive & (h % 2 == w % 2)
        own = (n * (height // 2) + h // 2) * (width // 2) + w // 2
    for block in range(0, C, BC):
        o = block + tl.arange(0, BC)
        dz = _dz(d, xhat, stats, sums, own, read, o, pixels, C, ACC)
        inside = (c < C_IN)[None, :]
        weight = tl.load(first + o[:, None] * C_IN + c[None, :], mask=(o < HALF)[:, None] & inside, other=0.0)
        if REDUCE:
            # Even pixels fed the first half of the outputs, odd ones the second.
            dz = tl.where(odd[:, None] == (o >= HALF)[None, :], dz, 0.0)
            upper = ((o >= HALF) & (o < C))[:, None] & inside
            weight += tl.load(second + (o - HALF)[:, None] * C_IN + c[None, :], mask=upper, other=0.0)
        total = product(dz, weight, total, DOT)
    mask = alive[:, None] & (c < C_IN)[None, :]
    at = p.to(tl.int64)[:, None] * C_IN + c[None, :]
    positive = tl.load(x + at, mask=mask, other=0.0) > 0
    tl.store(dx + at, tl.where(positive, total, 0.0).to(dx.dtype.element_ty), mask=mask)


@triton.jit
def prepare_weights_kernel(
    d, xhat, stats, sums, x, partial, pixels, repeat, height, width,
    C_IN: tl.constexpr, C: tl.constexpr, REDUCE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Partials [group, O, I] of the weights. height, width: of the output. Grid: groups x blocks of (out, in)."""
    IN_BLOCKS: tl.constexpr = (C_IN + BC - 1) // BC
    group = tl.program_id(0)
    o = (tl.program_id(1) // IN_BLOCKS) * BO + tl.arange(0, BO)
    c = (tl.program_id(1) % IN_BLOCKS) * BC + tl.arange(0, BC)
    total = tl.zeros((BO, BC), ACC)
    SIZE: tl.constexpr = 2 if REDUCE else 1
    for i in range(repeat):
        p = (group * repeat + i) * BP + tl.arange(0, BP)
        alive = p < pixels
        n = p // (height * width)
        h = p % (height * width) // width * SIZE
        w = p % width * SIZE
        dz = _dz(d, xhat, stats, sums, p, alive, o, pixels, C, ACC)
        for odd in tl.static_range(SIZE):
            a = load_pixel(x, C_IN, n, h + odd, w + odd, alive, c, height * SIZE, width * SIZE, C_IN, ACC)
            fed = dz
            if REDUCE:
                fed = tl.where(((o >= C // 2) == (odd == 1))[None, :], dz, 0.0)
            total = product(tl.trans(fed), tl.maximum(a, 0.0), total, DOT)
    place = partial + (tl.cast(group, tl.int64) * C + o[:, None]) * C_IN + c[None, :]
    tl.store(place, total, mask=(o < C)[:, None] & (c < C_IN)[None, :])


def prepare_backward(
    d_BHWO: Tensor, xhat_BHWO: Tensor, x_BHWI: Tensor, first_OI: Tensor, second_OI: Tensor | None, stats_2O: Tensor,
    *, need_x: bool, need_w: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dx [B, H, W, I], dw [O, I] of both halves together); an empty tensor where not needed.

    Args:
        d_BHWO: gradient of the prepared map xhat, whose statistics are stats_2O.

    Raises:
        KernelError: for a tensor of a wrong dtype, device, shape or layout.
    """
    for name, maps in (("d_BHWO", d_BHWO), ("xhat_BHWO", xhat_BHWO)):
        check_prepared(x_BHWI, first_OI, second_OI, maps, stats_2O, name)
    batch, height, width, c = d_BHWO.shape
    in_channels, pixels, reduce = x_BHWI.shape[-1], batch * height * width, second_OI is not None
    interpreted = x_BHWI.device.type == "cpu"
    r = blocks_of("reduce", x_BHWI.dtype, c, interpreted)
    tiles = triton.cdiv(pixels, r.pixels * r.repeat)
    partial = x_BHWI.new_empty(tiles, 2, c, dtype=r.wide)
    sums = x_BHWI.new_empty(2, c, dtype=r.wide)
    prepare_reduce_kernel[(tiles, triton.cdiv(c, r.channels))](
        d_BHWO, xhat_BHWO, partial, pixels, C=c, BP=r.pixels, BC=r.channels, REPEAT=r.repeat, ACC=r.acc,
        num_warps=r.num_warps,
    )  # fmt: skip
    _sum(partial, sums, tiles, r.acc)
    given = (d_BHWO, xhat_BHWO, stats_2O, sums, x_BHWI)
    dx = torch.empty_like(x_BHWI) if need_x else x_BHWI.new_empty(0)
    b = blocks_of("point", x_BHWI.dtype, c, interpreted)
    if need_x:
        in_pixels = x_BHWI.numel() // in_channels
        prepare_input_kernel[(triton.cdiv(in_pixels, b.pixels), triton.cdiv(in_channels, b.outputs))](
            *given, first_OI, first_OI if second_OI is None else second_OI, dx, pixels, in_pixels, x_BHWI.shape[1],
            x_BHWI.shape[2], C_IN=in_channels, C=c, REDUCE=reduce, BP=b.pixels, BC=b.channels, BN=b.outputs,
            ACC=b.acc, DOT=b.dot, num_warps=b.num_warps, **all_registers(),
        )  # fmt: skip
    dw = x_BHWI.new_empty((c, in_channels) if need_w else 0, dtype=b.wide)
    if need_w:
        w = blocks_of("weights", x_BHWI.dtype, c, interpreted)
        repeat = triton.cdiv(triton.cdiv(pixels, w.pixels), MAX_GROUPS)
        groups = triton.cdiv(triton.cdiv(pixels, w.pixels), repeat)
        partial = x_BHWI.new_empty(groups, c, in_channels, dtype=b.wide)
        prepare_weights_kernel[(groups, triton.cdiv(c, w.outputs) * triton.cdiv(in_channels, w.channels))](
            *given, partial, pixels, repeat, height, width, C_IN=in_channels, C=c, REDUCE=reduce, BP=w.pixels,
            BC=w.channels, BO=w.outputs, ACC=w.acc, DOT=w.dot, num_warps=w.num_warps, **all_registers(),
        )  # fmt: skip
        _sum(partial, dw, groups, w.acc)
    return dx, dw


def _sum(partial: Tensor, total: Tensor, count: int, acc: tl.dtype) -> None:
    size = total.numel()
    block = min(256, triton.next_power_of_2(size))
    prepare_sum_kernel[(triton.cdiv(size, block),)](
        partial, total, count, size, BLOCK=block, BT=8, ACC=acc, num_warps=4
    )
