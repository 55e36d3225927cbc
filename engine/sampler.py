"""Alpha, and the paths that a step draws from it.

Shape suffixes: E edges, K ranks, O operations.

One draw serves all cells of a type, since they share alpha. The noise is a function of (seed, step) alone, so
a resumed search and every process of a distributed one draw the same paths. Sub-graphs exclude each other: on
every edge the K ranks are K different operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..kernels import library
from ..kernels.reference import gumbel_topk
from ..kernels.reference.philox import philox_uniform
from .config import SearchConfig
from .space import SearchSpace

# Offsets of one step: cell types apart by 2**STREAM_BITS, steps by 2**STEP_BITS.
STREAM_BITS, STEP_BITS = 16, 20
SHUFFLE_STREAM = 8
ALPHA_SCALE = 1e-3


@dataclass(frozen=True)
class CellPaths:
    """What one network runs in every cell of a type.

    Attributes:
        indices_EK: for each edge the numbers of the operations that exist, integers; -1 stands for none.
        gates_EO: their gates, 0 elsewhere; carries the gradient to alpha.
        shadows: whether backward shall also find the gate gradients of operations that do not exist.
    """

    indices_EK: Tensor
    gates_EO: Tensor
    shadows: bool = False

    @cached_property
    def operations(self) -> tuple[tuple[int, ...], ...]:
        """The same numbers on the host; waits for the device."""
        return tuple(tuple(index for index in row if index >= 0) for row in self.indices_EK.tolist())

    @cached_property
    def gate_values(self) -> list[list[float]]:
        """The gates on the host; waits for the device."""
        return self.gates_EO.tolist()


Paths = Mapping[str, CellPaths]


@dataclass(frozen=True, slots=True)
class Sample:
    """One draw.

    Attributes:
        networks: the K sub-graphs, or the one network of mode `union`; paths by cell type.
        indices: sampled operations in rank order, int64 [E, K] by cell type.
        log_probability: log P of the draw under Plackett-Luce, [] (sum over edges and types), or None
            where no estimator asks for it.
    """

    networks: tuple[Paths, ...]
    indices: Mapping[str, Tensor]
    log_probability: Tensor | None


class Sampler(nn.Module):
    """Holds alpha (fp32 [E, O] for each cell type, init 1e-3 * N(0, 1) as DARTS and GDAS) and draws from it.

    Args:
        space: the operations and cell types.
        config: k, mode, assign, noise, relaxation, gate and seed are read.
        impl: `triton` draws in one kernel where the gate's estimator allows it.

    Attributes:
        k: operations per edge of the draws to come; the configuration's at first.
    """

    def __init__(self, space: SearchSpace, config: SearchConfig, *, impl: str = "reference") -> None:
        super().__init__()
        self.space, self.config, self.impl = space, config, impl
        self.k = config.k
        generator = torch.Generator().manual_seed(config.seed + 1)
        self.alpha = nn.ParameterDict(
            {
                spec.kind: nn.Parameter(
                    ALPHA_SCALE * torch.randn(len(spec.edges), space.num_operations, generator=generator)
                )
                for spec in space.cells
            }
        )

    def probabilities(self) -> dict[str, Tensor]:
        """softmax(alpha) [E, O] by cell type, detached."""
        return {kind: torch.softmax(alpha.detach(), -1) for kind, alpha in self.alpha.items()}

    def _uniform(self, shape: tuple[int, int], clock: Tensor, stream: int) -> Tensor:
        count = shape[0] * shape[1]
        assert count <= 1 << STREAM_BITS
        start = (clock[1] << STEP_BITS) + (stream << STREAM_BITS)
        offsets = start + torch.arange(count, device=clock.device)
        return philox_uniform(self.config.seed, offsets).view(shape)

    def clock(self, draw: int) -> Tensor:
        """(seed, number of the draw) int64 [2] on alpha's device."""
        device = next(self.parameters()).device
        return torch.tensor([self.config.seed, draw], dtype=torch.int64, device=device)

    def draw(self, clock: int | Tensor, tau: float | Tensor, *, grad: bool) -> Sample:
        """The paths of one step; nothing here waits for the device.

        Args:
            clock: number of the draw (every draw of a search has its own), or `clock(number)`.
            tau: temperature of the relaxation, > 0; a number or a tensor [] of alpha's dtype.
            grad: whether the gates (and the log-probability) shall lead to alpha.
        """
        if isinstance(clock, int):
            clock = self.clock(clock)
        with torch.set_grad_enabled(grad):
            draws = {
                spec.kind: self._draw_cell(spec.kind, clock, number, tau)
                for number, spec in enumerate(self.space.cells)
            }
        networks = tuple(
            {kind: paths[number] for kind, (paths, _, _) in draws.items()}
            for number in range(len(next(iter(draws.values()))[0]))
        )
        log_probability = None
        if grad and self.config.gate == "score":
            log_probability = torch.stack([log_p for _, _, log_p in draws.values() if log_p is not None]).sum()
        return Sample(networks, {kind: indices for kind, (_, indices, _) in draws.items()}, log_probability)

    def _draw_cell(
        self, kind: str, clock: Tensor, stream: int, tau: float | Tensor
    ) -> tuple[list[CellPaths], Tensor, Tensor | None]:
        config, alpha_EO = self.config, self.alpha[kind]
        log_probability = None
        if self.impl == "triton" and config.gate in ("sampled", "score"):
            paths, indices_EK = self._draw_in_one_launch(alpha_EO, clock, stream, tau)
        else:
            scores_EO = torch.log_softmax(alpha_EO, -1)
            if config.noise:
                shape = (alpha_EO.shape[0], alpha_EO.shape[1])
                scores_EO = scores_EO + gumbel_topk.gumbel_noise(self._uniform(shape, clock, stream))
            indices_EK = gumbel_topk.top_k(scores_EO.detach(), self.k)
            if config.mode == "union":
                paths = [self._union(alpha_EO, scores_EO, indices_EK, tau)]
            else:
                order_EK = self._assignment(indices_EK, clock, stream)
                paths = self._subgraphs(alpha_EO, scores_EO, indices_EK, order_EK, tau)
        if config.gate == "score":
            log_probability = gumbel_topk.log_probability(torch.log_softmax(alpha_EO, -1), indices_EK.long()).sum()
        return paths, indices_EK, log_probability

    def _draw_in_one_launch(
        self, alpha_EO: Tensor, clock: Tensor, stream: int, tau: float | Tensor
    ) -> tuple[list[CellPaths], Tensor]:
        config = self.config
        tau = tau if isinstance(tau, Tensor) else torch.tensor(tau, dtype=alpha_EO.dtype, device=alpha_EO.device)
        indices_EK, gates_NEO, _ = library.gumbel_topk(
            alpha_EO, clock, tau, k=self.k, stream=stream, relaxation=config.relaxation, noise=config.noise,
            mode=config.mode, assign=config.assign,
        )  # fmt: skip
        if config.gate == "score":
            gates_NEO = gates_NEO.detach()
        if config.mode == "union":
            return [CellPaths(indices_EK, gates_NEO[0])], indices_EK
        chosen_EN = gates_NEO.detach().argmax(-1).T if config.assign == "shuffle" else indices_EK
        networks = [CellPaths(chosen_EN[:, n : n + 1], gates_NEO[n]) for n in range(self.k)]
        return networks, indices_EK

    def _assignment(self, indices_EK: Tensor, clock: Tensor, stream: int) -> Tensor:
        """Which rank each sub-graph takes on each edge, [E, K]."""
        num_edges, k = indices_EK.shape
        if self.config.assign == "rank":
            return torch.arange(k, device=indices_EK.device).expand(num_edges, k)
        uniform_EK = self._uniform((num_edges, k), clock, SHUFFLE_STREAM + stream)
        return torch.argsort(uniform_EK, dim=-1, stable=True)

    def _subgraphs(
        self, alpha_EO: Tensor, scores_EO: Tensor, indices_EK: Tensor, order_EK: Tensor, tau: float | Tensor
    ) -> list[CellPaths]:
        """Network n runs the operation of rank order[e, n] on edge e, with gate 1 in value."""
        if self.config.gate == "restricted":
            soft_EO = _restricted_softmax(alpha_EO, indices_EK)
            soft_KEO = soft_EO.expand(indices_EK.shape[1], -1, -1)
        else:
            soft_KEO = gumbel_topk.relax(scores_EO, indices_EK, tau, self.config.relaxation)
        edges_E = torch.arange(indices_EK.shape[0], device=indices_EK.device)
        paths = []
        for number in range(indices_EK.shape[1]):
            rank_E = order_EK[:, number]
            chosen_E1 = indices_EK.gather(1, rank_E[:, None])
            hard_EO = torch.zeros_like(soft_KEO[0]).scatter(1, chosen_E1, 1.0)
            paths.append(self._paths(hard_EO, soft_KEO[rank_E, edges_E], chosen_E1))
        return paths

    def _union(self, alpha_EO: Tensor, scores_EO: Tensor, indices_EK: Tensor, tau: float | Tensor) -> CellPaths:
        """One network with the K operations of every edge, weighted by softmax over them.

        Value softmax(s_S / tau), gradient that of each operation's own relaxed gate: with K = 1 that is
        GDAS, with K = O, `shared`, tau 1 and no noise the dense mixture of DARTS (the combination is ours).
        """
        if self.config.gate == "restricted":
            soft_EO = hard_EO = _restricted_softmax(alpha_EO, indices_EK)
        else:
            soft_KEO = gumbel_topk.relax(scores_EO, indices_EK, tau, self.config.relaxation)
            # Operations that were not sampled take the relaxed gate of the last rank (ours).
            own_EK = soft_KEO.permute(1, 0, 2).gather(2, indices_EK[:, :, None])[:, :, 0]
            soft_EO = soft_KEO[-1].scatter(1, indices_EK, own_EK)
            values_EK = torch.softmax(scores_EO.gather(1, indices_EK) / tau, -1).detach()
            hard_EO = torch.zeros_like(scores_EO).scatter(1, indices_EK, values_EK)
        return self._paths(hard_EO, soft_EO, indices_EK)

    def _paths(self, hard_EO: Tensor, soft_EO: Tensor, chosen_EK: Tensor) -> CellPaths:
        gate = self.config.gate
        hard_EO = hard_EO.detach()
        gates_EO = hard_EO if gate == "score" else gumbel_topk.straight_through(hard_EO, soft_EO)
        if gate != "recompute":
            existing_EO = torch.zeros_like(hard_EO, dtype=torch.bool).scatter(1, chosen_EK, True)
            gates_EO = gates_EO * existing_EO
        return CellPaths(chosen_EK, gates_EO, shadows=gate == "recompute" and gates_EO.requires_grad)

    def mixture(self) -> Paths:
        """All operations weighted by softmax(alpha), without gradient: the dense super-net."""
        num = self.space.num_operations
        return {
            kind: CellPaths(torch.arange(num, device=gates_EO.device).expand(len(gates_EO), num), gates_EO)
            for kind, gates_EO in self.probabilities().items()
        }

    @torch.no_grad()
    def renormalise_(self, before: Mapping[str, Tensor], sample: Sample) -> None:
        """After a `restricted` step: shift the sampled alphas so that the other operations keep their probability.

        ProxylessNAS' rule for two paths, for any K: subtract log(sum_S e^new / sum_S e^old).
        """
        for kind, indices_EK in sample.indices.items():
            alpha_EO = self.alpha[kind]
            new_E1 = torch.logsumexp(alpha_EO.gather(1, indices_EK), 1, keepdim=True)
            old_E1 = torch.logsumexp(before[kind].gather(1, indices_EK), 1, keepdim=True)
            alpha_EO.scatter_add_(1, indices_EK, (old_E1 - new_E1).expand_as(indices_EK).contiguous())


def _restricted_softmax(alpha_EO: Tensor, indices_EK: Tensor) -> Tensor:
    """Softmax over the sampled operations only, 0 elsewhere, [E, O]."""
    soft_EK = torch.softmax(alpha_EO.gather(1, indices_EK), -1)
    return torch.zeros_like(alpha_EO).scatter(1, indices_EK, soft_EK)


def fixed_paths(space: SearchSpace, chosen: Mapping[str, tuple[tuple[int, ...], ...]], device: torch.device) -> Paths:
    """Paths of a network that is not sampled: the given operations of each edge with gate 1."""
    paths = {}
    for kind, rows in chosen.items():
        width = max(1, *(len(row) for row in rows))
        padded = [(*row, *[-1] * (width - len(row))) for row in rows]
        indices_EK = torch.tensor(padded, device=device)
        gates_EO = torch.zeros(len(rows), space.num_operations, device=device)
        for row, columns in enumerate(rows):
            gates_EO[row, list(columns)] = 1.0
        paths[kind] = CellPaths(indices_EK, gates_EO)
    return paths
