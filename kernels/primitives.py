"""What a cell on the CPU is made of, in plain PyTorch and with C++ kernels where they are quicker.

Shape suffixes: B batch, H height, W width, C channels; maps are NHWC. Statistics are (mean [C], rstd [C]).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import native
from .reference import batchnorm, pooling, prepare, separable
from .reference.batchnorm import EPSILON, Stats
from .reference.separable import Separable


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

    def separable(self, one: Separable, x_BHWC: Tensor) -> Tensor:
        """z of the last stage; see `reference.separable.forward`."""
        return separable.forward(one, x_BHWC)

    def accumulate_separable_(
        self, out_BHWC: Tensor, one: Separable, x_BHWC: Tensor, gate: float
    ) -> tuple[Tensor, Stats, Tensor | None]:
        """(z, its statistics, a constant) of a first pass whose result goes to a node: see `accumulate_`."""
        z = self.separable(one, x_BHWC)
        return z, *self.accumulate_(out_BHWC, z, gate)

    def separable_backward(
        self, one: Separable, x_BHWC: Tensor, dy_BHWC: Tensor, z_BHWC: Tensor, stats: Stats, sum_dy_C: Tensor | None,
        gate: float, grad: Tensor | None, weight_grads: Sequence[Tensor], *, need_x: bool,
    ) -> tuple[Tensor | float, Tensor | None]:  # fmt: skip
        """(gradient of the gate, x's gradient so far plus this one's); see `reference.separable.backward`.

        Uses up z and what `one` kept.
        """
        dz, gate_grad = self.norm_backward(dy_BHWC, z_BHWC, stats, sum_dy_C, gate)
        return gate_grad, separable.backward(one, x_BHWC, dz, grad, weight_grads, need_x=need_x)

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

    def prepare(self, x_BHWC: Tensor, weights: Sequence[Tensor], stats: Stats | None) -> tuple[Tensor, Stats]:
        """See `reference.prepare.prepare`."""
        return prepare.prepare(x_BHWC, weights, stats)

    def prepared_grads(
        self, d_BHWO: Tensor, xhat_BHWO: Tensor, x_BHWC: Tensor, weights: Sequence[Tensor], stats: Stats,
        *, need_x: bool, need_w: bool,
    ) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
        """See `reference.prepare.prepared_grads`."""
        return prepare.prepared_grads(d_BHWO, xhat_BHWO, x_BHWC, weights, stats, need_x=need_x, need_w=need_w)


class Native(Reference):
    """C++ where the maps are fp32, plain PyTorch elsewhere."""

    name = "native"

    def stats(self, z_BHWC: Tensor) -> Stats:
        if not native.fits(z_BHWC):
            return super().stats(z_BHWC)
        return native.batch_stats(z_BHWC, EPSILON)

    def accumulate_(self, out_BHWC: Tensor, z_BHWC: Tensor, gate: float) -> tuple[Stats, Tensor | None]:
        if not native.fits(z_BHWC) or native.pixel_stride(out_BHWC) is None:
            return super().accumulate_(out_BHWC, z_BHWC, gate)
        return native.accumulate_(out_BHWC, z_BHWC, gate, EPSILON), None

    def node_sum(self, dy_BHWC: Tensor) -> Tensor | None:
        return super().node_sum(dy_BHWC) if native.pixel_stride(dy_BHWC) is None else None

    def norm_backward(
        self, dy_BHWC: Tensor, z_BHWC: Tensor, stats: Stats, sum_dy_C: Tensor | None, gate: float
    ) -> tuple[Tensor, Tensor | float]:
        if not native.fits(z_BHWC) or native.pixel_stride(dy_BHWC) is None:
            sum_dy_C = super().node_sum(dy_BHWC) if sum_dy_C is None else sum_dy_C
            return super().norm_backward(dy_BHWC, z_BHWC, stats, sum_dy_C, gate)
        return native.norm_backward_(dy_BHWC, z_BHWC, _joined(stats), gate)

    def prepare(self, x_BHWC: Tensor, weights: Sequence[Tensor], stats: Stats | None) -> tuple[Tensor, Stats]:
        if not native.projects(x_BHWC, weights):
            return super().prepare(x_BHWC, weights, stats)
        return native.projection(x_BHWC, weights, None if stats is None else _joined(stats), EPSILON)

    def prepared_grads(
        self, d_BHWO: Tensor, xhat_BHWO: Tensor, x_BHWC: Tensor, weights: Sequence[Tensor], stats: Stats,
        *, need_x: bool, need_w: bool,
    ) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
        if not (native.projects(x_BHWC, weights) and native.fits(d_BHWO, xhat_BHWO)):
            return super().prepared_grads(d_BHWO, xhat_BHWO, x_BHWC, weights, stats, need_x=need_x, need_w=need_w)
        return native.projection_backward(d_BHWO, xhat_BHWO, x_BHWC, weights, stats[1], need_x=need_x, need_w=need_w)

    def separable(self, one: Separable, x_BHWC: Tensor) -> Tensor:
        found = self._separable(one, x_BHWC, None, 1.0)
        return super().separable(one, x_BHWC) if found is None else found[0]

    def accumulate_separable_(
        self, out_BHWC: Tensor, one: Separable, x_BHWC: Tensor, gate: float
    ) -> tuple[Tensor, Stats, Tensor | None]:
        found = self._separable(one, x_BHWC, out_BHWC, gate)
        return super().accumulate_separable_(out_BHWC, one, x_BHWC, gate) if found is None else (*found, None)

    def _separable(
        self, one: Separable, x_BHWC: Tensor, out_BHWC: Tensor | None, gate: float
    ) -> tuple[Tensor, Tensor] | None:
        """(z, its statistics), None where the kernels do not take it."""
        if not _prepares(one):
            return None
        batch, height, width, channels = x_BHWC.shape
        shape = batch, -(-height // one.stride), -(-width // one.stride), channels
        zs = [x_BHWC.new_empty(shape) for _ in range(one.stages)]
        stats = [_joined(given) for given in one.inner_stats]
        known = len(stats)
        stats += [x_BHWC.new_empty(2, channels) for _ in range(one.stages - known)]
        call = native.Separable(one.prepared, x_BHWC, one.dilation, one.stride, zs, stats, EPSILON)
        if not call.forward(known, out_BHWC, gate):
            return None
        one.release()
        one.inner_stats[known:] = stats[known:-1]
        one.inner_zs[:] = zs[:-1]
        return zs[-1], stats[-1]

    def separable_backward(
        self, one: Separable, x_BHWC: Tensor, dy_BHWC: Tensor, z_BHWC: Tensor, stats: Stats, sum_dy_C: Tensor | None,
        gate: float, grad: Tensor | None, weight_grads: Sequence[Tensor], *, need_x: bool,
    ) -> tuple[Tensor | float, Tensor | None]:  # fmt: skip
        gate_grad = None
        dx_BHWC = x_BHWC.new_empty(x_BHWC.shape) if need_x and grad is None else grad
        if _prepares(one):
            every = [_joined(known) for known in (*one.inner_stats, stats)]
            zs = [*one.inner_zs, z_BHWC]
            call = native.Separable(one.prepared, x_BHWC, one.dilation, one.stride, zs, every, EPSILON)
            gate_grad = call.backward(dy_BHWC, gate, dx_BHWC if need_x else None, grad is not None, weight_grads)
        if gate_grad is None:
            return super().separable_backward(
                one, x_BHWC, dy_BHWC, z_BHWC, stats, sum_dy_C, gate, grad, weight_grads, need_x=need_x
            )
        one.release()
        return gate_grad, dx_BHWC

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


def _prepares(one: Separable) -> bool:
    """Whether the kernels take these weights."""
    if one.prepared is None:
        one.prepared = native.SeparableWeights.of(one.weights) or False
    return one.prepared is not False


def _joined(stats: Stats) -> Tensor:
    """(mean, rstd) as [2, C]."""
    return stats if isinstance(stats, Tensor) else torch.stack(stats)


def primitives(impl: str) -> Reference:
    """The implementation by name: `native`, else plain PyTorch."""
    return Native() if impl == "native" else Reference()
