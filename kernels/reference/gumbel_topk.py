"""Gumbel-Top-K sampling and its relaxations.

Shape suffixes: E edges, K ranks, O operations.

Sources: top-k of Gumbel-perturbed log-probabilities is a sample without replacement (Kool, van Hoof and
Welling 2019); `soft` is Xie and Ermon's continuous top-k (2019); the straight-through gate is GDAS' `hardwts`
(Dong and Yang 2019). Their combination per rank is our reconstruction.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Relaxation = Literal["masked", "shared", "soft"]

UNIFORM_LOW = torch.finfo(torch.float32).tiny
UNIFORM_HIGH = 1 - 2.0**-24


def gumbel_noise(uniform_EO: Tensor) -> Tensor:
    """-log(-log u), fp32 in and out.

    u is clipped to [tiny, 1 - 2**-24] first: fp32 uniforms do yield 0, whose noise would be minus infinity.
    """
    return -torch.log(-torch.log(uniform_EO.clamp(UNIFORM_LOW, UNIFORM_HIGH)))


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
