"""Methods that sample paths, against their published formulas, written out by hand here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from msgdas.engine.errors import ConfigError
from msgdas.engine.images.batches import Batch
from msgdas.engine.search.evaluate import best_of, derived, evaluate, genotype_paths, random_cells
from msgdas.engine.settings import schedule
from msgdas.engine.settings.method import METHODS
from msgdas.engine.settings.recipes import demo
from msgdas.engine.spaces.space import DARTS, SPACES
from msgdas.engine.supernet.supernet import SuperNet
from msgdas.kernels.reference.gumbel_topk import gumbel_noise

sys.path.insert(0, str(Path(__file__).parent))
from networks import pulled_back, random, sampler_of


def test_plain_gates_have_the_gradient_of_softmax_without_noise_and_tau():
    """ProxylessNAS, equation 4: dL/dalpha_i = sum_j dL/dg_j p_j (delta_ij - p_i), g the binary gates."""
    sampler = sampler_of(k=1, relaxation="plain", gate="recompute")
    sample, v = sampler.draw(3, 0.37, grad=True), random(14, 8)
    p = torch.softmax(sampler.alpha["normal"].detach(), -1)
    expected = p * (v - (p * v).sum(-1, keepdim=True))
    torch.testing.assert_close(pulled_back(sampler, sample, v), expected)
    binary = sample.networks[0]["normal"].gates_EO.detach()
    torch.testing.assert_close(binary, torch.nn.functional.one_hot(sample.indices["normal"][:, 0], 8).double())


def test_sigmoid_gates_do_not_compete():
    sampler = sampler_of(k=8, mode="union", noise="off", relaxation="sigmoid", tau_min=3.0)
    sample, v = sampler.draw(3, 3.0, grad=True), random(14, 8)
    s = 1 / (1 + torch.exp(-sampler.alpha["normal"].detach()))
    torch.testing.assert_close(sample.networks[0]["normal"].gates_EO.detach(), s)
    torch.testing.assert_close(pulled_back(sampler, sample, v), v * s * (1 - s))


def pair_and_active(sampler, draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the first edge: how often each ordered pair was sampled, and how often its first operation was the active."""
    pairs, active = torch.zeros(5, 5), torch.zeros(5, 5)
    for draw in range(draws):
        sample = sampler.draw(draw, 1.0, grad=False)
        (first, second), gates = sample.indices["cell"][0].tolist(), sample.networks[0]["cell"].gates_EO[0]
        assert gates[first] + gates[second] == 1 and gates.sum() == 1
        pairs[first, second] += 1
        active[first, second] += gates[first]
    return pairs, active


def test_proxyless_two_draws_two_paths_and_one_of_them_by_its_share():
    """Section 3.2.2: two without replacement by p; the active one by p restricted to the two."""
    sampler = sampler_of("nasbench201", method="proxyless-two")
    with torch.no_grad():
        sampler.alpha["cell"].copy_(torch.tensor([0.0, 1.0, -0.5, 0.3, 0.8]).expand(6, 5))
    p = torch.softmax(torch.tensor([0.0, 1.0, -0.5, 0.3, 0.8]), -1)
    pairs, active = pair_and_active(sampler, 1500)
    expected = p[:, None] * p[None] / (1 - p[:, None]) * (1 - torch.eye(5))
    assert (pairs / pairs.sum() - expected).abs().max() < 0.03
    share = (p[:, None] / (p[:, None] + p[None])).where(pairs > 60, 0.0)
    assert (active / pairs.clamp(min=1) - share).where(pairs > 60, 0.0).abs().max() < 0.12
    assert abs(active.sum() / pairs.sum() - (expected * p[:, None] / (p[:, None] + p[None])).sum()) < 0.03


def test_proxyless_two_has_the_restricted_softmax_gradient():
    """set_arch_param_grad of the authors' mix_op.py: sum_j V_j g_j (delta_ij - g_i) over the pair, 0 elsewhere."""
    sampler = sampler_of(method="proxyless-two")
    sample, v = sampler.draw(2, 1.0, grad=True), random(14, 8)
    ours, alpha = pulled_back(sampler, sample, v), sampler.alpha["normal"].detach()
    for edge, (i, j) in enumerate(sample.indices["normal"].tolist()):
        g = torch.softmax(alpha[edge, [i, j]], -1)
        expected = torch.zeros(8, dtype=torch.float64)
        expected[i] = v[edge, i] * g[0] * (1 - g[0]) - v[edge, j] * g[1] * g[0]
        expected[j] = v[edge, j] * g[1] * (1 - g[1]) - v[edge, i] * g[0] * g[1]
        torch.testing.assert_close(ours[edge], expected)


def test_proxyless_two_trains_the_weights_of_one_path():
    sample = sampler_of(method="proxyless-two").draw(2, 1.0, grad=False, part="weight")
    assert sample.indices["normal"].shape == (14, 1)
    assert torch.equal(sample.networks[0]["normal"].gates_EO.sum(1), torch.ones(14, dtype=torch.float64))


def test_snas_has_concrete_gates():
    """Z_i = exp((log alpha_i + G_i) / tau) / sum_j (SNAS, equation 6); G is the draw's own noise."""
    sampler = sampler_of(method="snas")
    sample, v, tau = sampler.draw(5, 0.7, grad=True), random(14, 8), 0.7
    alpha = sampler.alpha["normal"].detach().requires_grad_()
    noise = gumbel_noise(sampler._uniform((14, 8), sampler.clock(5), 0))
    z = torch.exp((alpha - alpha.logsumexp(-1, keepdim=True) + noise) / tau)
    z = z / z.sum(-1, keepdim=True)
    torch.testing.assert_close(sample.networks[0]["normal"].gates_EO.detach(), z.detach())
    (expected,) = torch.autograd.grad((z * v).sum(), alpha)
    torch.testing.assert_close(pulled_back(sampler, sample, v), expected)


def test_alpha_has_a_step_every_so_many_weight_steps():
    """The authors' schedule: step i of an epoch has one where (i + 1) % 5 == 0."""
    config = demo(method="proxyless", warmup=1)
    assert [place for place in range(12) if schedule.alpha_due(config, 1, place)] == [4, 9]
    assert not any(schedule.alpha_due(config, 0, place) for place in range(12))


def test_tf_nas_trains_two_paths_and_alpha_all():
    """Bi-sampling as the authors' train_w_arch: one path by Gumbel softmax, one uniform among the others."""
    sampler = sampler_of("nasbench201", method="tf-nas")
    with torch.no_grad():
        sampler.alpha["cell"].copy_(torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0]).expand(6, 5))
    assert sampler.draw(0, 1.0, grad=True).indices["cell"].shape == (6, 5)
    counts = torch.zeros(5, 5)
    for draw in range(700):
        sample = sampler.draw(draw, 1.0, grad=False, part="weight")
        assert len(sample.networks) == 2
        for one, two in zip(*(network["cell"].operations for network in sample.networks), strict=True):
            counts[one[0], two[0]] += 1
    p = torch.softmax(torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0]), -1)
    expected = p[:, None] / 4 * (1 - torch.eye(5))
    assert (counts / counts.sum() - expected).abs().max() < 0.015


def test_random_search_draws_cells_of_two_inputs_per_node():
    """sample_arch of the authors: two inputs of each node without replacement, an operation of all eight for each."""
    sampler = sampler_of(method="random")
    kept, operations = torch.zeros(14), torch.zeros(8)
    for draw in range(500):
        indices = sampler.draw(draw, 1.0, grad=False, part="weight").indices["normal"][:, 0]
        operations += torch.bincount(indices[:2], minlength=8)  # node 2 has no other inputs
        kept += indices != 0
    assert (operations / operations.sum() - 1 / 8).abs().max() < 0.04
    share = torch.tensor([2 / 2] * 2 + [2 / 3] * 3 + [2 / 4] * 4 + [2 / 5] * 5) * 7 / 8
    assert (kept / 500 - share).abs().max() < 0.08


def test_random_cells_and_their_race():
    cells = random_cells(DARTS, 3, 40)
    assert cells == random_cells(DARTS, 3, 40) and cells != random_cells(DARTS, 4, 40) and len(set(cells)) == 40
    for cell in cells:
        for kind in ("normal", "reduce"):
            assert all(first[1] != second[1] for first, second in cell.node_pairs(kind))
    net = SuperNet(SPACES["nasbench201"], channels=4, layers=3, classes=3)
    cells = random_cells(net.space, 0, 12)
    labels = torch.randint(3, (24,), generator=torch.Generator().manual_seed(7))
    images = random(24, 3, 16, 16).float()
    every = [Batch(images[n : n + 2], labels[n : n + 2], torch.arange(2)) for n in range(0, 24, 2)]

    def judged(cell, count: int) -> float:
        paths = genotype_paths(net.space, cell, torch.device("cpu"))
        return evaluate(net, paths, every[:count], torch.device("cpu"), lambda: False)[1]

    finalists = sorted(cells, key=lambda cell: -judged(cell, 10))[:10]
    winner = max(finalists, key=lambda cell: judged(cell, 12))
    assert winner != finalists[0]
    found = best_of(cells, net, lambda count: every[: count or None], torch.device("cpu"), lambda: False)
    assert found == (winner, judged(winner, 12))


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("space", ["nasbench201", "s3"])
def test_every_method_draws_in_every_family(method, space):
    if (method, space) == ("pdarts", "s3"):
        with pytest.raises(ConfigError, match="keep_ops falls"):
            demo(space=space, method=method)
        return
    sampler = sampler_of(space, method=method, channels=8, layers=3)
    for part in ("alpha", "weight"):
        sample = sampler.draw(1, 1.0, grad=part == "alpha", part=part)
        for network in sample.networks:
            for kind, path in network.items():
                running = path.gates_EO.detach().abs() > 0
                assert running.any(1).all() and not (running & ~sampler.alive(kind)).any()
    cell = derived(sampler) if method != "random" else random_cells(sampler.space, 0, 1)[0]
    assert cell.space == sampler.space.family
