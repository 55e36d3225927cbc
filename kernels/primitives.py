"""What a cell on the CPU is made of, in plain PyTorch and with C++ kernels where they are quicker.

Shape suffixes: B batch, H height, W width, C channels; maps are NHWC. Statistics are (mean [C], rstd [C]).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import native
from .reference import batchnorm, conv, pooling, prepare
from .reference.batchnorm import EPSILON, Stats


class Reference:
    """Plain PyTorch, in any dtype."""

    name = "reference"

    def stats(self, z_BHWC: Tensor) -> Stats:
        return batchnorm.batch_stats(z_BHWC)

    def accumulate_(self, out_BHWC: Tensor, z_BHWC: Tensor, gate: float) -> tuple[Stats, Tensor | None]:
        """out += gate * BatchNorm(z), up to a constant [C] that is still to be taken away: (statistics, constant).

        Constants of several branches are taken away together: one pass over the node instead of one for each.
        """
        mean_C, rstd_C = stats = self.stats(z_BHWC)
        scale_C = rstd_C * gate
        out_BHWC.addcmul_(z_BHWC, scale_C)
        return stats, mean_C * scale_C

    def node_sum(self, dy_BHWC: Tensor) -> Tensor | None:
        """What `norm_backward` wants to know of a node's gradient, once for all its branches."""
        return batchnorm.sum_rows(dy_BHWC)

    def norm_backward(
        self, dy_BHWC: Tensor, z_BHWC: Tensor, stats: Stats, sum_dy_C: Tensor | None, gate: float
    ) -> tuple[Tensor, Tensor | float]:
        """(dz of gate * BatchNorm(z), gradient of the gate); dz is written over z."""
        assert sum_dy_C is not None
        sum_dy_xhat_C = batchnorm.sum_dy_xhat(dy_BHWC, z_BHWC, stats, sum_dy_C)
        dz = batchnorm.input_grad(dy_BHWC, z_BHWC, stats, sum_dy_C, sum_dy_xhat_C, gate, overwrite_z=True)
        return dz, sum_dy_xhat_C.sum()

    def norm_relu(self, z_BHWC: Tensor, stats: Stats) -> Tensor:
        """relu(BatchNorm(z))."""
        return batchnorm.normalize_relu(z_BHWC, stats)

    def inner_backward_(self, da_BHWC: Tensor, a_BHWC: Tensor, z_BHWC: Tensor, stats: Stats) -> Tensor:
        """dz of a = relu(BatchNorm(z)); overwrites da and z."""
        dy = torch.ops.aten.threshold_backward.grad_input(da_BHWC, a_BHWC, 0, grad_input=da_BHWC)
        sum_dy = batchnorm.sum_rows(dy)
        sum_dy_xhat = batchnorm.sum_dy_xhat(dy, z_BHWC, stats, sum_dy)
        return batchnorm.input_grad(dy, z_BHWC, stats, sum_dy, sum_dy_xhat, 1.0, overwrite_z=True)

    def depthwise_grads(
        self, g_BHWC: Tensor, x_BHWC: Tensor, w_C1kk: Tensor, dilation: int, stride: int, *, need_x: bool, need_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return conv.depthwise_grads(g_BHWC, x_BHWC, w_C1kk, dilation, stride, need_x=need_x, need_w=need_w)

    def max_pool(self, x_BHWC: Tensor, stride: int) -> Tensor:
        return pooling.max_pool(x_BHWC, stride)

    def add_max_pool_grad(self, grad: Tensor | None, dz_BHWC: Tensor, x_BHWC: Tensor, stride: int) -> Tensor:
        """The input's gradient so far, None for zero, plus that of a max pool."""
        dx = pooling.max_pool_input_grad(dz_BHWC, x_BHWC, stride)
        return dx if grad is None else grad.add_(dx)

    def avg_pool(self, x_BHWC: Tensor, stride: int) -> Tensor:
        return pooling.avg_pool(x_BHWC, stride)

    def add_avg_pool_grad(self, grad: Tensor | None, dz_BHWC: Tensor, x_BHWC: Tensor, stride: int) -> Tensor:
        """As above for the mean."""
        dx = pooling.avg_pool_input_grad(dz_BHWC, x_BHWC, stride)
        return dx if grad is None else grad.add_(dx)

    def add_relu_grad(self, grad: Tensor | None, da_BHWC: Tensor, x_BHWC: Tensor, relu_BHWC: Tensor) -> Tensor:
        """The gradient of x so far, None for zero, plus da where x is positive; overwrites da."""
        da = torch.ops.aten.threshold_backward.grad_input(da_BHWC, relu_BHWC, 0, grad_input=da_BHWC)
        return da if grad is None else grad.add_(da)

    def normalize_(self, z_BHWC: Tensor, stats: Stats) -> Tensor:
        """xhat, written over z."""
        return batchnorm.normalize_(z_BHWC, stats)

    def xhat_backward_(self, dy_BHWC: Tensor, xhat_BHWC: Tensor, rstd_C: Tensor) -> Tensor:
        """dz of out = xhat(z), written over dy."""
        return batchnorm.input_grad_from_xhat_(dy_BHWC, xhat_BHWC, rstd_C)

    def prepare(self, x_BHWC: Tensor, weights: Sequence[Tensor], stats: Stats | None) -> tuple[Tensor, Stats]:
        """See `reference.prepare.prepare`."""
        return prepare.prepare(x_BHWC, weights, stats, batch_stats=self.stats, normalize_=self.normalize_)

    def prepared_grads(
        self, d_BHWO: Tensor, xhat_BHWO: Tensor, x_BHWC: Tensor, weights: Sequence[Tensor], stats: Stats,
        *, need_x: bool, need_w: bool,
    ) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
        """See `reference.prepare.prepared_grads`."""
        return prepare.prepared_grads(
            d_BHWO, xhat_BHWO, x_BHWC, weights, stats, need_x=need_x, need_w=need_w,
            xhat_backward_=self.xhat_backward_,
        )  # fmt: skip


class Native(Reference):
    """C++ where the maps are fp32, plain PyTorch elsewhere."""

    name = "native"

    def stats(self, z_BHWC: Tensor) -> Stats:
        if not native.fits(z_BHWC):
            return super().stats(z_BHWC)
        mean_C, rstd_C = native.batch_stats(z_BHWC, EPSILON).unbind()
        return mean_C, rstd_C

    def accumulate_(self, out_BHWC: Tensor, z_BHWC: Tensor, gate: float) -> tuple[Stats, Tensor | None]:
        if not native.fits(z_BHWC) or native.pixel_stride(out_BHWC) is None:
            return super().accumulate_(out_BHWC, z_BHWC, gate)
        mean_C, rstd_C = native.accumulate_(out_BHWC, z_BHWC, gate, EPSILON).unbind()
        return (mean_C, rstd_C), None

    def node_sum(self, dy_BHWC: Tensor) -> Tensor | None:
        return super().node_sum(dy_BHWC) if native.pixel_stride(dy_BHWC) is None else None

    def norm_backward(
        self, dy_BHWC: Tensor, z_BHWC: Tensor, stats: Stats, sum_dy_C: Tensor | None, gate: float
    ) -> tuple[Tensor, Tensor | float]:
        if not native.fits(z_BHWC) or native.pixel_stride(dy_BHWC) is None:
            sum_dy_C = super().node_sum(dy_BHWC) if sum_dy_C is None else sum_dy_C
            return super().norm_backward(dy_BHWC, z_BHWC, stats, sum_dy_C, gate)
        return native.norm_backward_(dy_BHWC, z_BHWC, _joined(stats), gate)

    def norm_relu(self, z_BHWC: Tensor, stats: Stats) -> Tensor:
        if not native.fits(z_BHWC):
            return super().norm_relu(z_BHWC, stats)
        return native.normalize(z_BHWC, _joined(stats), relu=True)

    def inner_backward_(self, da_BHWC: Tensor, a_BHWC: Tensor, z_BHWC: Tensor, stats: Stats) -> Tensor:
        if not native.fits(z_BHWC, da_BHWC):
            return super().inner_backward_(da_BHWC, a_BHWC, z_BHWC, stats)
        return native.norm_backward_(da_BHWC, z_BHWC, _joined(stats), 1.0, behind_relu=True)[0]

    def normalize_(self, z_BHWC: Tensor, stats: Stats) -> Tensor:
        if not native.fits(z_BHWC):
            return super().normalize_(z_BHWC, stats)
        return native.normalize(z_BHWC, _joined(stats), relu=False, out=z_BHWC)

    def xhat_backward_(self, dy_BHWC: Tensor, xhat_BHWC: Tensor, rstd_C: Tensor) -> Tensor:
        if not native.fits(dy_BHWC, xhat_BHWC):
            return super().xhat_backward_(dy_BHWC, xhat_BHWC, rstd_C)
        return native.xhat_backward_(dy_BHWC, xhat_BHWC, rstd_C)

    def depthwise_grads(
        self, g_BHWC: Tensor, x_BHWC: Tensor, w_C1kk: Tensor, dilation: int, stride: int, *, need_x: bool, need_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        if not need_w or not native.takes(g_BHWC, x_BHWC) or w_C1kk.shape[-1] not in (3, 5):
            return super().depthwise_grads(g_BHWC, x_BHWC, w_C1kk, dilation, stride, need_x=need_x, need_w=need_w)
        dx, _ = super().depthwise_grads(g_BHWC, x_BHWC, w_C1kk, dilation, stride, need_x=need_x, need_w=False)
        return dx, native.depthwise_weight_grad(g_BHWC, x_BHWC, w_C1kk.shape[-1], dilation, stride)

    def max_pool(self, x_BHWC: Tensor, stride: int) -> Tensor:
        return super().max_pool(x_BHWC, stride) if not _pooled(x_BHWC, stride) else native.max_pool(x_BHWC, stride)

    def add_max_pool_grad(self, grad: Tensor | None, dz_BHWC: Tensor, x_BHWC: Tensor, stride: int) -> Tensor:
        if not _pooled(x_BHWC, stride) or not native.fits(dz_BHWC) or not _written(grad):
            return super().add_max_pool_grad(grad, dz_BHWC, x_BHWC, stride)
        d_BHWC = x_BHWC.new_empty(x_BHWC.shape) if grad is None else grad
        native.max_pool_backward_(d_BHWC, dz_BHWC, x_BHWC, stride, add=grad is not None)
        return d_BHWC

    def avg_pool(self, x_BHWC: Tensor, stride: int) -> Tensor:
        return super().avg_pool(x_BHWC, stride) if not _pooled(x_BHWC, stride) else native.avg_pool(x_BHWC, stride)

    def add_avg_pool_grad(self, grad: Tensor | None, dz_BHWC: Tensor, x_BHWC: Tensor, stride: int) -> Tensor:
        if not _pooled(x_BHWC, stride) or not native.fits(dz_BHWC) or not _written(grad):
            return super().add_avg_pool_grad(grad, dz_BHWC, x_BHWC, stride)
        d_BHWC = x_BHWC.new_empty(x_BHWC.shape) if grad is None else grad
        native.avg_pool_backward_(d_BHWC, dz_BHWC, stride, add=grad is not None)
        return d_BHWC

    def add_relu_grad(self, grad: Tensor | None, da_BHWC: Tensor, x_BHWC: Tensor, relu_BHWC: Tensor) -> Tensor:
        if grad is None or not (_written(grad) and native.fits(da_BHWC, relu_BHWC)):
            return super().add_relu_grad(grad, da_BHWC, x_BHWC, relu_BHWC)
        native.add_where_positive_(grad, da_BHWC, relu_BHWC)
        return grad


def _pooled(x_BHWC: Tensor, stride: int) -> bool:
    return stride in (1, 2) and native.pixel_stride(x_BHWC) is not None


def _written(grad: Tensor | None) -> bool:
    """Whether the kernels can add to a gradient."""
    return grad is None or native.pixel_stride(grad) is not None


def _joined(stats: Stats) -> Tensor:
    """(mean, rstd) as [2, C]: a view where they are one."""
    mean_C, rstd_C = stats
    base = mean_C._base
    if base is not None and base is rstd_C._base and base.shape == (2, *mean_C.shape):
        return base
    return torch.stack(stats)


def primitives(impl: str) -> Reference:
    """The implementation by name: `native`, else plain PyTorch."""
    return Native() if impl == "native" else Reference()
