"""Masks of Dropblock-Identity, a function of counters alone so that a recomputed cell meets the same mask.

DropBlock: Ghiasi, Lin and Le (2018), the formula as in torchvision.ops.drop_block2d, its normaliser over the
whole batch included. That it sits on stride-1 skip-connects follows P-DARTS' dropout on them; block side and
rate are ours. The noise of an element is a 32-bit hash of its index and a key (Wellons' lowbias32): a mask needs
no more than that, and Philox would cost more than the convolutions on a CPU.

Shape suffixes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..branches import CODE, GATE, SKIP, Geometry
from .conv import bchw, bhwc
from .philox import MASK32

HASH_A, HASH_B = 0x7FEB352D, 0x846CA68B
EPSILON = 1e-6


def block_side(height: int, width: int) -> int:
    """7 from a side of 28 on, 5 from 14 on, 3 below (ours); odd, and no larger than the map."""
    side = min(height, width)
    block = 7 if side >= 28 else 5 if side >= 14 else 3
    return min(block, side - 1 + side % 2)


def _hash(x: int) -> int:
    """lowbias32 of a 32-bit integer."""
    x = (x ^ (x >> 16)) * HASH_A & MASK32
    x = (x ^ (x >> 15)) * HASH_B & MASK32
    return x ^ (x >> 16)


def mask_key(seed: int, draw: int, stream: int, gate: int) -> int:
    """32-bit key of one mask.

    Args:
        seed, draw: of the sample, 64-bit.
        stream: number of the cell.
        gate: flattened (edge, operation) number of the skip-connect.
    """
    key = 0
    for word in (seed & MASK32, (seed >> 32) & MASK32, draw & MASK32, (draw >> 32) & MASK32, stream, gate):
        key = _hash(key ^ word)
    return key


def block_mask(x_BHWC: Tensor, rate: float, key: int) -> Tensor:
    """0 on dropped blocks, elsewhere one value > 1 that keeps the mean: m * numel(m) / (sum(m) + 1e-6).

    The mask has the shape, dtype and device of x. About `rate` of the values is dropped, less where blocks
    overlap.
    """
    height, width = x_BHWC.shape[1:3]
    block = block_side(height, width)
    inner_height, inner_width = height - block + 1, width - block + 1
    gamma = rate * height * width / (block**2 * inner_height * inner_width)
    seeds_BHWC = _uniform(x_BHWC, key)[:, :inner_height, :inner_width] < gamma
    padded_BCHW = F.pad(bchw(seeds_BHWC.to(x_BHWC.dtype)), [block // 2] * 4)
    dropped_BCHW = F.max_pool2d(padded_BCHW, block, 1, block // 2)
    mask_BHWC = 1 - bhwc(dropped_BCHW)
    return mask_BHWC.mul_(mask_BHWC.numel() / (mask_BHWC.sum() + EPSILON))


def value_mask(x_BHWC: Tensor, rate: float, key: int) -> Tensor:
    """Dropout: each value dropped on its own with probability `rate`, the others divided by 1 - rate."""
    kept = _uniform(x_BHWC, key) >= rate
    return kept.to(x_BHWC.dtype).div_(1 - rate)


def _uniform(x_BHWC: Tensor, key: int) -> Tensor:
    """Numbers in [0, 1), fp32, of the shape of x: the hash of each element's index in [B, H, W, C]."""
    signed = [value - (1 << 32) if value >= 1 << 31 else value for value in (key, HASH_A, HASH_B)]
    x = torch.arange(x_BHWC.numel(), dtype=torch.int32, device=x_BHWC.device) ^ signed[0]
    # int32 products wrap as the unsigned ones do; a right shift must lose the copied signs.
    x ^= (x >> 16) & 0xFFFF
    x *= signed[1]
    x ^= (x >> 15) & 0x1FFFF
    x *= signed[2]
    x ^= (x >> 16) & 0xFFFF
    return ((x >> 8) & 0xFFFFFF).view(x_BHWC.shape).to(torch.float32).mul_(2.0**-24)


def drop_mask(
    branches_J8: Tensor, clock: Tensor, stream: int, rate: Tensor, geometry: Geometry, *, kind: str
) -> tuple[Tensor, Tensor]:
    """(drop_JBHWC uint8, drop_scale_J fp32) of the skip-connects among the branches; other planes are not written.

    A skip-connect passes x * drop * scale: the masks above, as bits and one number.
    """
    maps = (geometry.batch, geometry.out_height, geometry.out_width, geometry.channels)
    drop_JBHWC = torch.empty(len(branches_J8), *maps, dtype=torch.uint8, device=branches_J8.device)
    scale_J = torch.ones(len(branches_J8), device=branches_J8.device)
    seed, draw = clock.tolist()
    like = torch.empty(maps, device=branches_J8.device)
    for number, row in enumerate(branches_J8.tolist()):
        if row[CODE] != SKIP:
            continue
        make = block_mask if kind == "dropblock" else value_mask
        mask = make(like, rate.item(), mask_key(seed, draw, stream, row[GATE]))
        drop_JBHWC[number] = mask > 0
        scale_J[number] = mask.max()
    return drop_JBHWC, scale_J
