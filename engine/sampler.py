"""Alpha, and the paths that a step draws from it.

Shape suffixes: E edges, K ranks, O operations.

One draw serves all cells of a type, since they share alpha. The noise is a function of (seed, step) alone, so
a resumed search and every process of a distributed one draw the same paths. Sub-graphs exclude each other: on
every edge the K ranks are K different operations.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..kernels import library
from ..kernels.reference import gumbel_topk
from ..kernels.reference.philox import philox_uniform
from . import gates
from .config import SearchConfig
from .paths import CellPaths, Paths, Sample
from .space import SearchSpace

# Offsets of one step: cell types apart by 2**STREAM_BITS, steps by 2**STEP_BITS.
STREAM_BITS, STEP_BITS = 16, 20
SHUFFLE_STREAM = 8
ALPHA_SCALE = 1e-3
KERNEL_RELAXATIONS = ("masked", "shared", "soft")


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
        if self._in_one_launch():
            paths, indices_EK = self._draw_in_one_launch(alpha_EO, clock, stream, tau)
        else:
            scores_EO = torch.log_softmax(alpha_EO, -1)
            if config.noise == "gumbel":
                shape = (alpha_EO.shape[0], alpha_EO.shape[1])
                scores_EO = scores_EO + gumbel_topk.gumbel_noise(self._uniform(shape, clock, stream))
            indices_EK = gumbel_topk.top_k(scores_EO.detach(), self.k)
            soft_KEO = gates.relaxed(config, alpha_EO, scores_EO, indices_EK, tau)
            if config.mode == "union":
                values_EK = gates.mixed_values(config, alpha_EO, scores_EO, indices_EK, tau)
                paths = [gates.union(config, soft_KEO, values_EK, indices_EK)]
            else:
                paths = gates.subgraphs(config, soft_KEO, indices_EK, self._assignment(indices_EK, clock, stream))
        if config.gate == "score":
            log_probability = gumbel_topk.log_probability(torch.log_softmax(alpha_EO, -1), indices_EK.long()).sum()
        return paths, indices_EK, log_probability

    def _in_one_launch(self) -> bool:
        """Whether the kernel knows all that the draw asks for."""
        config = self.config
        return (
            self.impl == "triton" and config.gate in ("sampled", "score") and config.relaxation in KERNEL_RELAXATIONS
        )  # fmt: skip

    def _draw_in_one_launch(
        self, alpha_EO: Tensor, clock: Tensor, stream: int, tau: float | Tensor
    ) -> tuple[list[CellPaths], Tensor]:
        config = self.config
        tau = tau if isinstance(tau, Tensor) else torch.tensor(tau, dtype=alpha_EO.dtype, device=alpha_EO.device)
        indices_EK, gates_NEO, _ = library.gumbel_topk(
            alpha_EO, clock, tau, k=self.k, stream=stream, relaxation=config.relaxation, noise=config.noise == "gumbel",
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
