"""Masks of Dropblock-Identity, reproducible from a seed so that a recomputed cell meets the same mask.

DropBlock: Ghiasi, Lin and Le (2018), the formula as in torchvision.ops.drop_block2d, its normaliser over the
whole batch included. That it sits on stride-1 skip-connects follows P-DARTS' dropout on them; block side and
rate are ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .conv import bchw, bhwc

EPSILON = 1e-6


def block_side(height: int, width: int) -> int:
    """7 from a side of 28 on, 5 from 14 on, 3 below (ours); odd, and no larger than the map."""
    side = min(height, width)
    block = 7 if side >= 28 else 5 if side >= 14 else 3
    return min(block, side - 1 + side % 2)


def block_mask(x_BHWC: Tensor, rate: float, seed: int) -> Tensor:
    """0 on dropped blocks, elsewhere one value > 1 that keeps the mean: m * numel(m) / (sum(m) + 1e-6).

    The mask has the shape, dtype and device of x. About `rate` of the values is dropped, less where blocks
    overlap.
    """
    batch, height, width, channels = x_BHWC.shape
    block = block_side(height, width)
    inner_height, inner_width = height - block + 1, width - block + 1
    gamma = rate * height * width / (block**2 * inner_height * inner_width)
    seeds_BHWC = _uniform(x_BHWC, (batch, inner_height, inner_width, channels), seed) < gamma
    padded_BCHW = F.pad(bchw(seeds_BHWC.to(x_BHWC.dtype)), [block // 2] * 4)
    dropped_BCHW = F.max_pool2d(padded_BCHW, block, 1, block // 2)
    return _normalised(1 - bhwc(dropped_BCHW))


def value_mask(x_BHWC: Tensor, rate: float, seed: int) -> Tensor:
    """Dropout: each value dropped on its own with probability `rate`, the others divided by 1 - rate."""
    kept = _uniform(x_BHWC, tuple(x_BHWC.shape), seed) >= rate
    return kept.to(x_BHWC.dtype).div_(1 - rate)


def _uniform(like: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.rand(shape, generator=generator, device=like.device)


def _normalised(mask_BHWC: Tensor) -> Tensor:
    return mask_BHWC.mul_(mask_BHWC.numel() / (mask_BHWC.sum() + EPSILON))
