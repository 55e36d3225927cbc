"""The expected cost of the derived network, as a term of alpha's loss.

E[C] = fixed + sum over edges e of share_e sum over operations o of p_eo c_eo, the c of costs.py. In the chains of
ProxylessNAS and FBNet, and in NAS-Bench-201, share is 1 and p softmax(alpha): their expectation exactly. Where a node
keeps two of its n incoming edges (DARTS) an edge's share is 2 / n, or twice its softmax among them where edge weights
are learned, and p leaves `none` out, which no derived cell has: ours. With sigmoids of alpha (FairDARTS) p is their
share of an edge's sum: ours.

Shape suffixes: E edges, O operations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ConfigError
from ..settings.config import SearchConfig
from ..settings.resources import cost_table, reference
from ..spaces.costs import CostTable, target_size
from ..spaces.space import ZERO
from .sampler import Sampler

# Below this reference the powers of the logarithm have no meaning.
LEAST_REFERENCE = 2.0


class ExpectedCost:
    """E[C] of a sampler's alpha, and its part in a step on alpha.

    With R the reference, w the weight, b the power and r the share of the term by `cost_ramp`, the loss L becomes

        add        L + w r (E[C] / R - 1)          RAPDARTS (lambda = w / R), ProxylessNAS' add#linear
        proxyless  w L (log E[C] / log R)^(b r)    ProxylessNAS' mul#log
        fbnet      w L (log E[C])^(b r)            FBNet's product

    Sources: Green et al. 2019 (arXiv 1911.05704), as far as its abstract tells; `add_regularization_loss` of
    mit-han-lab/proxylessnas (Cai, Zhu and Han 2019); Wu et al. 2019 (arXiv 1812.03443). Latencies are in milliseconds,
    the others counts; r is ours.

    Args:
        config: its keys `cost`, `cost_*`.
        sampler: whose alpha and beta it is of.
        table: what choices cost.
        target: R; E[C] at equal probabilities where None.

    Attributes:
        share: r [], on alpha's device; a step reads it there.
    """

    def __init__(self, config: SearchConfig, sampler: Sampler, table: CostTable, target: float | None) -> None:
        self.config, self.sampler = config, sampler
        alpha = next(iter(sampler.alpha.values()))
        self.share = torch.ones((), dtype=alpha.dtype, device=alpha.device)
        even = table.fixed
        self._edges_E: dict[str, Tensor] = {}
        self._allowed_EO: dict[str, Tensor] = {}
        for spec in sampler.space.cells:
            top2 = sampler.space.rule == "top2"
            counts = [sum(edge.target == other.target for other in spec.edges) for edge in spec.edges]
            shares = [2 / number if top2 else 1.0 for number in counts]
            names = sampler.space.names_of(spec.kind)
            allowed = [[name in mine and not (top2 and name == ZERO) for name in sampler.space.operations]
                       for mine in names]  # fmt: skip
            for share, mine, row in zip(shares, allowed, table.tables[spec.kind], strict=True):
                even += share * sum(cost for ok, cost in zip(mine, row, strict=True) if ok) / max(1, sum(mine))
            self._edges_E[spec.kind] = torch.tensor(shares, dtype=alpha.dtype, device=alpha.device)
            self._allowed_EO[spec.kind] = torch.tensor(allowed, device=alpha.device)
        self.reference = even if target is None else target
        self._fixed = table.fixed / self.reference
        self._costs_EO = {
            kind: torch.tensor(rows, dtype=torch.float64).div(self.reference).to(alpha)
            for kind, rows in table.tables.items()
        }

    def relative(self) -> Tensor:
        """E[C] / R [], with its graph to alpha and beta."""
        total = self.share.new_full((), self._fixed)
        for kind, costs_EO in self._costs_EO.items():
            allowed_EO = self._allowed_EO[kind] & self.sampler.alive(kind)
            alpha_EO = self.sampler.alpha[kind]
            if self.config.relaxation == "sigmoid":
                weights_EO = torch.sigmoid(alpha_EO).where(allowed_EO, 0.0)
            else:
                top_E1 = alpha_EO.detach().masked_fill(~allowed_EO, torch.finfo(alpha_EO.dtype).min).amax(1, True)
                weights_EO = torch.exp((alpha_EO - top_E1).masked_fill(~allowed_EO, -torch.inf))
            sums_E1 = weights_EO.sum(1, keepdim=True)
            probabilities_EO = weights_EO / sums_E1.clamp_min(torch.finfo(sums_E1.dtype).tiny)
            beta_E = self.sampler.edge_weights(kind)
            edges_E = self._edges_E[kind]
            if beta_E is not None and self.sampler.space.rule == "top2":
                edges_E = 2 * beta_E
            total = total + (edges_E * (probabilities_EO * costs_EO).sum(1)).sum()
        return total

    @torch.no_grad()
    def value(self) -> float:
        """E[C], a count or milliseconds."""
        return self.relative().item() * self.reference

    def add_to(self, gradients: list[Tensor], loss: Tensor) -> None:
        """Make alpha's gradient of the loss one of the loss with the cost, for a loss whose gradient is already there.

        A product's gradient is factor dL + L dfactor, so that neither form needs L's graph.

        Args:
            gradients: the parameters' `.grad` so far, changed in place.
            loss: L [], detached.
        """
        config, relative = self.config, self.relative()
        if config.cost_form == "add":
            term = config.cost_weight * self.share * (relative - 1)
        else:
            # E[C] of 1 or less has no logarithm above 0.
            log = torch.log((relative * self.reference).clamp_min(1.01))
            base = log / math.log(self.reference) if config.cost_form == "proxyless" else log
            factor = config.cost_weight * base ** (config.cost_power * self.share)
            for gradient in gradients:
                gradient.mul_(factor.detach().to(gradient.dtype))
            term = loss.detach() * factor
        term.backward()


def expected_cost(config: SearchConfig, sampler: Sampler, classes: int) -> ExpectedCost | None:
    """What the configuration's `cost` asks for, None for `none`.

    Raises:
        ConfigError: as `cost_table`, or for a reference that has no logarithm worth a power.
    """
    if config.cost == "none":
        return None
    table = cost_table(config.space, config.cost, target_size(config, classes), config.device_table)
    made = ExpectedCost(config, sampler, table, reference(config, table))
    if config.cost_form != "add" and made.reference < LEAST_REFERENCE:
        raise ConfigError(
            f"cost_form {config.cost_form} takes the logarithm of the reference cost", got=made.reference,
            allowed=f"{LEAST_REFERENCE:g} ms or more", next="--set cost_form=add",
        )  # fmt: skip
    return made
