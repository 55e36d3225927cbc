"""An inverted residual: 1x1 to more channels, BatchNorm, ReLU6, depthwise k x k, BatchNorm, ReLU6, 1x1 to few.

Shape suffixes: B batch, H height, W width, C channels in, M channels in the middle, O channels out; maps are NHWC.

Up to the last convolution every channel in the middle is on its own, BatchNorm's statistics too. So they are computed
a part at a time: a map in the middle, six times as wide as the block's input, never exists whole unless it is kept
(ours). The last BatchNorm is the caller's.

Source: Sandler et al., MobileNetV2 (2018). With `groups` the 1x1 convolutions are grouped and the channels behind the
first are shuffled, as in FBNet's blocks (maskrcnn_benchmark/modeling/backbone/fbnet_builder.py); FBNet has ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import batchnorm, conv
from .batchnorm import Stats

CAP = 6.0
# Channels of a part, at least: narrower ones are slower and no longer the largest of a step's maps (ours).
PART_CHANNELS = 16


@dataclass(slots=True)
class Inverted:
    """The block, and what it remembers between its passes.

    Attributes:
        weights: of the first 1x1 convolution [M, C / groups], unless the block has none (M = C), of the depthwise one
            [M, 1, k, k] and of the last 1x1 convolution [O, M / groups].
        stride: of the depthwise convolution.
        groups: of the 1x1 convolutions.
        keep_inner: whether the first pass leaves its maps in `zs`.
        keep_taps: whether it leaves them in `taps`.
        stats: of the BatchNorms in the middle by part, from the first pass on; the first is None without a first
            convolution.
        zs: their inputs by part.
        taps: inputs of the last convolution by part.
    """

    weights: Sequence[Tensor]
    stride: int
    groups: int = 1
    keep_inner: bool = False
    keep_taps: bool = False
    stats: list[tuple[Stats | None, Stats]] = field(default_factory=list)
    zs: list[tuple[Tensor | None, Tensor]] = field(default_factory=list)
    taps: list[Tensor] = field(default_factory=list)

    @property
    def expand(self) -> Tensor | None:
        return self.weights[0] if len(self.weights) == 3 else None

    def parts(self) -> list[slice]:
        """Channels in the middle that are computed together: all of them where they are shuffled."""
        middle = self.weights[-2].shape[0]
        if self.groups > 1:
            return [slice(0, middle)]
        expand = self.expand
        size = max(PART_CHANNELS, middle // 2 if expand is None else expand.shape[1])
        return [slice(start, min(start + size, middle)) for start in range(0, middle, size)]


def forward(one: Inverted, x_BHWC: Tensor) -> Tensor:
    """The last convolution's output [B, H', W', O]; the first pass fills `stats` and keeps what it is to keep."""
    first_pass, z = not one.stats, None
    for number, part in enumerate(one.parts()):
        a = _expanded(one, x_BHWC, part)
        stats_a = None if one.expand is None else batchnorm.batch_stats(a) if first_pass else one.stats[number][0]
        kept = first_pass and one.keep_inner
        h = a if stats_a is None else _activated(a, stats_a, overwrite=not kept)
        b = conv.depthwise(h, one.weights[-2][part], 1, one.stride)
        del h
        stats_b = batchnorm.batch_stats(b) if first_pass else one.stats[number][1]
        if first_pass:
            one.stats.append((stats_a, stats_b))
        if kept:
            one.zs.append((None if stats_a is None else a, b))
        del a
        tap = _activated(b, stats_b, overwrite=not kept)
        del b
        if first_pass and one.keep_taps:
            one.taps.append(tap)
        z = _projected(one, tap, part, z)
        del tap
    assert z is not None
    return z


def backward(
    one: Inverted, x_BHWC: Tensor, dz_BHWO: Tensor, grad: Tensor | None, weight_grads: Sequence[Tensor],
    *, need_x: bool,
) -> Tensor | None:  # fmt: skip
    """The gradient of x so far, None for zero, plus this one's, from that of the last convolution's output.

    Uses up the kept maps; adds to `grad` in place. The weights' gradients are written to `weight_grads`, unless it is
    empty.
    """
    need_w = len(weight_grads) > 0
    if not (need_x or need_w):
        return grad
    zs, taps = one.zs[::-1], one.taps[::-1]
    one.zs, one.taps = [], []
    for number, part in enumerate(one.parts()):
        stats_a, stats_b = one.stats[number]
        a, b = zs.pop() if zs else (None, None)
        if a is None:
            a = _expanded(one, x_BHWC, part)
        h = a if stats_a is None else _activated(a, stats_a, overwrite=False)
        if b is None:
            b = conv.depthwise(h, one.weights[-2][part], 1, one.stride)
        tap = taps.pop() if taps else _activated(b, stats_b, overwrite=False)
        if need_w:
            _write(one, weight_grads[-1], _mix_weight_grad(dz_BHWO, tap, one.groups), part, columns=True)
        d = _mix_input_grad(dz_BHWO, _columns(one, one.weights[-1], part), one.groups)
        d = _through(d, tap, b, stats_b)
        del tap, b
        need_h = need_x or one.expand is not None
        dh, dw = conv.depthwise_grads(d, h, one.weights[-2][part], 1, one.stride, need_x=need_h, need_w=need_w)
        del d
        if dw is not None:
            weight_grads[-2][part].copy_(dw)
        if dh is None:
            continue
        if stats_a is None:
            grad = torch.zeros_like(x_BHWC) if grad is None else grad
            grad[..., part].add_(dh)
            continue
        da = _through(dh, h, a, stats_a)
        del dh, h, a
        grad = _expand_grads(one, x_BHWC, da, grad, weight_grads, part, need_x=need_x)
    return grad


def _expanded(one: Inverted, x_BHWC: Tensor, part: slice) -> Tensor:
    """The first BatchNorm's input, or without a first convolution x itself, which is not to be written to."""
    if one.expand is None:
        return x_BHWC[..., part].contiguous()
    a = _mix(x_BHWC, one.expand[part], one.groups)
    return a if one.groups == 1 else _shuffled(a, one.groups)


def _expand_grads(
    one: Inverted, x_BHWC: Tensor, da: Tensor, grad: Tensor | None, weight_grads: Sequence[Tensor], part: slice,
    *, need_x: bool,
) -> Tensor | None:  # fmt: skip
    """The first convolution's gradients; returns x's so far."""
    assert one.expand is not None
    if one.groups > 1:
        da = _shuffled(da, da.shape[-1] // one.groups)
    if weight_grads:
        _write(one, weight_grads[0], _mix_weight_grad(da, x_BHWC, one.groups), part, columns=False)
    if not need_x:
        return grad
    if grad is None or one.groups > 1:
        dx = _mix_input_grad(da, one.expand[part], one.groups)
        return dx if grad is None else grad.add_(dx)
    batchnorm.rows(grad).addmm_(batchnorm.rows(da), one.expand[part])
    return grad


def _projected(one: Inverted, tap: Tensor, part: slice, z: Tensor | None) -> Tensor:
    """The last convolution of some channels in the middle, added to z."""
    w = _columns(one, one.weights[-1], part)
    if z is None:
        return _mix(tap, w, one.groups)
    batchnorm.rows(z).addmm_(batchnorm.rows(tap), w.t())
    return z


def _columns(one: Inverted, w: Tensor, part: slice) -> Tensor:
    return w if one.groups > 1 else w[:, part]


def _write(one: Inverted, place: Tensor, dw: Tensor, part: slice, *, columns: bool) -> None:
    whole = one.groups > 1
    target = place if whole else place[:, part] if columns else place[part]
    target.copy_(dw)


def _activated(z: Tensor, stats: Stats, *, overwrite: bool) -> Tensor:
    """ReLU6 of the normalised map, over z or as a new map."""
    if overwrite:
        return batchnorm.normalize_(z, stats).clamp_(0, CAP)
    mean_C, rstd_C = stats
    return torch.addcmul(-mean_C * rstd_C, z, rstd_C).clamp_(0, CAP)


def _through(d: Tensor, activated: Tensor, z: Tensor, stats: Stats) -> Tensor:
    """The gradient of z from that of its activated map; overwrites d and z."""
    d = torch.ops.aten.hardtanh_backward.grad_input(d, activated, 0, CAP, grad_input=d)
    sum_C = batchnorm.sum_rows(d)
    sums_C = batchnorm.sum_dy_xhat(d, z, stats, sum_C)
    return batchnorm.input_grad(d, z, stats, sum_C, sums_C, 1.0, overwrite_z=True)


def _mix(x_BHWI: Tensor, w: Tensor, groups: int) -> Tensor:
    """A 1x1 convolution in groups."""
    if groups == 1:
        return conv.pointwise(x_BHWI, w)
    pairs = zip(x_BHWI.chunk(groups, -1), w.chunk(groups), strict=True)
    return torch.cat([conv.pointwise(x, own) for x, own in pairs], -1)


def _mix_input_grad(dy_BHWO: Tensor, w: Tensor, groups: int) -> Tensor:
    if groups == 1:
        return conv.pointwise_input_grad(dy_BHWO, w)
    pairs = zip(dy_BHWO.chunk(groups, -1), w.chunk(groups), strict=True)
    return torch.cat([conv.pointwise_input_grad(dy, own) for dy, own in pairs], -1)


def _mix_weight_grad(dy_BHWO: Tensor, x_BHWI: Tensor, groups: int) -> Tensor:
    pairs = zip(dy_BHWO.chunk(groups, -1), x_BHWI.chunk(groups, -1), strict=True)
    return torch.cat([conv.pointwise_weight_grad(dy, x) for dy, x in pairs])


def _shuffled(x_BHWC: Tensor, groups: int) -> Tensor:
    """Channel n of group g becomes channel g of group n (ShuffleNet); `C / groups` undoes it."""
    return x_BHWC.unflatten(-1, (groups, -1)).transpose(-1, -2).flatten(-2)
