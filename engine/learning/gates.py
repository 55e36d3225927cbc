"""From perturbed scores and the operations that they chose to the gates of each network.

Shape suffixes: E edges, K ranks, O operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.reference import gumbel_topk
from ..settings.config import SearchConfig
from ..supernet.paths import CellPaths


def relaxed(
    config: SearchConfig, logits_EO: Tensor, scores_EO: Tensor, indices_EK: Tensor, tau: float | Tensor
) -> Tensor:
    """Surrogate [K, E, O] whose gradient the gate of each rank has.

    Args:
        config: gate and relaxation are read.
        logits_EO: alpha, minus infinity where an operation is no candidate.
        scores_EO: perturbed log-probabilities.
        indices_EK: sampled operations in rank order.
        tau: temperature.

    `restricted` and `plain` are ProxylessNAS' softmax over the sampled pair and over all operations (Cai, Zhu and
    Han 2019), `sigmoid` is FairDARTS' (Chu et al. 2020); the others are `gumbel_topk.relax`.
    """
    ranks = indices_EK.shape[1]
    if config.gate == "restricted":
        return _restricted_softmax(logits_EO, indices_EK).expand(ranks, -1, -1)
    if config.relaxation == "plain":
        return torch.softmax(logits_EO, -1).expand(ranks, -1, -1)
    if config.relaxation == "sigmoid":
        return torch.sigmoid(logits_EO).expand(ranks, -1, -1)
    return gumbel_topk.relax(scores_EO, indices_EK, tau, config.relaxation)


def _restricted_softmax(logits_EO: Tensor, indices_EK: Tensor) -> Tensor:
    """Softmax over the sampled operations only, 0 elsewhere, [E, O]."""
    soft_EK = torch.softmax(logits_EO.gather(1, indices_EK), -1)
    return torch.zeros_like(logits_EO).scatter(1, indices_EK, soft_EK)


def subgraphs(config: SearchConfig, soft_KEO: Tensor, indices_EK: Tensor, order_EK: Tensor) -> list[CellPaths]:
    """Network n runs the operation of rank order[e, n] on edge e, with gate 1 in value."""
    edges_E = torch.arange(indices_EK.shape[0], device=indices_EK.device)
    paths = []
    for number in range(indices_EK.shape[1]):
        rank_E = order_EK[:, number]
        chosen_E1 = indices_EK.gather(1, rank_E[:, None])
        hard_EO = torch.zeros_like(soft_KEO[0]).scatter(1, chosen_E1, 1.0)
        paths.append(_paths(config, hard_EO, soft_KEO[rank_E, edges_E], chosen_E1))
    return paths


def union(config: SearchConfig, soft_KEO: Tensor, values_EK: Tensor, indices_EK: Tensor) -> CellPaths:
    """One network with the K operations of every edge.

    Gate `values` in value, gradient that of each operation's own relaxed gate; operations that were not sampled take
    that of the last rank (ours).
    """
    own_EK = soft_KEO.permute(1, 0, 2).gather(2, indices_EK[:, :, None])[:, :, 0]
    soft_EO = soft_KEO[-1].scatter(1, indices_EK, own_EK)
    hard_EO = torch.zeros_like(soft_EO).scatter(1, indices_EK, values_EK.detach())
    return _paths(config, hard_EO, soft_EO, indices_EK)


def mixed_values(
    config: SearchConfig, logits_EO: Tensor, scores_EO: Tensor, indices_EK: Tensor, tau: float | Tensor
) -> Tensor:
    """Shares [E, K] of the sampled operations in a union's weighted sum.

    Softmax of their scores over tau: with K = 1 that is GDAS, with K = O, `shared`, tau 1 and no noise the dense
    mixture of DARTS (the combination is ours). `plain` and the gate `restricted` have neither noise nor tau;
    `sigmoid` is each operation's own, whatever the others' are.
    """
    chosen_EK = logits_EO.gather(1, indices_EK)
    if config.relaxation == "sigmoid":
        return torch.sigmoid(chosen_EK)
    if config.gate == "restricted" or config.relaxation == "plain":
        return torch.softmax(chosen_EK, -1)
    return torch.softmax(scores_EO.gather(1, indices_EK) / tau, -1)


def _paths(config: SearchConfig, hard_EO: Tensor, soft_EO: Tensor, chosen_EK: Tensor) -> CellPaths:
    hard_EO = hard_EO.detach()
    gates_EO = hard_EO if config.gate == "score" else gumbel_topk.straight_through(hard_EO, soft_EO)
    if config.gate != "recompute":
        existing_EO = torch.zeros_like(hard_EO, dtype=torch.bool).scatter(1, chosen_EK, True)
        gates_EO = gates_EO * existing_EO
    return CellPaths(chosen_EK, gates_EO, shadows=config.gate == "recompute" and gates_EO.requires_grad)
