"""Which operations a draw takes: functions of its clock and of alpha, without a gradient.

Shape suffixes: E edges, K ranks, O operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.reference import gumbel_topk
from ...kernels.reference.philox import philox_uniform
from ..settings.config import SearchConfig
from ..spaces.space import CellSpec

# Offsets of one step: cell types apart by 2**STREAM_BITS, steps by 2**STEP_BITS.
STREAM_BITS, STEP_BITS = gumbel_topk.STREAM_BITS, gumbel_topk.STEP_BITS
SHUFFLE_STREAM = gumbel_topk.SHUFFLE_STREAM
# Places within a cell type's stream, for what is drawn beside the Gumbel noise at 0.
OTHERS_AT, ACTIVE_AT, EDGES_AT, DIRICHLET_AT = (number << 12 for number in range(1, 5))

Part = Literal["alpha", "weight"]
PARTS: tuple[Part, ...] = ("alpha", "weight")


@dataclass(frozen=True, slots=True)
class Rule:
    """How a step of one part draws.

    Attributes:
        k: operations per edge.
        mode: `union` or `subgraphs`.
        others: whether ranks below the first follow the scores or are uniform over what is left.
        forward: whether a union sums all of its operations or one of them, drawn.
        with_none: whether `none` is drawn where it is a candidate.
    """

    k: int
    mode: str
    others: str
    forward: str
    with_none: bool = True


def rule_of(config: SearchConfig, part: Part, k: int) -> Rule:
    """The rule of a step on alpha or on the weights, with at most `k` operations per edge."""
    if part == "alpha":
        return Rule(k, config.mode, "ranked", config.forward)
    mode = config.mode if config.mode_weights == "same" else config.mode_weights
    return Rule(min(k, config.k_weights or k), mode, config.others_weights, "mixed", config.none_weights)


def uniform(seed: int, clock: Tensor, stream: int, shape: tuple[int, int], at: int = 0) -> Tensor:
    """Numbers in [0, 1) from place `at` of one stream of a draw, fp32; `clock` is (seed, number of the draw) [2]."""
    count = shape[0] * shape[1]
    start = first_counter(clock, stream, at, count)
    return philox_uniform(seed, start + torch.arange(count, device=clock.device)).view(shape)


def first_counter(clock: Tensor, stream: int, at: int, count: int) -> Tensor:
    """The counter [] of place `at` in one stream of a draw, which has room for `count` from there."""
    assert at + count <= 1 << STREAM_BITS
    return (clock[1] << STEP_BITS) + (stream << STREAM_BITS) + at


def concentration(alpha_EO: Tensor) -> Tensor:
    """elu(alpha) + 1, of DrNAS' Dirichlet distributions (Chen et al. 2021)."""
    return F.elu(alpha_EO) + 1


def divergence_from_uniform(concentration_EO: Tensor, alive_EO: Tensor) -> Tensor:
    """Sum over edges of KL(Dirichlet(concentration) || Dirichlet(1)) among the operations that are alive, []."""
    c_EO = torch.where(alive_EO, concentration_EO, 1.0)
    total_E = torch.where(alive_EO, c_EO, 0.0).sum(-1)
    terms_EO = (c_EO - 1) * (torch.digamma(c_EO) - torch.digamma(total_E)[:, None]) - torch.lgamma(c_EO)
    return (torch.lgamma(total_E) - torch.lgamma(alive_EO.sum(-1)) + terms_EO.sum(-1)).sum()


def uniform_others(indices_EK: Tensor, alive_EO: Tensor, uniform_EO: Tensor) -> Tensor:
    """The first ranks as they are, the others distinct and uniform over what is alive and left, int64 [E, K]."""
    free_EO = alive_EO.scatter(1, indices_EK[:, :1], False)
    others = gumbel_topk.top_k(torch.where(free_EO, uniform_EO, -1.0), indices_EK.shape[1] - 1)
    return torch.cat([indices_EK[:, :1], others], 1)


def kept_edges(spec: CellSpec, uniform_E: Tensor, count: int) -> Tensor:
    """`count` incoming edges of each node, uniform without replacement; all where there are fewer. Bool [E]."""
    kept_E = torch.zeros_like(uniform_E, dtype=torch.bool)
    for node in range(spec.inputs, spec.num_states):
        rows = [row for row, edge in enumerate(spec.edges) if edge.target == node]
        # A slice: an index list would be copied from the host in every draw.
        incoming = slice(rows[0], rows[-1] + 1)
        order = torch.argsort(uniform_E[incoming], stable=True)[:count]
        kept_E[incoming] = torch.zeros_like(kept_E[incoming]).scatter(0, order, True)
    return kept_E


def active_ranks(logits_EO: Tensor, indices_EK: Tensor, uniform_EK: Tensor) -> Tensor:
    """1 for one of each edge's K operations, 0 for the others [E, K]: drawn by the softmax of their logits.

    ProxylessNAS' second draw, among the two paths of the first (Cai, Zhu and Han 2019, section 3.2.2).
    """
    scores_EK = logits_EO.gather(1, indices_EK) + gumbel_topk.gumbel_noise(uniform_EK)
    one_E1 = gumbel_topk.top_k(scores_EK, 1)
    return torch.zeros_like(scores_EK).scatter(1, one_E1, 1.0)


def by_node(spec: CellSpec, beta_E: Tensor) -> Tensor:
    """Softmax of beta over the incoming edges of each node [E]: PC-DARTS' edge normalisation (Xu et al. 2020)."""
    counts = [sum(edge.target == node for edge in spec.edges) for node in range(spec.inputs, spec.num_states)]
    return torch.cat([torch.softmax(part, -1) for part in beta_E.split(counts)])
