"""A separable convolution of one or two stages: ReLU, depthwise k x k, pointwise, with a BatchNorm between stages.

Shape suffixes: B batch, H height, W width, C channels; maps are NHWC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import batchnorm, conv
from .batchnorm import Stats


@dataclass(slots=True)
class Separable:
    """The convolution, and what it remembers between its passes.

    Attributes:
        weights: depthwise [C, 1, k, k] and pointwise [C, C] of each stage.
        dilation: of the depthwise convolutions.
        stride: of the first stage.
        inner_stats: of the BatchNorms between stages, from the first pass on.
        inner_zs: inputs of these BatchNorms; backward needs them.
        taps: inputs of the pointwise convolutions, where they were kept; backward makes them again where not.
        prepared: what an implementation makes of the weights, once.
    """

    weights: Sequence[Tensor]
    dilation: int
    stride: int
    inner_stats: list[Stats] = field(default_factory=list)
    inner_zs: list[Tensor] = field(default_factory=list)
    taps: list[Tensor] = field(default_factory=list)
    prepared: Any = None

    @property
    def stages(self) -> int:
        return len(self.weights) // 2

    def release(self, *, inner: bool = True, taps: bool = True) -> None:
        """Let kept maps go."""
        if inner:
            self.inner_zs.clear()
        if taps:
            self.taps.clear()


def forward(one: Separable, x_BHWC: Tensor) -> Tensor:
    """z of the last stage; fills `inner_zs` and `taps`, and `inner_stats` in a first pass."""
    a, stride = torch.relu(x_BHWC), one.stride
    one.release()
    first_pass = len(one.inner_stats) < one.stages - 1
    for stage in range(one.stages):
        t = conv.depthwise(a, one.weights[2 * stage], one.dilation, stride)
        one.taps.append(t)
        z = conv.pointwise(t, one.weights[2 * stage + 1])
        del t
        if stage + 1 == one.stages:
            break
        if first_pass:
            one.inner_stats.append(batchnorm.batch_stats(z))
        one.inner_zs.append(z)
        a, stride = batchnorm.normalize_relu(z, one.inner_stats[stage]), 1
    return z


def backward(
    one: Separable,
    x_BHWC: Tensor,
    dz_BHWC: Tensor,
    grad: Tensor | None,
    weight_grads: Sequence[Tensor],
    *,
    need_x: bool,
) -> Tensor | None:
    """The gradient of x so far, None for zero, plus this one's, from that of the last z.

    Uses up dz, the inner maps and the taps; adds to `grad` in place. The weights' gradients are written to
    `weight_grads`, unless it is empty.
    """
    need_w = len(weight_grads) > 0
    if not (need_x or need_w):
        return grad
    dz: Tensor | None = dz_BHWC
    del dz_BHWC
    for stage in reversed(range(one.stages)):
        depthwise_w, pointwise_w = one.weights[2 * stage : 2 * stage + 2]
        stride = 1 if stage else one.stride
        z_before = one.inner_zs.pop() if stage else None
        a = torch.relu(x_BHWC) if z_before is None else batchnorm.normalize_relu(z_before, one.inner_stats[stage - 1])
        assert dz is not None
        if need_w:
            t = one.taps.pop() if one.taps else conv.depthwise(a, depthwise_w, one.dilation, stride)
            weight_grads[2 * stage + 1].copy_(conv.pointwise_weight_grad(dz, t))
            del t
        dt = conv.pointwise_input_grad(dz, pointwise_w)
        dz = None
        da, dw = conv.depthwise_grads(
            dt, a, depthwise_w, one.dilation, stride, need_x=stage > 0 or need_x, need_w=need_w
        )
        del dt
        if dw is not None:
            weight_grads[2 * stage].copy_(dw)
        if da is None:
            break
        da = torch.ops.aten.threshold_backward.grad_input(da, a, 0, grad_input=da)
        if z_before is None:
            return da if grad is None else grad.add_(da)
        stats = one.inner_stats[stage - 1]
        sum_da_C = batchnorm.sum_rows(da)
        sums_C = batchnorm.sum_dy_xhat(da, z_before, stats, sum_da_C)
        dz = batchnorm.input_grad(da, z_before, stats, sum_da_C, sums_C, 1.0, overwrite_z=True)
        del a, da, z_before
    return grad
