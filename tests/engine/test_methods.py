"""Every method against its published formula, written out by hand here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from msgdas.engine import schedule
from msgdas.engine.derive import derive
from msgdas.engine.errors import ConfigError
from msgdas.engine.ops import TABLES, operation_at
from msgdas.engine.recipes import demo
from msgdas.engine.space import DARTS, CellLayer
from msgdas.engine.supernet import SuperNet
from msgdas.engine.weights import differentiable_views
from msgdas.kernels.reference.gumbel_topk import gumbel_noise
from torch.distributions import Dirichlet, kl_divergence

sys.path.insert(0, str(Path(__file__).parent))
from networks import gradients, sampler_of, worst_error


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pulled_back(sampler, sample, v_EO: torch.Tensor) -> torch.Tensor:
    """Gradient in alpha where v is that of the first network's gates."""
    gates_EO = sample.networks[0]["normal"].gates_EO
    (grad,) = torch.autograd.grad((gates_EO * v_EO).sum(), sampler.alpha["normal"], retain_graph=True)
    return grad


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


def published_pc_cell(net, number: int, layer: CellLayer, inputs, alpha, beta) -> torch.Tensor:
    """Xu et al., equations 1 to 3, with k = 4: written out from the paper, edge by edge."""
    cell = net.layers[number]
    views = differentiable_views(cell.layout, cell.arenas())
    states = []
    for x, weights in zip(inputs, cell.preprocess_groups(), strict=True):
        if len(weights) == 1:
            y = F.conv2d(x.relu(), weights[0][:, :, None, None])
        else:
            halves = [x.relu(), x.relu()[:, :, 1:, 1:]]
            y = torch.cat([F.conv2d(h, w[:, :, None, None], stride=2) for h, w in zip(halves, weights, strict=True)], 1)
        states.append(F.batch_norm(y, None, None, training=True))
    row = 0
    for node in range(4):
        summed, incoming = 0.0, range(row, row + 2 + node)
        edge_weights = torch.softmax(beta[list(incoming)], 0)
        for place, source in enumerate(range(2 + node)):
            x, stride = states[source], 2 if layer.spec.reduction and source < 2 else 1
            quarter = x.shape[1] // 4
            mixed = 0.0
            for o, name in enumerate(DARTS.operations):
                operation = operation_at(TABLES["darts"], name, stride)
                gate = torch.softmax(alpha[row], 0)[o]
                mixed = mixed + gate * operation.plain(x[:, :quarter], views[row][o], stride)
            rest = x[:, quarter:] if stride == 1 else F.max_pool2d(x[:, quarter:], 2, 2)
            joined = torch.cat([mixed, rest], 1)
            # Channel shuffle in four groups: channel (group, c) goes to place 4 c + group.
            shuffled = joined[:, [group * quarter + c for c in range(quarter) for group in range(4)]]
            summed = summed + edge_weights[place] * shuffled
            row += 1
        states.append(summed)
    return torch.cat(states[2:], 1)


def test_pc_darts_cells_are_those_of_the_paper():
    sampler = sampler_of(method="pc-darts", channels=8)
    with torch.no_grad():
        for number, beta in enumerate(sampler.beta.values()):
            beta.copy_(random(14, seed=5 + number))
    net = SuperNet(sampler.space, channels=8, layers=3, classes=5, policy=["autograd"], partial=4, dtype=torch.float64)
    images, labels = random(2, 3, 16, 16), torch.tensor([1, 3])
    loss = F.cross_entropy(net(images, sampler.draw(0, 1.0, grad=True).networks[0]), labels)
    loss.backward()
    ours = [p.grad for p in (*net.parameters(), *sampler.parameters())]
    net.zero_grad()
    sampler.zero_grad()
    w, weight, bias = net.stems[0]
    before = last = F.batch_norm(F.conv2d(images, w, padding=1), None, None, weight, bias, training=True)
    for number, layer in enumerate(net.skeleton.layers):
        kind = layer.spec.kind
        out = published_pc_cell(net, number, layer, (before, last), sampler.alpha[kind], sampler.beta[kind])
        before, last = last, out
    expected = F.cross_entropy(net.classifier(last.mean((2, 3))), labels)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    expected.backward()
    theirs = [p.grad for p in (*net.parameters(), *sampler.parameters())]
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_edge_weights_scale_gates_alike_on_every_path():
    sampler = sampler_of(k=2, mode="union", edge_norm=True)
    loss, oracle = gradients(sampler, "autograd")
    our_loss, ours = gradients(sampler, "min")
    assert our_loss == pytest.approx(loss, abs=1e-12) and worst_error(ours, oracle) <= 1e-11
    assert all(oracle[f"beta.{kind}"].abs().max() > 0 for kind in ("normal", "reduce"))


def test_pc_darts_derives_by_alpha_times_beta():
    """`_parse` of the authors' model_search.py: rows of softmax(alpha) times the edge's softmax among its node's."""
    alpha = {kind: torch.zeros(14, 8).tolist() for kind in ("normal", "reduce")}
    for row in range(14):
        alpha["normal"][row][4] = 1.0 + 0.1 * row
    by_alpha = derive(DARTS, alpha).cell("normal").pairs
    beta = {kind: [0.0] * 14 for kind in alpha}
    beta["normal"][9:] = [3.0, 0.0, 2.0, 0.0, 0.0]
    by_both = derive(DARTS, alpha, beta=beta).cell("normal").pairs
    assert by_alpha[:6] == by_both[:6]
    assert by_alpha[6:] == (("sep_conv_3x3", 4), ("sep_conv_3x3", 3))
    assert by_both[6:] == (("sep_conv_3x3", 0), ("sep_conv_3x3", 2))


def test_partial_channels_say_what_they_need():
    with pytest.raises(ConfigError, match="policy autograd"):
        demo(partial=4)
    with pytest.raises(ConfigError, match="even number"):
        demo(partial=4, policy="autograd", channels=12)


def test_fairdarts_zero_one_loss_and_gates():
    """L = CE - 10 mean (sigmoid(alpha) - 1/2)^2 over seven candidates of all edges; the authors' separate_loss.py."""
    sampler = sampler_of(method="fairdarts")
    assert all(not alpha.any() for alpha in sampler.alpha.values())
    with torch.no_grad():
        for number, alpha in enumerate(sampler.alpha.values()):
            alpha.copy_(random(14, 8, seed=number))
    gates_EO = sampler.draw(0, 1.0, grad=True).networks[0]["normal"].gates_EO
    s = torch.sigmoid(torch.cat([alpha.detach()[:, 1:] for alpha in sampler.alpha.values()]))
    torch.testing.assert_close(gates_EO.detach()[:, 1:], s[:14])
    assert not gates_EO.detach()[:, 0].any()
    penalty = sampler.penalty()
    torch.testing.assert_close(penalty.detach(), -10 * F.mse_loss(s, torch.full_like(s, 0.5)))
    penalty.backward()
    expected = -10 * 2 * (s[14:] - 0.5) * s[14:] * (1 - s[14:]) / s.numel()
    torch.testing.assert_close(sampler.alpha["reduce"].grad[:, 1:], expected)


def test_fairdarts_ranks_operations_that_do_not_compete():
    """Edges with the same softmax, some with larger sigmoids: only those tell them apart."""
    alpha = {kind: [[-9.0] + [-4.0] * 7 for _ in range(14)] for kind in ("normal", "reduce")}
    for row, height in enumerate((0.5, 1.5, 1.0)):
        alpha["normal"][2 + row] = [height - 5] * 4 + [height] + [height - 5] * 3
    alive = {kind: [[False] + [True] * 7] * 14 for kind in alpha}
    alone = derive(DARTS, alpha, alone=True, alive=alive).cell("normal").pairs[2:4]
    assert alone == (("sep_conv_3x3", 1), ("sep_conv_3x3", 2))
    assert derive(DARTS, alpha, alive=alive).cell("normal").pairs[2:4] == (("sep_conv_3x3", 0), ("sep_conv_3x3", 1))


def test_drnas_gates_are_a_dirichlet_sample_with_its_pathwise_derivative():
    """theta ~ Dirichlet(elu(alpha) + 1); the gradient is torch's own for rsample, at the same theta."""
    sampler = sampler_of(method="drnas", space="nasbench201")
    sample, v = sampler.draw(3, 1.0, grad=True), random(6, 5)
    gates_EO = sample.networks[0]["cell"].gates_EO
    theta = gates_EO.detach()
    torch.testing.assert_close(theta.sum(1), torch.ones(6, dtype=torch.float64))
    alpha = sampler.alpha["cell"].detach().requires_grad_()
    c = F.elu(alpha) + 1
    pathwise = torch._dirichlet_grad(theta, c.detach(), c.detach().sum(-1, keepdim=True).expand_as(c))
    (expected,) = torch.autograd.grad(c, alpha, pathwise * (v - (theta * v).sum(-1, keepdim=True)))
    (ours,) = torch.autograd.grad((gates_EO * v).sum(), sampler.alpha["cell"])
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


def test_drnas_leaves_none_out_of_the_darts_cells():
    sampler = sampler_of(method="drnas")
    drawn = [sampler.draw(n, 1.0, grad=False).networks[0]["normal"].gates_EO for n in range(300)]
    assert sampler.config.k == 7 and not drawn[0][:, 0].any() and (drawn[0][:, 1:] > 0).all()
    torch.testing.assert_close(drawn[0].sum(1), torch.ones(14, dtype=torch.float64))
    c = F.elu(sampler.alpha["normal"].detach()[:, 1:]) + 1
    mean = torch.stack(drawn).mean(0)[:, 1:]
    torch.testing.assert_close(mean, c / c.sum(-1, keepdim=True), atol=0.06, rtol=0)


def test_drnas_kl_is_torchs():
    sampler = sampler_of(method="drnas", alpha_kl=1e-3)
    expected = 0.0
    for alpha in sampler.alpha.values():
        c = F.elu(alpha.detach()[:, 1:]) + 1
        expected = expected + kl_divergence(Dirichlet(c), Dirichlet(torch.ones_like(c))).sum()
    torch.testing.assert_close(sampler.penalty().detach(), 1e-3 * expected)
