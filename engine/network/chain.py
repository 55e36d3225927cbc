"""Blocks of a derived chain as modules with affine BatchNorm and running statistics, under ordinary autograd.

Shape suffixes: B batch, C channels, H height, W width; maps are NCHW in shape, in any memory format. ReLU6 in both
chains: so has ProxylessNAS' code, FBNet's has ReLU.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..spaces.chain import BLOCKS, Block
from .ops import Zero, conv


class InvertedResidual(nn.Module):
    """1x1, BatchNorm, ReLU6, depthwise k x k, BatchNorm, ReLU6, 1x1, BatchNorm; the shortcut is the edge's."""

    def __init__(self, block: Block, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        middle = channels_in * max(1, block.expansion)
        self.groups = block.groups
        self.expand = conv(channels_in, middle, 1, groups=block.groups) if block.expansion else None
        self.expand_norm = nn.BatchNorm2d(middle) if block.expansion else None
        self.depthwise = conv(middle, middle, block.side, stride, groups=middle)
        self.depthwise_norm = nn.BatchNorm2d(middle)
        self.project = conv(middle, channels, 1, groups=block.groups)
        self.project_norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.expand is not None and self.expand_norm is not None:
            x_BCHW = F.relu6(self.expand_norm(self.expand(x_BCHW)))
        if self.groups > 1:
            x_BCHW = F.channel_shuffle(x_BCHW, self.groups)
        x_BCHW = F.relu6(self.depthwise_norm(self.depthwise(x_BCHW)))
        return self.project_norm(self.project(x_BCHW))


def chain_operation(name: str, channels_in: int, channels: int, stride: int, *, shortcut: bool) -> nn.Module:
    """The operation of a layer; one that leaves the layer out is a projection where there is no shortcut."""
    if name in BLOCKS:
        return InvertedResidual(BLOCKS[name], channels_in, channels, stride)
    if shortcut:
        return Zero(stride)
    return nn.Sequential(conv(channels_in, channels, 1, stride), nn.BatchNorm2d(channels))


def chain_head(channels_in: int, channels: int) -> nn.Sequential:
    """1x1 convolution, BatchNorm, ReLU6."""
    return nn.Sequential(conv(channels_in, channels, 1), nn.BatchNorm2d(channels), nn.ReLU6())
