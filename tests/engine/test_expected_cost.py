"""The expected cost's term against formulas written out, and what it does to a step on alpha."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from msgdas.engine.errors import ConfigError
from msgdas.engine.learning.expected_cost import ExpectedCost, expected_cost
from msgdas.engine.learning.steps import Learner, Moment
from msgdas.engine.settings import schedule
from msgdas.engine.settings.config import SearchConfig
from msgdas.engine.settings.recipes import demo
from msgdas.engine.settings.resources import cost_table, reference
from msgdas.engine.spaces.costs import CostTable, target_size
from msgdas.engine.supernet.supernet import SuperNet
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from networks import sampler_of


def macs_of(config: SearchConfig) -> CostTable:
    return cost_table(config.space, "macs", target_size(config, 10), "")


def expected(space: str, **overrides: object) -> ExpectedCost:
    sampler = sampler_of(space, **{"cost": "macs", **overrides})
    made = expected_cost(sampler.config, sampler, 10)
    assert made is not None
    return made


def test_expectation_of_a_cell_with_all_edges() -> None:
    """softmax(alpha) times the costs, ProxylessNAS' sum, and its gradient p (c - mean c)."""
    cost = expected("nasbench201", cost_target="100M")
    table = macs_of(cost.config)
    alpha = cost.sampler.alpha["cell"]
    p_EO = torch.softmax(alpha.detach(), 1)
    c_EO = torch.tensor(table.tables["cell"], dtype=torch.float64)
    by_hand = table.fixed + (p_EO * c_EO).sum()
    assert cost.value() == pytest.approx(by_hand.item(), rel=1e-12)
    (grad,) = torch.autograd.grad(cost.relative(), alpha)
    torch.testing.assert_close(grad, p_EO * (c_EO - (p_EO * c_EO).sum(1, keepdim=True)) / 1e8, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("edge_norm", [False, True])
def test_expectation_where_a_node_keeps_two_edges(edge_norm: bool) -> None:
    """`none` is left out; the edges share two by halves, thirds and so on, or by twice their learned weights."""
    cost = expected("darts", edge_norm=edge_norm)
    sampler = cost.sampler
    table = macs_of(cost.config)
    total = table.fixed
    for spec in sampler.space.cells:
        for edge, place in enumerate(spec.edges):
            share = 2 / sum(other.target == place.target for other in spec.edges)
            if edge_norm:
                share = 2 * sampler.edge_weights(spec.kind)[edge].item()
            p = torch.softmax(sampler.alpha[spec.kind][edge, 1:].detach(), 0).tolist()
            total += share * sum(a * b for a, b in zip(p, table.tables[spec.kind][edge][1:], strict=True))
    assert cost.value() == pytest.approx(total, rel=1e-12)
    cost.relative().backward()
    if edge_norm:
        assert all(beta.grad.abs().sum() > 0 for beta in sampler.beta.values())


def test_reference_is_the_cost_of_equal_probabilities_unless_told() -> None:
    cost = expected("darts", alpha_scale=0.0)
    assert cost.relative().item() == pytest.approx(1, rel=1e-12)
    assert expected("darts", max_macs="500M").reference == 5e8
    assert expected("darts", max_macs="500M", cost_target="0.3G").reference == 3e8


def test_only_candidates_count() -> None:
    """On s2 skip and sep_conv_3x3 alone; with one operation kept its cost is certain."""
    cost = expected("s2", alpha_scale=0.0)
    table = macs_of(cost.config)
    rows = [(edge, table.tables[spec.kind][row]) for spec in cost.sampler.space.cells
            for row, edge in enumerate(spec.edges)]  # fmt: skip
    by_hand = table.fixed + sum(2 / edge.target * (row[3] + row[4]) / 2 for edge, row in rows)
    assert cost.value() == pytest.approx(by_hand, rel=1e-12)
    pruned = expected("nasbench201", keep_ops="3", epochs=4)
    pruned.sampler.keep_(1)
    kept = pruned.sampler.alive("cell").int().argmax(1).tolist()
    costs = macs_of(pruned.config)
    certain = costs.fixed + sum(row[n] for row, n in zip(costs.tables["cell"], kept, strict=True))
    assert pruned.value() == pytest.approx(certain, rel=1e-12)


def learner_of(**overrides: object) -> Learner:
    sampler = sampler_of("nasbench201", policy="min", k=2, **overrides)
    net = SuperNet(sampler.space, channels=4, layers=3, classes=5, policy=["min"], dtype=torch.float64)
    return Learner(sampler.config, net, sampler, cost=expected_cost(sampler.config, sampler, 5))


def alpha_gradient(**overrides: object) -> tuple[float, Tensor, Learner]:
    learner = learner_of(**overrides)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 16, 16, generator=generator, dtype=torch.float64)
    before = learner.sampler.alpha["cell"].detach().clone()
    moment = Moment(0, 1.0, 0.05, 0.0, False, cost_share=0.5)
    result = learner.alpha_step(images, torch.randint(0, 5, (6,), generator=generator), moment)
    grad = learner.sampler.alpha["cell"].grad.clone()
    with torch.no_grad():
        learner.sampler.alpha["cell"].copy_(before)
    return result.loss, grad, learner


@pytest.mark.parametrize("gate", ["sampled", "recompute", "score"])
@pytest.mark.parametrize("form", ["add", "proxyless", "fbnet"])
def test_a_step_on_alpha_has_the_gradient_of_the_whole_loss(form: str, gate: str) -> None:
    """Half-way up the ramp: L + w r (E/R - 1), w L (log E / log R)^(b r), w L (log E)^(b r)."""
    loss, plain, _ = alpha_gradient(gate=gate)
    again, grad, learner = alpha_gradient(
        gate=gate, cost="macs", cost_form=form, cost_weight=0.3, cost_power=0.7, cost_target="20M"
    )
    assert again == loss
    cost = learner.cost
    expectation = cost.relative() * 2e7
    if form == "add":
        by_hand, extra = plain, 0.3 * 0.5 * expectation / 2e7
    else:
        log = torch.log(expectation) / (math.log(2e7) if form == "proxyless" else 1)
        factor = 0.3 * log ** (0.7 * 0.5)
        by_hand, extra = plain * factor.detach(), loss * factor
    (more,) = torch.autograd.grad(extra, learner.sampler.alpha["cell"])
    torch.testing.assert_close(grad, by_hand + more, rtol=1e-9, atol=1e-12)
    assert more.abs().max() > 1e-3 * plain.abs().max()


def test_the_term_grows_over_its_share_of_the_epochs() -> None:
    config = demo(cost="macs", epochs=10, warmup=2, cost_ramp=0.5)
    assert [schedule.cost_share(config, epoch) for epoch in range(7)] == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert schedule.cost_share(demo(cost="macs"), 0) == 1


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ConfigError, match="alpha rests"):
        demo(cost="macs", method="random")
    with pytest.raises(ConfigError, match="no device_table"):
        demo(cost="latency")
    with pytest.raises(ConfigError, match="cost_target is no number"):
        demo(cost="macs", cost_target="80ms")
    sampler = sampler_of("nasbench201", cost="macs", cost_form="fbnet")
    tiny = macs_of(sampler.config)
    assert reference(sampler.config, tiny) is None
