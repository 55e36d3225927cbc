"""Samples of Dirichlet distributions from counters, differentiable in the concentrations.

Shape suffixes: E rows, O columns, T tries.

A gamma variate of shape a is one of shape a + 1 times u**(1/a) (Stuart's boost), and that one is Marsaglia and
Tsang's (A Simple Method for Generating Gamma Variables, 2000), whose rejections are replaced by a fixed number of
tries: nothing waits for the device, and a sample is a function of its counters. The pathwise derivative is torch's
own (`torch._dirichlet_grad`, which torch.distributions.Dirichlet.rsample uses).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .philox import philox_uniform

# A try fails with probability below 0.05, the worst at shape 1, so that all do with one below 1e-10.
TRIES = 8
NUMBERS = 3 * TRIES + 1
UNIFORM_LOW = torch.finfo(torch.float32).tiny


def log_dirichlet(concentration_EO: Tensor, seed: int, start: Tensor) -> Tensor:
    """Log of one sample per row [E, O], in the concentrations' dtype and differentiable in them.

    Args:
        concentration_EO: above 0.
        seed: key of the counters.
        start: first counter, int64 []; E * O * NUMBERS of them are used.
    """
    shape = (*concentration_EO.shape, NUMBERS)
    offsets = start + torch.arange(math.prod(shape), device=concentration_EO.device)
    u_EON = philox_uniform(seed, offsets).view(shape).clamp_min(UNIFORM_LOW).double()
    with torch.no_grad():
        log_EO = torch.log_softmax(_log_gamma(concentration_EO.detach().double(), u_EON), -1)
    found: Tensor = _LogDirichlet.apply(concentration_EO, log_EO.to(concentration_EO.dtype))
    return found


def _log_gamma(shape_EO: Tensor, u_EON: Tensor) -> Tensor:
    """Log of a gamma variate of each shape from NUMBERS uniform ones."""
    angle_EOT, radius_EOT, accept_EOT = (u_EON[..., n * TRIES : (n + 1) * TRIES] for n in range(3))
    normal_EOT = torch.sqrt(-2 * torch.log(radius_EOT)) * torch.cos(2 * math.pi * angle_EOT)
    d_EO1 = (shape_EO + 2 / 3)[..., None]
    root_EOT = 1 + normal_EOT / torch.sqrt(9 * d_EO1)
    log_v_EOT = 3 * torch.log(root_EOT.clamp_min(UNIFORM_LOW))
    bound_EOT = normal_EOT**2 / 2 + d_EO1 * (1 - log_v_EOT.exp() + log_v_EOT)
    accepted_EOT = (root_EOT > 0) & (torch.log(accept_EOT) < bound_EOT)
    first_EO1 = accepted_EOT.to(torch.int8).argmax(-1, keepdim=True)
    log_boosted_EO = (torch.log(d_EO1) + log_v_EOT.gather(-1, first_EO1))[..., 0]
    return log_boosted_EO + torch.log(u_EON[..., -1]) / shape_EO


class _LogDirichlet(torch.autograd.Function):
    """The sample in value, its pathwise derivative in gradient."""

    @staticmethod
    def forward(ctx: Any, concentration_EO: Tensor, log_EO: Tensor) -> Tensor:
        ctx.save_for_backward(concentration_EO, log_EO)
        return log_EO.clone()

    @staticmethod
    def backward(ctx: Any, grad_EO: Tensor) -> tuple[Tensor, None]:
        concentration_EO, log_EO = ctx.saved_tensors
        tiny = torch.finfo(log_EO.dtype).tiny
        x_EO = log_EO.exp().clamp_min(tiny)
        # Of x's gradient dL/dlog x / x, less what keeps the row's sum at 1.
        centred_EO = grad_EO / x_EO - grad_EO.sum(-1, keepdim=True)
        total_EO = concentration_EO.sum(-1, keepdim=True).expand_as(concentration_EO)
        return torch._dirichlet_grad(x_EO, concentration_EO, total_EO) * centred_EO, None
