"""Operations of a derived network as modules with affine BatchNorm and running statistics, under ordinary autograd.

Shape suffixes: B batch, C channels, H height, W width; maps are NCHW in shape, in any memory format. As in
quark0/darts (cnn/operations.py) and D-X-Y/AutoDL-Projects (lib/models/cell_operations.py): no bias in a convolution,
and in the DARTS space no BatchNorm behind a pool.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spaces.space import SKIP, ZERO
from .native import separable_stage, takes


def conv(
    channels_in: int, channels: int, size: int | tuple[int, int], stride: int | tuple[int, int] = 1, *,
    dilation: int = 1, groups: int = 1,
) -> nn.Conv2d:  # fmt: skip
    """A convolution without bias whose output at stride 1 has the side of its input."""
    rows, columns = (size, size) if isinstance(size, int) else size
    padding = (rows // 2 * dilation, columns // 2 * dilation)
    return nn.Conv2d(channels_in, channels, (rows, columns), stride, padding, dilation, groups, bias=False)


class ReluConvNorm(nn.Module):
    """ReLU, dense convolution, BatchNorm: DARTS' 1x1 preprocessing and NAS-Bench-201's nor_conv."""

    def __init__(self, channels_in: int, channels: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = conv(channels_in, channels, size, stride)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.norm(self.conv(F.relu(x_BCHW)))


class FactorizedReduce(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2, the second shifted by a pixel, joined on channels; BatchNorm."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(channels_in, channels // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(channels_in, channels // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = F.relu(x_BCHW)
        return self.norm(torch.cat([self.even(x_BCHW), self.odd(x_BCHW[:, :, 1:, 1:])], 1))


class SeparableStage(nn.Module):
    """ReLU, depthwise k x k, pointwise, BatchNorm."""

    def __init__(self, channels: int, size: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.depthwise = conv(channels, channels, size, stride, dilation=dilation, groups=channels)
        self.pointwise = conv(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.training and takes(x_BCHW, self.depthwise.weight):
            return separable_stage(x_BCHW, self.depthwise, self.pointwise, self.norm)
        return self.norm(self.pointwise(self.depthwise(F.relu(x_BCHW))))


class Separable(nn.Module):
    """DARTS' sep_conv (two stages) or dil_conv (one, of dilation 2); the first stage has the edge's stride."""

    def __init__(self, channels: int, size: int, stride: int, *, stages: int, dilation: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            SeparableStage(channels, size, stride if stage == 0 else 1, dilation) for stage in range(stages)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
        return x_BCHW


class CrossConv(nn.Module):
    """ReLU, 1 x 7, 7 x 1, BatchNorm: AmoebaNet's conv_7x1_1x7 as quark0/darts builds it."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.along_rows = conv(channels, channels, (1, 7), (1, stride))
        self.along_columns = conv(channels, channels, (7, 1), (stride, 1))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.norm(self.along_columns(self.along_rows(F.relu(x_BCHW))))


class Pool(nn.Module):
    """3x3 maximum, or mean of the pixels inside the map."""

    def __init__(self, kind: Literal["max", "avg"], stride: int) -> None:
        super().__init__()
        self.kind, self.stride = kind, stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.kind == "max":
            return F.max_pool2d(x_BCHW, 3, self.stride, 1)
        return F.avg_pool2d(x_BCHW, 3, self.stride, 1, count_include_pad=False)


class Zero(nn.Module):
    """`none`: zeros of the output's shape."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.zeros_like(x_BCHW[:, :, :: self.stride, :: self.stride])


class ResidualReduce(nn.Module):
    """NAS-Bench-201's reduction: two ReLU-3x3-BN, the first of stride 2, beside 2x2 mean and 1x1."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.first = ReluConvNorm(channels_in, channels, 3, 2)
        self.second = ReluConvNorm(channels, channels, 3)
        self.shortcut = conv(channels_in, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.second(self.first(x_BCHW)) + self.shortcut(F.avg_pool2d(x_BCHW, 2))


def operation(name: str, channels: int, stride: int) -> nn.Module:
    """The module of a published operation of either space, `channels` to as many."""
    if name == ZERO:
        return Zero(stride)
    if name == SKIP:
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)
    if name == "conv_7x1_1x7":
        return CrossConv(channels, stride)
    if name in ("max_pool_3x3", "avg_pool_3x3"):
        return Pool("max" if name == "max_pool_3x3" else "avg", stride)
    family, _, shape = name.rpartition("_")
    size = int(shape.partition("x")[0])
    if family == "nor_conv":
        return ReluConvNorm(channels, channels, size, stride)
    assert family in ("sep_conv", "dil_conv"), name
    two = family == "sep_conv"
    return Separable(channels, size, stride, stages=2 if two else 1, dilation=1 if two else 2)
