"""Alpha, and the paths that a step draws from it.

Shape suffixes: E edges, K ranks, O operations.

One draw serves all cells of a type, since they share alpha. The noise is a function of (seed, step) alone, so
a resumed search and every process of a distributed one draw the same paths. Sub-graphs exclude each other: on
every edge the K ranks are K different operations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...kernels import library
from ...kernels.reference import dirichlet, gumbel_topk
from ..settings.config import SearchConfig
from ..spaces.space import ZERO, CellSpec, SearchSpace
from ..supernet.paths import CellPaths, Paths, Sample
from . import draws, gates
from .draws import Part, Rule

KERNEL_RELAXATIONS = ("masked", "shared", "soft")


class Sampler(nn.Module):
    """Holds alpha, beta and which operations are alive, and draws from them.

    Args:
        space: the operations and cell types.
        config: the keys of the draw and its gates, and seed, are read.
        impl: `triton` draws in one kernel where that knows all that is asked for.

    Attributes:
        alpha: fp32 [E, O] for each cell type, init alpha_scale * N(0, 1) (1e-3 as DARTS and GDAS).
        beta: fp32 [E] for each cell type, init 1e-3 * N(0, 1) (PC-DARTS); empty without `edge_norm`.
        k: operations per edge of the draws to come, at most; the configuration's at first.
        num_alive: candidates of the edge that has the most; fewer than O where some were dropped or left out.
    """

    def __init__(self, space: SearchSpace, config: SearchConfig, *, impl: str = "reference") -> None:
        super().__init__()
        self.space, self.config, self.impl = space, config, impl
        self.k = config.k
        generator = torch.Generator().manual_seed(config.seed + 1)
        self.alpha = nn.ParameterDict(
            {spec.kind: nn.Parameter(self._first_alpha(spec, generator)) for spec in space.cells}
        )
        self.beta = nn.ParameterDict(
            {spec.kind: nn.Parameter(1e-3 * torch.randn(len(spec.edges), generator=generator)) for spec in space.cells}
            if config.edge_norm
            else {}
        )
        for spec in space.cells:
            alive_EO = torch.ones(len(spec.edges), space.num_operations, dtype=torch.bool)
            if not config.with_none and ZERO in space.operations:
                alive_EO[:, space.operations.index(ZERO)] = False
            for edge, columns in enumerate(space.excluded(spec.kind)):
                alive_EO[edge, list(columns)] = False
            self.register_buffer(f"alive_{spec.kind}", alive_EO)
        self.num_alive = space.candidates_per_edge(with_none=config.with_none)
        self.register_load_state_dict_post_hook(_count_alive)

    def _first_alpha(self, spec: CellSpec, generator: torch.Generator) -> Tensor:
        return self.config.alpha_scale * torch.randn(len(spec.edges), self.space.num_operations, generator=generator)

    def alive(self, kind: str) -> Tensor:
        """Which operations are candidates, bool [E, O]."""
        alive_EO = self.get_buffer(f"alive_{kind}")
        return alive_EO

    def _without_none(self, alive_EO: Tensor) -> Tensor:
        """The candidates but `none`, bool [E, O]."""
        alive_EO = alive_EO.clone()
        if ZERO in self.space.operations:
            alive_EO[:, self.space.operations.index(ZERO)] = False
        return alive_EO

    @property
    def everything_alive(self) -> bool:
        """Whether every operation is a candidate on every edge."""
        return self.num_alive == self.space.num_operations and not self.space.candidates

    def logits(self, kind: str) -> Tensor:
        """Alpha [E, O], minus infinity where an operation is no candidate."""
        alpha_EO = self.alpha[kind]
        if self.everything_alive:
            return alpha_EO
        return alpha_EO.masked_fill(~self.alive(kind), -torch.inf)

    def probabilities(self) -> dict[str, Tensor]:
        """softmax(alpha), or sigmoid(alpha) with that relaxation, [E, O] by cell type; 0 for no candidate, detached."""
        function = torch.sigmoid if self.config.relaxation == "sigmoid" else _softmax
        return {kind: function(self.logits(kind).detach()) for kind in self.alpha}

    def penalty(self) -> Tensor | None:
        """What a step on alpha adds to the cross-entropy [], None for nothing.

        `zero_one` times FairDARTS' loss (Chu et al. 2020), the negative mean of (sigmoid(alpha) - 1/2)^2 over all
        candidates of all cells, and `alpha_kl` times DrNAS' divergence of Dirichlet(elu(alpha) + 1) from Dirichlet(1)
        (Chen et al. 2021), summed over the edges.
        """
        config, terms = self.config, []
        pairs = [(self.alpha[kind], self.alive(kind)) for kind in self.alpha]
        if config.zero_one:
            squares = [((torch.sigmoid(alpha) - 0.5) ** 2).where(alive, 0.0).sum() for alpha, alive in pairs]
            every = [names for kind in self.alpha for names in self.space.names_of(kind)]
            count = sum(min(self.num_alive, len(names)) for names in every)
            terms.append(-config.zero_one / count * torch.stack(squares).sum())
        if config.alpha_kl:
            away = [draws.divergence_from_uniform(draws.concentration(alpha), alive) for alpha, alive in pairs]
            terms.append(config.alpha_kl * torch.stack(away).sum())
        return torch.stack(terms).sum() if terms else None

    def edge_weights(self, kind: str) -> Tensor | None:
        """Weight of each edge in its node's sum [E], None for 1 each."""
        return draws.by_node(self.space.cell(kind), self.beta[kind]) if self.beta else None

    def clock(self, draw: int) -> Tensor:
        """(seed, number of the draw) int64 [2] on alpha's device."""
        device = next(self.parameters()).device
        return torch.tensor([self.config.seed, draw], dtype=torch.int64, device=device)

    def draw(self, clock: int | Tensor, tau: float | Tensor, *, grad: bool, part: Part = "alpha") -> Sample:
        """The paths of one step; nothing here waits for the device.

        Args:
            clock: number of the draw (every draw of a search has its own), or `clock(number)`.
            tau: temperature of the relaxation, > 0; a number or a tensor [] of alpha's dtype.
            grad: whether the gates (and the log-probability) shall lead to alpha and beta.
            part: whose rule of drawing applies.
        """
        if isinstance(clock, int):
            clock = self.clock(clock)
        rule = draws.rule_of(self.config, part, min(self.k, self.num_alive))
        with torch.set_grad_enabled(grad):
            drawn = {
                spec.kind: self._draw_cell(spec, rule, clock, number, tau)
                for number, spec in enumerate(self.space.cells)
            }
            log_probability = None
            if grad and self.config.gate == "score":
                log_p = [self._log_probability(kind, paths, indices_EK) for kind, (paths, indices_EK) in drawn.items()]
                log_probability = torch.stack(log_p).sum(0)
        networks = tuple(
            {kind: paths[number] for kind, (paths, _) in drawn.items()}
            for number in range(len(next(iter(drawn.values()))[0]))
        )
        return Sample(networks, {kind: indices_EK for kind, (_, indices_EK) in drawn.items()}, log_probability)

    def _log_probability(self, kind: str, networks: Sequence[CellPaths], indices_EK: Tensor) -> Tensor:
        """Of one cell type, as `Sample` has it."""
        log_p_EO = _log_softmax(self.logits(kind))
        if self.config.reward == "leave-one-out":
            return torch.stack([log_p_EO.gather(1, network.indices_EK.long()).sum() for network in networks])
        return gumbel_topk.log_probability(log_p_EO, indices_EK.long()).sum()

    def _draw_cell(
        self, spec: CellSpec, rule: Rule, clock: Tensor, stream: int, tau: float | Tensor
    ) -> tuple[list[CellPaths], Tensor]:
        if self._in_one_launch(rule):
            paths, indices_EK = self._draw_in_one_launch(rule, self.alpha[spec.kind], clock, stream, tau)
        else:
            paths, indices_EK = self._draw_in_steps(spec, rule, clock, stream, tau)
        edges_E = self.edge_weights(spec.kind)
        if edges_E is not None:
            paths = [dataclasses.replace(path, edges_E=edges_E) for path in paths]
        return paths, indices_EK

    def _in_one_launch(self, rule: Rule) -> bool:
        """Whether the kernel knows all that the draw asks for."""
        config = self.config
        plain_draw = rule.others == "ranked" and rule.forward == "mixed" and not config.edges_per_node
        plain_gates = config.gate in ("sampled", "score") and config.relaxation in KERNEL_RELAXATIONS
        plain = plain_draw and plain_gates and self.everything_alive and rule.with_none
        return self.impl == "triton" and plain and config.noise != "dirichlet"

    def _draw_in_one_launch(
        self, rule: Rule, alpha_EO: Tensor, clock: Tensor, stream: int, tau: float | Tensor
    ) -> tuple[list[CellPaths], Tensor]:
        config = self.config
        tau = tau if isinstance(tau, Tensor) else torch.tensor(tau, dtype=alpha_EO.dtype, device=alpha_EO.device)
        indices_EK, gates_NEO, _ = library.gumbel_topk(
            alpha_EO, clock, tau, k=rule.k, stream=stream, relaxation=config.relaxation,
            noise=config.noise == "gumbel", mode=rule.mode, assign=config.assign,
        )  # fmt: skip
        if config.gate == "score":
            gates_NEO = gates_NEO.detach()
        if rule.mode == "union":
            return [CellPaths(indices_EK, gates_NEO[0])], indices_EK
        chosen_EN = gates_NEO.detach().argmax(-1).T if config.assign == "shuffle" else indices_EK
        networks = [CellPaths(chosen_EN[:, n : n + 1], gates_NEO[n]) for n in range(rule.k)]
        return networks, indices_EK

    def _draw_in_steps(
        self, spec: CellSpec, rule: Rule, clock: Tensor, stream: int, tau: float | Tensor
    ) -> tuple[list[CellPaths], Tensor]:
        config, logits_EO, alive_EO = self.config, self.logits(spec.kind), self.alive(spec.kind)
        if not rule.with_none:
            alive_EO = self._without_none(alive_EO)
            logits_EO = logits_EO.masked_fill(~alive_EO, -torch.inf)
        scores_EO = self._scores(spec.kind, logits_EO, alive_EO, clock, stream)
        indices_EK = gumbel_topk.top_k(scores_EO.detach(), rule.k)
        if rule.others == "uniform":
            uniform_EO = self._uniform(tuple(logits_EO.shape), clock, stream, draws.OTHERS_AT)
            indices_EK = draws.uniform_others(indices_EK, alive_EO, uniform_EO)
        if config.edges_per_node:
            uniform_E = self._uniform((len(spec.edges), 1), clock, stream, draws.EDGES_AT)[:, 0]
            kept_E = draws.kept_edges(spec, uniform_E, config.edges_per_node)
            # An edge that is not there adds nothing, as `none` does.
            indices_EK = torch.where(kept_E[:, None], indices_EK, self.space.operations.index(ZERO))
        soft_KEO = gates.relaxed(config, logits_EO, scores_EO, indices_EK, tau)
        if rule.mode == "subgraphs":
            order_EK = self._assignment(indices_EK, clock, stream)
            return gates.subgraphs(config, soft_KEO, indices_EK, order_EK), indices_EK
        if rule.forward == "one":
            uniform_EK = self._uniform(tuple(indices_EK.shape), clock, stream, draws.ACTIVE_AT)
            values_EK = draws.active_ranks(logits_EO.detach(), indices_EK, uniform_EK)
        else:
            values_EK = gates.mixed_values(config, logits_EO, scores_EO, indices_EK, tau)
        return [gates.union(config, soft_KEO, values_EK, indices_EK)], indices_EK

    def _scores(self, kind: str, logits_EO: Tensor, alive_EO: Tensor, clock: Tensor, stream: int) -> Tensor:
        """What the ranks are in the order of [E, O]: log softmax(alpha), perturbed as `noise` says.

        `dirichlet`: the log of a sample of Dirichlet(elu(alpha) + 1), of which what is not alive is left out.
        """
        if self.config.noise == "dirichlet":
            start = draws.first_counter(clock, stream, draws.DIRICHLET_AT, logits_EO.numel() * dirichlet.NUMBERS)
            log_EO = dirichlet.log_dirichlet(draws.concentration(self.alpha[kind]), self.config.seed, start)
            return log_EO if logits_EO is self.alpha[kind] else log_EO.masked_fill(~alive_EO, -torch.inf)
        scores_EO = _log_softmax(logits_EO)
        if self.config.noise == "off":
            return scores_EO
        return scores_EO + gumbel_topk.gumbel_noise(self._uniform(tuple(logits_EO.shape), clock, stream))

    def _uniform(self, shape: tuple[int, ...], clock: Tensor, stream: int, at: int = 0) -> Tensor:
        return draws.uniform(self.config.seed, clock, stream, (shape[0], shape[1]), at)

    def _assignment(self, indices_EK: Tensor, clock: Tensor, stream: int) -> Tensor:
        """Which rank each sub-graph takes on each edge, [E, K]."""
        num_edges, k = indices_EK.shape
        if self.config.assign == "rank":
            return torch.arange(k, device=indices_EK.device).expand(num_edges, k)
        uniform_EK = self._uniform((num_edges, k), clock, draws.SHUFFLE_STREAM + stream)
        return torch.argsort(uniform_EK, dim=-1, stable=True)

    @torch.no_grad()
    def keep_(self, count: int) -> None:
        """Leave every edge its `count` most probable candidates and start alpha anew.

        As P-DARTS does between its stages, whose next network has alphas of its own (Chen et al. 2019).
        """
        generator = torch.Generator().manual_seed(self.config.seed + 1 + self.space.num_operations - count)
        for spec in self.space.cells:
            logits_EO, alive_EO = self.logits(spec.kind), self.alive(spec.kind)
            best_EN = gumbel_topk.top_k(logits_EO, count)
            alive_EO.copy_(torch.zeros_like(alive_EO).scatter(1, best_EN, True))
            self.alpha[spec.kind].copy_(self._first_alpha(spec, generator))
        self.num_alive = count

    def mixture(self) -> Paths:
        """All operations weighted by their probabilities, without gradient: the dense super-net."""
        num = self.space.num_operations
        paths = {}
        for kind, gates_EO in self.probabilities().items():
            edges_E = self.edge_weights(kind)
            every_EO = torch.arange(num, device=gates_EO.device).expand(len(gates_EO), num)
            paths[kind] = CellPaths(every_EO, gates_EO, edges_E=None if edges_E is None else edges_E.detach())
        return paths

    @torch.no_grad()
    def renormalise_(self, before: Mapping[str, Tensor], sample: Sample) -> None:
        """After a `restricted` step: shift the sampled alphas so that the other operations keep their probability.

        ProxylessNAS' rule for two paths, for any K: subtract log(sum_S e^new / sum_S e^old). An expected cost and
        a decay of alpha move the others all the same.

        Args:
            before: alpha [E, O] by cell type, as it was.
            sample: of the step.
        """
        for kind, indices_EK in sample.indices.items():
            alpha_EO = self.alpha[kind]
            new_E1 = torch.logsumexp(alpha_EO.gather(1, indices_EK), 1, keepdim=True)
            old_E1 = torch.logsumexp(before[kind].gather(1, indices_EK), 1, keepdim=True)
            alpha_EO.scatter_add_(1, indices_EK, (old_E1 - new_E1).expand_as(indices_EK).contiguous())


def _softmax(logits_EO: Tensor) -> Tensor:
    return torch.softmax(logits_EO, -1)


def _log_softmax(logits_EO: Tensor) -> Tensor:
    return torch.log_softmax(logits_EO, -1)


def _count_alive(sampler: nn.Module, _: object) -> None:
    """After a load."""
    assert isinstance(sampler, Sampler)
    sampler.num_alive = max(int(sampler.alive(kind).sum(-1).max()) for kind in sampler.alpha)
