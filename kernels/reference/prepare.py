"""A cell's inputs before its edges: ReLU, 1x1 convolution (or FactorizedReduce), BatchNorm without weights.

Shape suffixes: B batch, H height, W width, C channels; maps are NHWC.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import batchnorm, conv


def prepare(x_BHWC: Tensor, weights: Sequence[Tensor], stats: batchnorm.Stats | None) -> tuple[Tensor, batchnorm.Stats]:
    """(normalised map, its statistics); given statistics are used again, so a second pass gives the same map.

    One weight [O, C] is a 1x1 convolution, two of [O / 2, C] are a FactorizedReduce.
    """
    stored = [weight.to(x_BHWC.dtype) for weight in weights]
    if len(stored) == 1:
        z_BHWO = conv.pointwise(torch.relu(x_BHWC), stored[0])
    else:
        z_BHWO = conv.factorized_reduce(x_BHWC, (stored[0], stored[1]), relu=True)
    if stats is None:
        stats = batchnorm.batch_stats(z_BHWO)
    return batchnorm.normalize_(z_BHWO, stats), stats


def prepared_grads(
    d_BHWO: Tensor,
    xhat_BHWO: Tensor,
    x_BHWC: Tensor,
    weights: Sequence[Tensor],
    stats: batchnorm.Stats,
    *,
    need_x: bool,
    need_w: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """(gradient of the input, gradients of the weights), None where not needed; overwrites d."""
    dz_BHWO = batchnorm.input_grad_from_xhat_(d_BHWO, xhat_BHWO, stats[1])
    if len(weights) == 1:
        return _pointwise_backward(dz_BHWO, x_BHWC, weights[0], None, need_x, need_w)
    dx_BHWC = torch.zeros_like(x_BHWC) if need_x else None
    half = weights[0].shape[0]
    grads: list[Tensor | None] = []
    for index, phase in enumerate(conv.phases_of_reduction(x_BHWC)):
        target = None if dx_BHWC is None else conv.phases_of_reduction(dx_BHWC)[index]
        part = dz_BHWO[..., index * half : (index + 1) * half]
        grads += _pointwise_backward(part, phase, weights[index], target, need_x, need_w)[1]
    return dx_BHWC, grads


def _pointwise_backward(
    dz_BHWO: Tensor, x_BHWC: Tensor, w_OC: Tensor, target: Tensor | None, need_x: bool, need_w: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """As above for one 1x1 convolution behind a ReLU; writes to `target` where one is given."""
    dw, passed = None, x_BHWC
    if need_w:
        passed = torch.relu(x_BHWC)
        dw = conv.pointwise_weight_grad(dz_BHWO, passed).to(w_OC.dtype)
    if not need_x:
        return None, [dw]
    da = conv.pointwise_input_grad(dz_BHWO, w_OC.to(dz_BHWO.dtype))
    torch.ops.aten.threshold_backward.grad_input(da, passed, 0, grad_input=da)
    return (da if target is None else target.copy_(da)), [dw]


def prepare_into(
    x_BHWI: Tensor, first_OI: Tensor, second_OI: Tensor | None, out_BHWO: Tensor, stats_2O: Tensor | None
) -> Tensor:
    """Statistics [2, O] of the map before BatchNorm, whose normalised form is written to `out`.

    The twin of `kernels.prepare.prepare_into`. Two weights are those of a FactorizedReduce.
    """
    weights = [first_OI] if second_OI is None else [first_OI, second_OI]
    given = None if stats_2O is None else (stats_2O[0].to(out_BHWO.dtype), stats_2O[1].to(out_BHWO.dtype))
    xhat, stats = prepare(x_BHWI, weights, given)
    out_BHWO.copy_(xhat)
    return torch.stack((stats[0], stats[1])) if stats_2O is None else stats_2O


def prepare_backward(
    d_BHWO: Tensor, xhat_BHWO: Tensor, x_BHWI: Tensor, first_OI: Tensor, second_OI: Tensor | None, stats_2O: Tensor,
    *, need_x: bool, need_w: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dx [B, H, W, I], dw [O, I] of both halves together), empty where not needed; twin of the kernels'."""
    weights = [first_OI] if second_OI is None else [first_OI, second_OI]
    stats = (stats_2O[0].to(x_BHWI.dtype), stats_2O[1].to(x_BHWI.dtype))
    dx, grads = prepared_grads(d_BHWO.clone(), xhat_BHWO, x_BHWI, weights, stats, need_x=need_x, need_w=need_w)
    found = [grad for grad in grads if grad is not None]
    return x_BHWI.new_empty(0) if dx is None else dx, torch.cat(found) if found else first_OI.new_empty(0)
