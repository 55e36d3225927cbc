"""Any differentiable function as an autograd Function that keeps its input only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class RecomputeFunction(torch.autograd.Function):
    """apply(function, x, *weights) -> function(x, *weights), run again under autograd in backward.

    `function` must be deterministic and without side effects (BatchNorm by batch statistics only).
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], x: Tensor, *weights: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(x, *weights)
        return function(x, *weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:]
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needs, strict=True)]
            y = ctx.function(*leaves)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        grads = iter(torch.autograd.grad(y, wanted, dy))
        return (None, *(next(grads) if need else None for need in needs))
