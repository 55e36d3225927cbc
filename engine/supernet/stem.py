"""Stems as autograd Functions that keep their input and statistics only.

Shape suffixes: B batch, H height, W width, C channels; maps are NHWC.

A stem is a chain of (3x3 convolution, BatchNorm with weights) joined by ReLU. Its maps are the largest of an
ImageNet network (112 x 112), so backward makes them again in chunks of samples: a first pass for BatchNorm's
sums, a second for the gradients; only the gradient of the map between two convolutions exists whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...kernels.reference import batchnorm, conv
from ..spaces.space import StemSpec

# Of one recomputed map: small enough to be a minor part of any step, large enough that a CIFAR batch of 32
# is one chunk (ours).
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class ConvNorm:
    """The parameters of one convolution with its BatchNorm."""

    w_OIkk: Tensor
    weight_C: Tensor
    bias_C: Tensor
    stride: int

    def conv(self, x_BHWC: Tensor) -> Tensor:
        return conv.conv(x_BHWC, self.w_OIkk.to(x_BHWC.dtype), self.stride)

    def apply_norm_(self, z_BHWC: Tensor, stats: batchnorm.Stats) -> Tensor:
        """weight * xhat + bias, written over z."""
        scale_C = stats[1] * self.weight_C
        return z_BHWC.mul_(scale_C).add_(self.bias_C - stats[0] * scale_C)


class StemFunction(torch.autograd.Function):
    """apply(spec, keep_maps, x_BHWC, *parameters) -> [B, H', W', C].

    Parameters are (w_OIkk, weight_C, bias_C) for each convolution. With `keep_maps` the inputs of the
    BatchNorms are kept (policies `all` and `bn`), else nothing but x, and the output where it ends in ReLU6. The
    incoming gradient is overwritten.
    """

    @staticmethod
    def forward(ctx: Any, spec: StemSpec, keep_maps: bool, x_BHWC: Tensor, *parameters: Tensor) -> Tensor:
        chain = _chain(spec, parameters)
        all_stats, kept = [], []
        y = torch.relu(x_BHWC) if spec.relu_first else x_BHWC
        for number, link in enumerate(chain):
            z = link.conv(y)
            stats = batchnorm.batch_stats(z)
            all_stats.append(stats)
            if keep_maps:
                kept.append(z)
                z = z.clone()
            y = link.apply_norm_(z, stats)
            if number + 1 < len(chain):
                y.relu_()
        ctx.spec, ctx.stats, ctx.kept = spec, all_stats, kept
        outputs = (y.clamp_(0, 6),) if spec.relu6_last else ()
        ctx.save_for_backward(x_BHWC, *parameters, *outputs)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BHWC: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        y = parameters.pop() if ctx.spec.relu6_last else None
        need_x, need_w = ctx.needs_input_grad[2], any(ctx.needs_input_grad[3:])
        if not (need_x or need_w):
            return (None,) * len(ctx.needs_input_grad)
        kept, ctx.kept = ctx.kept, []
        walk = _StemBackward(ctx.spec, _chain(ctx.spec, parameters), ctx.stats, kept, x)
        dy_BHWC = dy_BHWC.contiguous()
        if y is not None:
            dy_BHWC = torch.ops.aten.hardtanh_backward.grad_input(dy_BHWC, y, 0, 6, grad_input=dy_BHWC)
        dx, grads = walk.run(dy_BHWC, need_x)
        return (None, None, dx, *grads)


def _chain(spec: StemSpec, parameters: Sequence[Tensor]) -> list[ConvNorm]:
    return [
        ConvNorm(parameters[3 * number], parameters[3 * number + 1], parameters[3 * number + 2], conv_spec.stride)
        for number, conv_spec in enumerate(spec.convs)
    ]


class _StemBackward:
    def __init__(
        self, spec: StemSpec, chain: list[ConvNorm], stats: list[batchnorm.Stats], kept: list[Tensor], x: Tensor
    ) -> None:
        self.spec, self.chain, self.stats, self.kept, self.x = spec, chain, stats, kept, x

    def run(self, d_BHWC: Tensor, need_x: bool) -> tuple[Tensor | None, list[Tensor]]:
        """(gradient of x or None, gradients of the parameters in order)."""
        grads: list[Tensor] = []
        d: Tensor | None = d_BHWC
        del d_BHWC
        for number in reversed(range(len(self.chain))):
            assert d is not None
            d, link_grads = self._link(number, d, need_x=number > 0 or need_x)
            grads = link_grads + grads
        return d, grads

    def _link(self, number: int, d: Tensor, need_x: bool) -> tuple[Tensor | None, list[Tensor]]:
        """Through one BatchNorm and convolution; the ReLU before the convolution is included."""
        link, stats = self.chain[number], self.stats[number]
        sums = [torch.zeros_like(link.bias_C), torch.zeros_like(link.bias_C)]
        chunks = list(self._chunks(d))
        z: Tensor | None = None
        for part in chunks:
            z = self._z(number, part)
            sum_dy_C = batchnorm.sum_rows(d[part])
            sums[0] += sum_dy_C
            sums[1] += batchnorm.sum_dy_xhat(d[part], z, stats, sum_dy_C)
        dw = torch.zeros_like(link.w_OIkk)
        dx: Tensor | None = None
        num_samples = d.shape[0]
        for part in chunks:
            if len(chunks) > 1:
                z = self._z(number, part)
            assert z is not None
            # The sums are over all samples and input_grad divides by its own rows, so scale them to the chunk.
            share = z.shape[0] / num_samples
            dz = batchnorm.input_grad(
                d[part], z, stats, sums[0] * share, sums[1] * share, link.weight_C, overwrite_z=True
            )
            a = self._input(number, part)
            da, dw_part = conv.conv_grads(dz, a, link.w_OIkk.to(a.dtype), link.stride, need_x=need_x, need_w=True)
            assert dw_part is not None
            dw += dw_part
            if da is not None:
                if number or self.spec.relu_first:
                    torch.ops.aten.threshold_backward.grad_input(da, a, 0, grad_input=da)
                if len(chunks) == 1:
                    dx = da
                else:
                    dx = a.new_empty(num_samples, *a.shape[1:]) if dx is None else dx
                    dx[part] = da
        return dx, [dw, sums[1], sums[0]]

    def _chunks(self, d: Tensor) -> Iterator[slice]:
        per_sample_bytes = max(1, d[0].numel()) * d.element_size()
        size = max(1, CHUNK_BYTES // per_sample_bytes)
        return (slice(start, start + size) for start in range(0, d.shape[0], size))

    def _z(self, number: int, part: slice) -> Tensor:
        """The input of BatchNorm `number` for some samples; ours to overwrite."""
        if self.kept:
            return self.kept[number][part].clone()
        link = self.chain[number]
        return link.conv(self._input(number, part))

    def _input(self, number: int, part: slice) -> Tensor:
        """The input of convolution `number` for some samples."""
        if number == 0:
            return torch.relu(self.x[part]) if self.spec.relu_first else self.x[part]
        before = self.chain[number - 1]
        return before.apply_norm_(self._z(number - 1, part), self.stats[number - 1]).relu_()
