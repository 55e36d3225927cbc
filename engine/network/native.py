"""A stage of a separable convolution in the project's C++ kernels: ReLU, depthwise, pointwise, affine BatchNorm.

Shape suffixes: B batch, C channels, H height, W width. Kept for backward are the stage's input and the map before
BatchNorm; what lies between them, which plain autograd keeps too, is made again (kernels/native/separable.cpp).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import native
from ...kernels.reference import batchnorm


def takes(x_BCHW: Tensor, weight: Tensor) -> bool:
    """Whether a training pass can run here: fp32 maps in channels_last on the CPU, 3x3 or 5x5 weights."""
    return (
        weight.shape[-1] in (3, 5)
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and native.takes(x_BCHW)
        and native.takes(weight)
        and x_BCHW.permute(0, 2, 3, 1).is_contiguous()
        and native.why_not() is None
    )


def separable_stage(x_BCHW: Tensor, depthwise: nn.Conv2d, pointwise: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """What the modules compute in training, their running statistics included; for what `takes` accepts."""
    y_BCHW, stats_2C = _Stage.apply(
        x_BCHW, depthwise.weight, pointwise.weight, norm.weight, norm.bias, depthwise.dilation[0],
        depthwise.stride[0], norm.eps,
    )  # fmt: skip
    _follow(norm, stats_2C, y_BCHW.numel() // y_BCHW.shape[1])
    return y_BCHW


@torch.no_grad()
def _follow(norm: nn.BatchNorm2d, stats_2C: Tensor, rows: int) -> None:
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    assert norm.momentum is not None
    mean_C, rstd_C = stats_2C
    variance_C = (rstd_C.double() ** -2 - norm.eps).clamp_(min=0) * (rows / max(1, rows - 1))
    norm.running_mean.lerp_(mean_C, norm.momentum)
    norm.running_var.lerp_(variance_C.to(norm.running_var.dtype), norm.momentum)
    norm.num_batches_tracked.add_(1)


class _Stage(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, depthwise: Tensor, pointwise: Tensor, weight_C: Tensor, bias_C: Tensor,
        dilation: int, stride: int, epsilon: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        batch, height, width, channels = x_BHWC.shape
        z_BHWC = x_BHWC.new_empty(batch, -(-height // stride), -(-width // stride), channels)
        stats_2C = x_BHWC.new_empty(2, channels)
        weights = _laid_out(depthwise, pointwise)
        one = native.Separable(weights, x_BHWC, dilation, stride, [z_BHWC], [stats_2C], epsilon)
        assert one.forward(0, None, 1.0)
        mean_C, rstd_C = stats_2C
        scale_C = weight_C * rstd_C
        y_BHWC = torch.addcmul(bias_C - mean_C * scale_C, z_BHWC, scale_C)
        ctx.save_for_backward(x_BCHW, depthwise, pointwise, weight_C, z_BHWC, stats_2C)
        ctx.sizes = dilation, stride, epsilon
        ctx.mark_non_differentiable(stats_2C)
        return y_BHWC.permute(0, 3, 1, 2), stats_2C

    @staticmethod
    def backward(ctx: Any, dy_BCHW: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, depthwise, pointwise, weight_C, z_BHWC, stats_2C = ctx.saved_tensors
        dilation, stride, epsilon = ctx.sizes
        x_BHWC, dy_BHWC = x_BCHW.permute(0, 2, 3, 1), dy_BCHW.permute(0, 2, 3, 1).contiguous()
        sum_dy_C = batchnorm.sum_rows(dy_BHWC)
        sum_dy_xhat_C = batchnorm.sum_dy_xhat(dy_BHWC, z_BHWC, stats_2C, sum_dy_C)
        weights = _laid_out(depthwise, pointwise)
        side, channels = depthwise.shape[-1], depthwise.shape[0]
        dx_BHWC = torch.empty_like(x_BHWC) if ctx.needs_input_grad[0] else None
        taps = x_BHWC.new_empty(side, side, channels).permute(2, 0, 1).unsqueeze(1)
        product = x_BHWC.new_empty(channels, channels)
        one = native.Separable(weights, x_BHWC, dilation, stride, [z_BHWC], [stats_2C], epsilon)
        done = one.backward(dy_BHWC * weight_C, 1.0, dx_BHWC, False, [taps, product])
        assert done is not None
        dx_BCHW = None if dx_BHWC is None else dx_BHWC.permute(0, 3, 1, 2)
        return dx_BCHW, taps, product[:, :, None, None], sum_dy_xhat_C, sum_dy_C, None, None, None


def _laid_out(depthwise: Tensor, pointwise: Tensor) -> native.SeparableWeights:
    """The weights with the channels last, as the kernels read them: a copy of k * k * C numbers."""
    taps = depthwise.detach()[:, 0].permute(1, 2, 0).contiguous().permute(2, 0, 1).unsqueeze(1)
    found = native.SeparableWeights.of([taps, pointwise.detach()[:, :, 0, 0].contiguous()])
    assert found is not None
    return found
