"""3x3 pooling with padding 1 on NHWC maps, and its backward without stored indices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .conv import bchw, bhwc, depthwise, depthwise_grads


def max_pool(x_BHWC: Tensor, stride: int) -> Tensor:
    """Maximum over 3x3; at stride 1 by rows and then columns (the same values, four times as quick on a CPU)."""
    if stride != 1:
        return bhwc(F.max_pool2d(bchw(x_BHWC), 3, stride, 1)).contiguous()
    across = x_BHWC.clone()
    torch.maximum(across[:, :, 1:], x_BHWC[:, :, :-1], out=across[:, :, 1:])
    torch.maximum(across[:, :, :-1], x_BHWC[:, :, 1:], out=across[:, :, :-1])
    both = across.clone()
    torch.maximum(both[:, 1:], across[:, :-1], out=both[:, 1:])
    torch.maximum(both[:, :-1], across[:, 1:], out=both[:, :-1])
    return both


def max_pool_input_grad(dz_BHWC: Tensor, x_BHWC: Tensor, stride: int) -> Tensor:
    """The argmax is found again, with PyTorch's tie-break, instead of an int64 map kept since the forward."""
    _, index = torch.ops.aten.max_pool2d_with_indices(bchw(x_BHWC), [3, 3], [stride] * 2, [1, 1])
    return bhwc(
        torch.ops.aten.max_pool2d_with_indices_backward(
            bchw(dz_BHWC), bchw(x_BHWC), [3, 3], [stride] * 2, [1, 1], [1, 1], False, index
        )
    )


def _inverse_count(x_BHWC: Tensor, stride: int) -> Tensor:
    """1 / number of pixels under each 3x3 window that lie inside the map: [H', W', 1]."""

    def counts(side: int) -> Tensor:
        inside = [min(at + 1, side - 1) - max(at - 1, 0) + 1 for at in range(0, side, stride)]
        return torch.tensor(inside, dtype=x_BHWC.dtype, device=x_BHWC.device)

    height, width = x_BHWC.shape[1:3]
    return torch.outer(counts(height), counts(width)).reciprocal_().unsqueeze_(-1)


def _ones_kernel(x_BHWC: Tensor) -> Tensor:
    return x_BHWC.new_ones(x_BHWC.shape[-1], 1, 3, 3)


def avg_pool(x_BHWC: Tensor, stride: int) -> Tensor:
    """Mean over the pixels of 3x3 inside the map (count_include_pad=False), as a depthwise convolution by ones."""
    sums = depthwise(x_BHWC, _ones_kernel(x_BHWC), 1, stride)
    return sums.mul_(_inverse_count(x_BHWC, stride))


def avg_pool_input_grad(dz_BHWC: Tensor, x_BHWC: Tensor, stride: int) -> Tensor:
    scaled = dz_BHWC * _inverse_count(x_BHWC, stride)
    dx, _ = depthwise_grads(scaled, x_BHWC, _ones_kernel(x_BHWC), 1, stride, need_x=True, need_w=False)
    assert dx is not None
    return dx
