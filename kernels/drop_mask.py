"""Masks of Dropblock-Identity for the skip-connects among a launch's branches.

Shape suffixes: as in `branches`. The twin `reference.dropblock` has the formulas, their sources and the hash; bits
and scales are the same in both.

A block is dropped by the seed in its upper left corner. A program walks down some rows of the map and remembers, as
bits of one integer, in which of the last rows a seed lay to the left, so that an element costs one hash for each
column of the block and not one for each of its pixels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .branches import Geometry
from .checks import check_rows
from .errors import KernelError
from .reference import dropblock
from .taps import CODE, GATE, SKIP, column

HASH_A, HASH_B = tl.constexpr(dropblock.HASH_A), tl.constexpr(dropblock.HASH_B)
EPSILON = tl.constexpr(dropblock.EPSILON)
# Rows of the map that a program writes, and elements of such a row (over samples, columns and channels).
ROWS, ELEMENTS, PARTIALS = 8, 512, 256


@triton.jit
def hashed(x):
    """lowbias32 of uint32 numbers."""
    x = (x ^ (x >> 16)) * HASH_A
    x = (x ^ (x >> 15)) * HASH_B
    return x ^ (x >> 16)


@triton.jit
def _key(clock, stream, gate):
    """`dropblock.mask_key` on the device."""
    seed = tl.load(clock)
    draw = tl.load(clock + 1)
    key = hashed(seed.to(tl.uint32))
    key = hashed(key ^ (seed >> 32).to(tl.uint32))
    key = hashed(key ^ draw.to(tl.uint32))
    key = hashed(key ^ (draw >> 32).to(tl.uint32))
    key = hashed(key ^ tl.cast(stream, tl.uint32))
    return hashed(key ^ gate.to(tl.uint32))


@triton.jit
def _uniform(element, key):
    return (hashed(element.to(tl.uint32) ^ key) >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def mask_kernel(
    rows, clock, stream, rate, drop, partial, batch, parts,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr, IS_BLOCK: tl.constexpr, ROWS: tl.constexpr,
    ELEMENTS: tl.constexpr,
):  # fmt: skip
    """Grid: parts of [B, W, C] x groups of rows of the map x branches. drop: uint8; partial: int32 counts."""
    part = tl.program_id(0)
    band = tl.program_id(1)
    j = tl.program_id(2)
    if column(rows, j, CODE) != SKIP:
        return
    key = _key(clock, stream, column(rows, j, GATE))
    rate64 = tl.load(rate).to(tl.float64)
    if IS_BLOCK:
        SEEDS: tl.constexpr = SIDE * SIDE * (H - SIDE + 1) * (W - SIDE + 1)
        limit = (rate64 * H * W / SEEDS).to(tl.float32)
    else:
        limit = rate64.to(tl.float32)
    k = part * ELEMENTS + tl.arange(0, ELEMENTS)
    n = k // (W * C)
    within = k % (W * C)
    w = within // C
    alive = n < batch
    first = band * ROWS
    base = n * (H * W * C) + within
    drop += tl.cast(j, tl.int64) * batch * (H * W * C)
    seen = tl.zeros((ELEMENTS,), tl.int32)
    kept = tl.zeros((ELEMENTS,), tl.int32)
    for step in range(ROWS + SIDE - 1):
        h = first + step - (SIDE - 1)
        here = base + h * (W * C)
        fell = tl.zeros((ELEMENTS,), tl.int1)
        for back in tl.static_range(SIDE):
            seed = w - back
            able = (seed >= 0) & (seed < W - SIDE + 1) & (h >= 0) & (h < H - SIDE + 1)
            fell = fell | (able & (_uniform(here - back * C, key) < limit))
        seen = ((seen << 1) | fell.to(tl.int32)) & ((1 << SIDE) - 1)
        mine = alive & (h >= first) & (h < H)
        passes = seen == 0
        tl.store(drop + here, passes.to(tl.uint8), mask=mine)
        kept += (mine & passes).to(tl.int32)
    tl.store(partial + (j * tl.num_programs(1) + band) * parts + part, tl.sum(kept, 0))


@triton.jit
def scale_kernel(
    rows, rate, partial, scale, elements, count, IS_BLOCK: tl.constexpr, PARTIALS: tl.constexpr
):  # fmt: skip
    """Grid: branches. The number that keeps the mean, 1 for branches without a mask."""
    j = tl.program_id(0)
    if column(rows, j, CODE) != SKIP:
        tl.store(scale + j, 1.0)
        return
    if IS_BLOCK:
        kept = tl.zeros((PARTIALS,), tl.int64)
        for first in range(0, count, PARTIALS):
            place = first + tl.arange(0, PARTIALS)
            kept += tl.load(partial + j * count + place, mask=place < count, other=0).to(tl.int64)
        tl.store(scale + j, tl.cast(elements, tl.float32) / (tl.sum(kept, 0).to(tl.float32) + EPSILON))
    else:
        tl.store(scale + j, 1.0 / (1.0 - tl.load(rate).to(tl.float64)).to(tl.float32))


def _check(branches_J8: Tensor, clock: Tensor, rate: Tensor, geometry: Geometry, kind: str) -> None:
    device = branches_J8.device
    check_rows(branches_J8, branches_J8)
    if clock.dtype != torch.int64 or clock.shape != (2,) or not clock.is_contiguous():
        raise KernelError("clock", got=f"{clock.dtype} {list(clock.shape)}", allowed="int64 [2], (seed, draw)")
    if rate.dtype != torch.float32 or rate.dim():
        raise KernelError("rate", got=f"{rate.dtype} {list(rate.shape)}", allowed="float32 []")
    for name, tensor in (("clock", clock), ("rate", rate)):
        if tensor.device != device:
            raise KernelError(name, got=f"on {tensor.device}", allowed=f"the branches' device, {device}")
    if kind not in ("dropblock", "dropout"):
        raise KernelError("kind", got=kind, allowed='"dropblock" or "dropout"')
    elements = geometry.pixels * geometry.channels
    if elements >= 1 << 31:
        raise KernelError("geometry", got=f"{elements} elements in a map", allowed="fewer than 2**31")


def drop_mask(
    branches_J8: Tensor, clock: Tensor, stream: int, rate: Tensor, geometry: Geometry, *, kind: str
) -> tuple[Tensor, Tensor]:
    """(drop_JBHWC uint8, drop_scale_J fp32) of the skip-connects; planes of other branches are not written.

    Args:
        clock: (seed, draw), int64 [2] on the device.
        stream: number of the cell.
        rate: fp32 [], on the device.
        kind: "dropblock" or "dropout".

    Raises:
        KernelError: for a tensor of a wrong dtype, device or shape, and an unknown kind.
    """
    _check(branches_J8, clock, rate, geometry, kind)
    height, width, channels = geometry.out_height, geometry.out_width, geometry.channels
    num, is_block = branches_J8.shape[0], kind == "dropblock"
    drop = torch.empty(
        num, geometry.batch, height, width, channels, dtype=torch.uint8, device=branches_J8.device
    )  # fmt: skip
    parts, bands = triton.cdiv(geometry.batch * width * channels, ELEMENTS), triton.cdiv(height, ROWS)
    partial = torch.empty(num, bands, parts, dtype=torch.int32, device=branches_J8.device)
    scale = torch.empty(num, dtype=torch.float32, device=branches_J8.device)
    side = dropblock.block_side(height, width) if is_block else 1
    mask_kernel[(parts, bands, num)](
        branches_J8, clock, stream, rate, drop, partial, geometry.batch, parts, C=channels, H=height, W=width,
        SIDE=side, IS_BLOCK=is_block, ROWS=ROWS, ELEMENTS=ELEMENTS, num_warps=4,
    )  # fmt: skip
    scale_kernel[(num,)](
        branches_J8, rate, partial, scale, geometry.pixels * channels, bands * parts, IS_BLOCK=is_block,
        PARTIALS=PARTIALS, num_warps=4,
    )  # fmt: skip
    return drop, scale
