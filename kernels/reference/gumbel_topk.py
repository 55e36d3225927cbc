"""Gumbel-Top-K sampling and its relaxations, and all of it together: the twin of `kernels.gumbel_topk`.

Shape suffixes: E edges, K ranks, O operations, N networks (K sub-graphs, or the one network of mode `union`).

Sources: top-k of Gumbel-perturbed log-probabilities is a sample without replacement (Kool, van Hoof and
Welling 2019); `soft` is Xie and Ermon's continuous top-k (2019); the straight-through gate is GDAS' `hardwts`
(Dong and Yang 2019). Their combination per rank is our reconstruction.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .philox import philox_uniform

Relaxation = Literal["masked", "shared", "soft"]
Mode = Literal["union", "subgraphs"]
Assign = Literal["rank", "shuffle"]

# Counters of the noise: draws lie 2**STEP_BITS apart, streams (cell types) 2**STREAM_BITS, elements 1. The shuffle
# of a stream has counters of its own.
STREAM_BITS, STEP_BITS = 16, 20
SHUFFLE_STREAM = 8

UNIFORM_LOW = torch.finfo(torch.float32).tiny
UNIFORM_HIGH = 1 - 2.0**-24


def gumbel_noise(uniform_EO: Tensor) -> Tensor:
    """-log(-log u), fp32 in and out.

    u is clipped to [tiny, 1 - 2**-24] first: fp32 uniforms do yield 0, whose noise would be minus infinity. The
    logarithms are taken in fp64, so that all devices round to the same fp32 number.
    """
    clipped_EO = uniform_EO.clamp(UNIFORM_LOW, UNIFORM_HIGH).double()
    return (-torch.log(-torch.log(clipped_EO))).to(uniform_EO.dtype)


def top_k(scores_EO: Tensor, k: int) -> Tensor:
    """Indices of the k largest scores of each row, int64 [E, K], in decreasing order; ties go to the lowest index."""
    return torch.sort(scores_EO, dim=-1, descending=True, stable=True).indices[:, :k]


def relax(scores_EO: Tensor, indices_EK: Tensor, tau: float | Tensor, relaxation: Relaxation) -> Tensor:
    """Differentiable surrogate p[k, e, o] of "rank k of edge e is operation o", fp, rows summing to 1.

    Args:
        scores_EO: perturbed log-probabilities; the result is differentiable in them.
        indices_EK: their top K.
        tau: temperature, > 0.
        relaxation: `shared` is softmax(s / tau) for every rank; `masked` leaves out the ranks already taken
            (with k = K = O the last rank has p = 1 and no gradient); `soft` subtracts what earlier ranks
            took softly.

    Returns:
        Tensor [K, E, O].
    """
    num_ranks = indices_EK.shape[1]
    if relaxation == "shared":
        return torch.softmax(scores_EO / tau, -1).expand(num_ranks, -1, -1)
    if relaxation == "soft":
        return _soft_top_k(scores_EO, num_ranks, tau)
    taken_EO = torch.zeros_like(scores_EO, dtype=torch.bool)
    ranks = []
    for rank in range(num_ranks):
        ranks.append(torch.softmax(scores_EO.masked_fill(taken_EO, -torch.inf) / tau, -1))
        taken_EO = taken_EO.scatter(1, indices_EK[:, rank : rank + 1], True)
    return torch.stack(ranks)


def _soft_top_k(scores_EO: Tensor, num_ranks: int, tau: float | Tensor) -> Tensor:
    weights_EO = scores_EO
    ranks = []
    for _ in range(num_ranks):
        soft_EO = torch.softmax(weights_EO / tau, -1)
        ranks.append(soft_EO)
        weights_EO = weights_EO + torch.log(torch.clamp(1 - soft_EO, min=UNIFORM_LOW))
    return torch.stack(ranks)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """`hard` in value, `soft` in gradient."""
    return hard - soft.detach() + soft


def log_probability(log_p_EO: Tensor, indices_EK: Tensor) -> Tensor:
    """Plackett-Luce log P(i_1..i_K) of each edge, [E], differentiable in the log-probabilities.

    P = prod_k p_{i_k} / (1 - sum_{l<k} p_{i_l}) (Kool et al. 2019).
    """
    taken_EO = torch.zeros_like(log_p_EO, dtype=torch.bool)
    total_E = torch.zeros_like(log_p_EO[:, 0])
    for rank in range(indices_EK.shape[1]):
        column = indices_EK[:, rank : rank + 1]
        left_EO = log_p_EO.masked_fill(taken_EO, -torch.inf)
        total_E = total_E + log_p_EO.gather(1, column)[:, 0] - torch.logsumexp(left_EO, -1)
        taken_EO = taken_EO.scatter(1, column, True)
    return total_E


def masked_backward(soft_KEO: Tensor, grad_KEO: Tensor, tau: float | Tensor) -> Tensor:
    """Closed-form gradient of `masked` and `shared` gates in the log-probabilities, [E, O].

    sum_k p_k (V_k - <p_k, V_k>) / tau with V the gradient of the gates; rows sum to 0, so it is the gradient
    in alpha too.
    """
    inner_KE1 = (soft_KEO * grad_KEO).sum(-1, keepdim=True)
    return (soft_KEO * (grad_KEO - inner_KE1)).sum(0) / tau


def uniform(clock: Tensor, stream: int, rows: int, columns: int) -> Tensor:
    """The numbers in [0, 1) of one stream of a draw, fp32 [rows, columns]; clock: (seed, draw) int64 [2]."""
    offsets = torch.arange(rows * columns, device=clock.device).view(rows, columns)
    return philox_uniform(clock[0], (clock[1] << STEP_BITS) + (stream << STREAM_BITS) + offsets)


def _ranks(
    alpha_EO: Tensor, clock: Tensor, tau: Tensor, k: int, stream: int, relaxation: Relaxation, noise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(scores_EO, indices_EK, p_KEO)."""
    scores_EO = torch.log_softmax(alpha_EO, -1)
    if noise:
        scores_EO = scores_EO + gumbel_noise(uniform(clock, stream, *alpha_EO.shape))
    indices_EK = top_k(scores_EO.detach(), k)
    return scores_EO, indices_EK, relax(scores_EO, indices_EK, tau, relaxation)


def _places(indices_EK: Tensor, clock: Tensor, stream: int, mode: Mode, assign: Assign) -> Tensor:
    """The network that runs each rank, int64 [E, K]."""
    if mode == "union":
        return torch.zeros_like(indices_EK)
    edges, k = indices_EK.shape
    if assign == "rank":
        return torch.arange(k, device=indices_EK.device).expand(edges, k)
    order_EK = torch.argsort(uniform(clock, SHUFFLE_STREAM + stream, edges, k), dim=-1, stable=True)
    return torch.argsort(order_EK, dim=-1)


def gumbel_topk(
    alpha_EO: Tensor, clock: Tensor, tau: Tensor, *, k: int, stream: int, relaxation: Relaxation, noise: bool,
    mode: Mode, assign: Assign,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """K distinct operations on every edge, and their gates.

    `subgraphs`: network n runs one operation on each edge, with gate 1 in value and the gradient of its rank's
    relaxation; `assign` says whether network n takes rank n or each edge shuffles its ranks. `union`: the one
    network runs all K, with gate softmax(scores / tau) over them in value and the gradient of each operation's own
    relaxation.

    Args:
        alpha_EO: fp32 or fp64; at most 2**16 elements.
        clock: (seed, number of the draw), int64 [2].
        tau: temperature, > 0, [].
        stream: number of the cell type, below 8.
        noise: without it the operations are those of the largest alphas.

    Returns:
        indices_EK, int32: operations in the order of their ranks. gates_NEO, 0 where an operation does not run, carries
        the gradient to alpha. soft_NEO: the relaxations behind the gates; operations of `union` that do not run
        have the last rank's. No gradient flows through it.
    """
    scores_EO, indices_EK, p_KEO = _ranks(alpha_EO, clock, tau, k, stream, relaxation, noise)
    chosen_KEO = torch.zeros_like(p_KEO).scatter(2, indices_EK.T[:, :, None], 1.0)
    if mode == "union":
        own_EK = p_KEO.permute(1, 0, 2).gather(2, indices_EK[:, :, None])[:, :, 0]
        soft_NEO = p_KEO[-1].scatter(1, indices_EK, own_EK)[None]
        values_EK = torch.softmax(scores_EO.detach().gather(1, indices_EK) / tau, -1)
        hard_NEO = torch.zeros_like(scores_EO).scatter(1, indices_EK, values_EK)[None]
        existing_NEO = chosen_KEO.sum(0, keepdim=True)
    else:
        order_EK = torch.argsort(_places(indices_EK, clock, stream, mode, assign), dim=-1)
        order_KEO = order_EK.T[:, :, None].expand_as(p_KEO)
        soft_NEO = p_KEO.gather(0, order_KEO)
        existing_NEO = hard_NEO = chosen_KEO.gather(0, order_KEO)
    gates_NEO = straight_through(hard_NEO.detach(), soft_NEO) * existing_NEO
    return indices_EK.int(), gates_NEO, soft_NEO.detach()
