"""Convolutions on NHWC maps and their gradients, by the quickest route that plain PyTorch has on a CPU.

Shape suffixes: B batch, H height, W width, C channels, I input and O output channels. Depthwise weights are
[C, 1, k, k], pointwise weights [O, I]. Padding keeps the side: dilation * (k // 2).

The routes were timed on a 2-core AMD EPYC (Zen 2), one thread, torch 2.14.1, B=16, C=16, 32x32:
oneDNN's depthwise input gradient takes 1.0 ms (dilated 3x3) and 2.0 ms (dilated 5x5), the forward convolution
with the flipped kernel 0.17 and 0.25 ms; its weight gradient takes 1.9 ms (5x5), 3.0 and 7.3 ms (dilated),
by space-to-batch and 3x3 windows 1.3, 0.4 and 1.5 ms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .batchnorm import rows

_conv_backward = torch.ops.aten.convolution_backward


def bchw(x_BHWC: Tensor) -> Tensor:
    return x_BHWC.permute(0, 3, 1, 2)


def bhwc(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.permute(0, 2, 3, 1)


def conv(x_BHWC: Tensor, w_OIkk: Tensor, stride: int) -> Tensor:
    """Dense k x k convolution, contiguous NHWC out."""
    return bhwc(F.conv2d(bchw(x_BHWC), w_OIkk, None, stride, w_OIkk.shape[-1] // 2)).contiguous()


def conv_grads(
    dz_BHWC: Tensor, x_BHWC: Tensor, w_OIkk: Tensor, stride: int, *, need_x: bool, need_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """(dx, dw) of `conv`, None where not needed."""
    padding = w_OIkk.shape[-1] // 2
    return _grads(dz_BHWC, x_BHWC, w_OIkk, stride, padding, 1, 1, need_x, need_w)


def _grads(
    g_BHWC: Tensor,
    x_BHWC: Tensor,
    w: Tensor,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    need_x: bool,
    need_w: bool,
) -> tuple[Tensor | None, Tensor | None]:
    dx, dw, _ = _conv_backward(
        bchw(g_BHWC), bchw(x_BHWC), w, None, [stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups,
        [need_x, need_w, False],
    )  # fmt: skip
    return (bhwc(dx) if need_x else None), (dw if need_w else None)


def depthwise(x_BHWC: Tensor, w_C1kk: Tensor, dilation: int, stride: int) -> Tensor:
    """Depthwise k x k convolution."""
    if stride == 2 and dilation == 2:
        # Every tap of a dilation of 2 at stride 2 falls on even pixels.
        x_BHWC, stride, dilation = x_BHWC[:, ::2, ::2].contiguous(), 1, 1
    padding = dilation * (w_C1kk.shape[-1] // 2)
    return bhwc(torch.conv2d(bchw(x_BHWC), w_C1kk, None, stride, padding, dilation, x_BHWC.shape[-1]))


def depthwise_grads(
    g_BHWC: Tensor, x_BHWC: Tensor, w_C1kk: Tensor, dilation: int, stride: int, *, need_x: bool, need_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """(dx, dw) of `depthwise`, None where not needed."""
    if stride == 2 and dilation == 2:
        even_BHWC = x_BHWC[:, ::2, ::2].contiguous()
        d_even, dw = depthwise_grads(g_BHWC, even_BHWC, w_C1kk, 1, 1, need_x=need_x, need_w=need_w)
        if d_even is None:
            return None, dw
        dx_BHWC = torch.zeros_like(x_BHWC)
        dx_BHWC[:, ::2, ::2] = d_even
        return dx_BHWC, dw
    channels, side = x_BHWC.shape[-1], w_C1kk.shape[-1]
    padding = dilation * (side // 2)
    if stride == 2:
        return _grads(g_BHWC, x_BHWC, w_C1kk, 2, padding, dilation, channels, need_x, need_w)
    dx = None
    if need_x:
        flipped = w_C1kk.flip(2, 3)
        dx = bhwc(torch.conv2d(bchw(g_BHWC), flipped, None, 1, padding, dilation, channels))
    return dx, (_depthwise_weight_grad(g_BHWC, x_BHWC, w_C1kk, dilation) if need_w else None)


def _depthwise_weight_grad(g_BHWC: Tensor, x_BHWC: Tensor, w_C1kk: Tensor, dilation: int) -> Tensor:
    """Weight gradient at stride 1."""
    channels, side = g_BHWC.shape[-1], w_C1kk.shape[-1]
    if dilation == 2:
        return _depthwise_weight_grad(_space_to_batch(g_BHWC), _space_to_batch(x_BHWC), w_C1kk, 1)
    if side != 5:
        dw = _grads(g_BHWC, x_BHWC, w_C1kk, 1, side // 2, 1, channels, False, True)[1]
        assert dw is not None
        return dw
    # oneDNN has a quick weight gradient for 3x3 only: a 5x5 one is four 3x3 windows of a padded copy.
    height, width = x_BHWC.shape[1:3]
    padded_BHWC = F.pad(x_BHWC, (0, 0, 2, 2, 2, 2))
    dw_C1kk = torch.empty_like(w_C1kk)
    window_C133 = w_C1kk[:, :, :3, :3]
    for top in (0, 2):
        for left in (0, 2):
            part_BHWC = padded_BHWC[:, top : top + height + 2, left : left + width + 2].contiguous()
            dw = _grads(g_BHWC, part_BHWC, window_C133, 1, 0, 1, channels, False, True)[1]
            assert dw is not None
            dw_C1kk[:, :, top : top + 3, left : left + 3] = dw
    return dw_C1kk


def _space_to_batch(x_BHWC: Tensor) -> Tensor:
    """The four phases of even and odd rows and columns, as four times the batch; odd sides are padded by zeros."""
    height, width = x_BHWC.shape[1:3]
    if height % 2 or width % 2:
        x_BHWC = F.pad(x_BHWC, (0, 0, 0, width % 2, 0, height % 2))
    batch, height, width, channels = x_BHWC.shape
    phases = x_BHWC.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(2, 4, 0, 1, 3, 5)
    return phases.reshape(4 * batch, height // 2, width // 2, channels)


def pointwise(x_BHWI: Tensor, w_OI: Tensor) -> Tensor:
    """1x1 convolution as one matrix product."""
    return torch.mm(rows(x_BHWI), w_OI.t()).view(*x_BHWI.shape[:3], w_OI.shape[0])


def pointwise_input_grad(g_BHWO: Tensor, w_OI: Tensor) -> Tensor:
    return torch.mm(rows(g_BHWO), w_OI).view(*g_BHWO.shape[:3], w_OI.shape[1])


def pointwise_weight_grad(g_BHWO: Tensor, x_BHWI: Tensor) -> Tensor:
    return torch.mm(rows(g_BHWO).t(), rows(x_BHWI))


def phases_of_reduction(x_BHWC: Tensor) -> tuple[Tensor, Tensor]:
    """The two inputs of FactorizedReduce: even pixels, and odd ones (views)."""
    return x_BHWC[:, ::2, ::2], x_BHWC[:, 1::2, 1::2]


def factorized_reduce(x_BHWI: Tensor, w_HI: tuple[Tensor, Tensor], *, relu: bool = False) -> Tensor:
    """Two 1x1 convolutions of stride 2, the second shifted by one pixel, joined on channels (even sides only).

    `relu` applies a ReLU to each phase, so that no full map of it exists.
    """
    phases = phases_of_reduction(x_BHWI)
    assert phases[0].shape == phases[1].shape, "FactorizedReduce needs even sides"
    half = w_HI[0].shape[0]
    z_BHWO = x_BHWI.new_empty(*phases[0].shape[:3], 2 * half)
    for index, phase_BHWI in enumerate(phases):
        input_BHWI = torch.relu(phase_BHWI) if relu else phase_BHWI
        z_BHWO[..., index * half : (index + 1) * half] = pointwise(input_BHWI, w_HI[index])
    return z_BHWO
