"""Draws, gates and their gradients: GDAS and DARTS fall out as settings."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from msgdas.engine.errors import ConfigError
from msgdas.engine.spaces.space import SPACES

sys.path.insert(0, str(Path(__file__).parent))
from networks import gradients, sampler_of, worst_error

KINDS = ("normal", "reduce")


def test_subgraphs_exclude_each_other_on_every_edge():
    sampler = sampler_of(k=3, mode="subgraphs")
    for step in range(20):
        sample = sampler.draw(step, 1.0, grad=False)
        for kind in KINDS:
            rows = [network[kind].operations for network in sample.networks]
            for row in range(14):
                assert len({network[row][0] for network in rows}) == 3


def test_all_operations_are_a_permutation():
    sample = sampler_of(k=8, mode="subgraphs").draw(0, 1.0, grad=False)
    assert torch.equal(sample.indices["normal"].sort(1).values, torch.arange(8).expand(14, 8))


def test_a_draw_is_a_function_of_seed_and_step():
    first = sampler_of(k=2).draw(7, 1.0, grad=False).indices
    torch.manual_seed(5)
    again = sampler_of(k=2)
    again.draw(1, 1.0, grad=False)
    assert all(torch.equal(first[kind], again.draw(7, 1.0, grad=False).indices[kind]) for kind in KINDS)
    assert not torch.equal(first["normal"], again.draw(8, 1.0, grad=False).indices["normal"])
    assert not torch.equal(first["normal"], first["reduce"])
    assert not torch.equal(first["normal"], sampler_of(k=2, seed=1).draw(7, 1.0, grad=False).indices["normal"])


def test_rank_assignment_follows_gdas_and_shuffle_is_exchangeable():
    ranked = sampler_of(k=3, mode="subgraphs").draw(3, 1.0, grad=False)
    for number, network in enumerate(ranked.networks):
        assert [row[0] for row in network["normal"].operations] == ranked.indices["normal"][:, number].tolist()
    shuffled = sampler_of(k=3, mode="subgraphs", assign="shuffle")
    counts = torch.zeros(3)
    for step in range(300):
        sample = shuffled.draw(step, 1.0, grad=False)
        first = torch.tensor([row[0] for row in sample.networks[0]["normal"].operations])
        counts += (sample.indices["normal"] == first[:, None]).sum(0)
    assert (counts / counts.sum() - 1 / 3).abs().max() < 0.03


@pytest.mark.parametrize("overrides", [{}, {"noise": "dirichlet"}, {"others_weights": "uniform"}, {"mode": "union"}])
def test_steps_on_the_weights_can_leave_none_out(overrides):
    """Those on alpha still draw it."""
    sampler = sampler_of(k=2, none_weights=False, **{"mode": "subgraphs", **overrides})
    none = SPACES["darts"].operations.index("none")
    drawn = {"weight": 0, "alpha": 0}
    for step in range(20):
        for part in drawn:
            indices = sampler.draw(step, 1.0, grad=False, part=part).indices
            drawn[part] += sum(int((indices[kind] == none).sum()) for kind in KINDS)
            assert all(torch.isfinite(path.gates_EO).all() for path in sampler.draw(step, 1.0, grad=False, part=part)
                       .networks[0].values())  # fmt: skip
    assert drawn["weight"] == 0 and drawn["alpha"] > 50


@pytest.mark.parametrize(
    ("overrides", "words"), [({"k": 8}, "have 7 candidates"), ({"keep_ops": "3"}, "keep their other")]
)
def test_what_is_left_without_none_must_suffice(overrides, words):
    with pytest.raises(ConfigError, match=words):
        sampler_of(none_weights=False, mode="subgraphs", **overrides)
    sampler_of("nasbench201-conv-skip", none_weights=False, k=3, mode="subgraphs", channels=8, layers=3)


def test_inclusion_follows_alpha():
    sampler = sampler_of(k=1)
    with torch.no_grad():
        sampler.alpha["normal"].copy_(torch.tensor([0, 1, 2, 0, 0, 0, 0, 0.0]).expand(14, 8))
    counts = torch.zeros(8)
    for step in range(400):
        counts += torch.bincount(sampler.draw(step, 1.0, grad=False).indices["normal"][:, 0], minlength=8)
    expected = torch.softmax(torch.tensor([0, 1, 2, 0, 0, 0, 0, 0.0]), -1)
    torch.testing.assert_close(counts / counts.sum(), expected, atol=0.02, rtol=0)


def test_k1_is_gdas_hardwts():
    """hardwts = one_hot - probs.detach() + probs, probs = softmax((log_softmax(alpha) + g) / tau)."""
    from msgdas.kernels.reference.gumbel_topk import gumbel_noise

    for mode in ("subgraphs", "union"):
        sampler = sampler_of(k=1, mode=mode)
        sample = sampler.draw(4, 2.5, grad=True)
        gates = sample.networks[0]["normal"].gates_EO
        v = torch.randn(14, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        (ours,) = torch.autograd.grad((gates * v).sum(), sampler.alpha["normal"])
        alpha = sampler.alpha["normal"]
        noise = gumbel_noise(sampler._uniform((14, 8), sampler.clock(4), 0))
        probs = torch.softmax((torch.log_softmax(alpha, -1) + noise) / 2.5, -1)
        chosen = probs.argmax(-1, keepdim=True)
        one_hot = torch.zeros_like(probs).scatter(1, chosen, 1.0)
        hardwts = one_hot - probs.detach() + probs
        torch.testing.assert_close(gates.detach(), one_hot, atol=1e-12, rtol=0)
        # GDAS multiplies the chosen operation only by its weight.
        (theirs,) = torch.autograd.grad((hardwts * v).gather(1, chosen).sum(), alpha)
        torch.testing.assert_close(ours, theirs)


def test_fault_20_union_of_all_without_noise_is_dense_darts():
    sampler = sampler_of(method="darts")
    sample = sampler.draw(0, 1.0, grad=True)
    gates = sample.networks[0]["normal"].gates_EO
    dense = torch.softmax(sampler.alpha["normal"], -1)
    torch.testing.assert_close(gates, dense, atol=1e-12, rtol=1e-12)
    v = torch.randn(14, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.autograd.grad((g * v).sum(), sampler.alpha["normal"])[0] for g in (gates, dense))
    torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=1e-12)


def test_dense_darts_network_output_and_gradients():
    sampler = sampler_of(method="darts")
    loss, oracle = gradients(sampler, "autograd", tau=1.0)
    our_loss, ours = gradients(sampler, "min", tau=1.0)
    assert our_loss == pytest.approx(loss, abs=1e-13)
    assert worst_error(ours, oracle) <= 1e-12


@pytest.mark.parametrize("relaxation", ["masked", "shared", "soft"])
@pytest.mark.parametrize("mode", ["union", "subgraphs"])
def test_gates_are_hard_in_value_and_lead_to_alpha(relaxation, mode):
    sampler = sampler_of(k=3, mode=mode, relaxation=relaxation)
    sample = sampler.draw(2, 0.9, grad=True)
    total = sum(network["normal"].gates_EO for network in sample.networks)
    hard = total.detach()
    assert ((hard > 1e-9).sum(1) == 3).all()
    torch.testing.assert_close(hard.sum(1), torch.full((14,), 1.0 if mode == "union" else 3.0, dtype=torch.float64))
    # Of each gate on its own: together, shared gates sum to a constant.
    (grad,) = torch.autograd.grad((total * torch.arange(8)).sum(), sampler.alpha["normal"])
    assert grad.abs().max() > 0
    torch.testing.assert_close(grad.sum(1), torch.zeros(14, dtype=torch.float64), atol=1e-10, rtol=0)


def test_only_recompute_gives_gates_to_operations_that_do_not_exist():
    for gate, extra in (("sampled", False), ("recompute", True), ("restricted", False)):
        sampler = sampler_of(k=2, mode="union", gate=gate)
        paths = sampler.draw(1, 1.0, grad=True).networks[0]["normal"]
        (grad_row,) = torch.autograd.grad(paths.gates_EO[0].sum(), paths.gates_EO, retain_graph=True)
        assert grad_row[0].sum() == 8
        absent = next(o for o in range(8) if o not in paths.operations[0])
        weight = torch.zeros(14, 8, dtype=torch.float64)
        weight[0, absent] = 1
        (grad,) = torch.autograd.grad((paths.gates_EO * weight).sum(), sampler.alpha["normal"], allow_unused=True)
        assert (grad is not None and bool(grad.abs().max() > 0)) == extra
        assert paths.shadows == extra


def test_restricted_gates_are_the_softmax_over_the_sampled_set():
    """d/d alpha_i = sum_{j in S} V_j g_j (delta_ij - g_i), i in S (ProxylessNAS 'two', for any K)."""
    for mode in ("union", "subgraphs"):
        sampler = sampler_of(k=3, mode=mode, gate="restricted")
        sample = sampler.draw(5, 1.0, grad=True)
        indices = sample.indices["normal"]
        v = torch.randn(14, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        total = sum((network["normal"].gates_EO * v).sum() for network in sample.networks)
        (ours,) = torch.autograd.grad(total, sampler.alpha["normal"])
        g = torch.softmax(sampler.alpha["normal"].detach().gather(1, indices), -1)
        v_s = v.gather(1, indices)
        expected = torch.zeros_like(ours).scatter(1, indices, g * (v_s - (g * v_s).sum(1, keepdim=True)))
        torch.testing.assert_close(ours, expected)


def test_restricted_step_leaves_the_other_probabilities_alone():
    sampler = sampler_of(k=2, gate="restricted")
    sample = sampler.draw(5, 1.0, grad=False)
    before = {kind: alpha.detach().clone() for kind, alpha in sampler.alpha.items()}
    old = sampler.probabilities()["normal"]
    with torch.no_grad():
        sampler.alpha["normal"].scatter_add_(1, sample.indices["normal"], torch.randn(14, 2, dtype=torch.float64))
    sampler.renormalise_(before, sample)
    new = sampler.probabilities()["normal"]
    others = torch.ones(14, 8, dtype=torch.bool).scatter(1, sample.indices["normal"], False)
    torch.testing.assert_close(new[others], old[others])
    assert not torch.allclose(new[~others], old[~others])


def test_score_log_probability_is_plackett_luces():
    sampler = sampler_of("nasbench201", k=2, gate="score")
    sample = sampler.draw(3, 1.0, grad=True)
    log_p = torch.log_softmax(sampler.alpha["cell"].detach(), -1)
    first, second = sample.indices["cell"].t()
    rows = torch.arange(6)
    expected = log_p[rows, first] + log_p[rows, second] - torch.log1p(-log_p[rows, first].exp())
    assert sample.log_probability.item() == pytest.approx(expected.sum().item())
    assert not sample.networks[0]["cell"].gates_EO.requires_grad


@pytest.mark.parametrize("value", [50.0, -50.0])
def test_fault_19_extreme_logits(value):
    sampler = sampler_of(k=3)
    with torch.no_grad():
        sampler.alpha["normal"].zero_()[:, 4] = value
    sample = sampler.draw(0, 0.1, grad=True)
    grads = torch.autograd.grad(sum(n["normal"].gates_EO.sum() for n in sample.networks), sampler.alpha["normal"])
    assert torch.isfinite(grads[0]).all()
    if value > 0:
        assert (sample.indices["normal"][:, 0] == 4).all()


def test_alpha_starts_as_darts_does():
    for kind, alpha in sampler_of(dtype=torch.float32).alpha.items():
        spread = (alpha.detach() / 1000).std().item()
        assert math.isclose(spread, 1e-3, rel_tol=0.25), kind
        assert alpha.shape == (len(SPACES["darts"].cell(kind).edges), 8)
