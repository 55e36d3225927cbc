"""Methods that mix all operations, against their published formulas, written out by hand here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from msgdas.bench import build_step
from msgdas.engine.errors import ConfigError
from msgdas.engine.learning import unrolled
from msgdas.engine.learning.steps import Learner, Moment
from msgdas.engine.settings import schedule
from msgdas.engine.settings.recipes import demo
from msgdas.engine.spaces.derive import derive
from msgdas.engine.spaces.space import DARTS, CellLayer
from msgdas.engine.supernet.ops import TABLES, operation_at
from msgdas.engine.supernet.paths import CellPaths
from msgdas.engine.supernet.supernet import SuperNet
from msgdas.engine.supernet.weights import differentiable_views
from torch.distributions import Dirichlet, kl_divergence
from torch.func import functional_call

sys.path.insert(0, str(Path(__file__).parent))
from networks import gradients, pulled_back, random, sampler_of, worst_error


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


def test_pdarts_drops_the_least_probable_operations_of_each_edge():
    """get_min_k of the authors' train_search.py on softmax(alpha): 8, 5 and 3 operations in three equal stages."""
    config = demo(method="pdarts", epochs=12)
    assert [schedule.kept(config, epoch) for epoch in range(12)] == [None] * 4 + [5] * 4 + [3] * 4
    sampler = sampler_of(method="pdarts", dtype=torch.float32)
    first = torch.softmax(sampler.alpha["normal"].detach(), -1)
    sampler.keep_(5)
    expected = first >= first.sort(-1, descending=True).values[:, 4:5]
    assert torch.equal(sampler.alive("normal"), expected)
    sample = sampler.draw(0, 1.0, grad=True)
    gates_EO = sample.networks[0]["normal"].gates_EO
    assert sample.indices["normal"].shape == (14, 5) and torch.equal(gates_EO > 0, expected)
    alpha = sampler.alpha["normal"].detach()
    torch.testing.assert_close(gates_EO[3][expected[3]], torch.softmax(alpha[3][expected[3]], -1))
    grad = pulled_back(sampler, sample, random(14, 8).float())
    assert not grad[~expected].any() and (grad[expected] != 0).all()
    assert alpha.std() < 2e-3  # anew, no longer spread out
    sampler.keep_(3)
    assert (sampler.alive("normal").sum(1) == 3).all() and not (sampler.alive("normal") & ~expected).any()


def test_pdarts_derives_from_what_is_left():
    alpha = {kind: [[0.0, 0.1, 0.2, 5.0, 0.3, 0.4, 0.5, 0.6]] * 14 for kind in ("normal", "reduce")}
    alive = {kind: [[True, True, False, False, True, False, False, False]] * 14 for kind in alpha}
    assert {name for name, _ in derive(DARTS, alpha, alive=alive).cell("normal").pairs} == {"sep_conv_3x3"}


def test_dropped_operations_stay_dropped_after_a_load():
    sampler, other = sampler_of(method="pdarts"), sampler_of(method="pdarts")
    sampler.keep_(3)
    other.load_state_dict(sampler.state_dict())
    assert other.num_alive == 3 and torch.equal(other.alive("reduce"), sampler.alive("reduce"))


def test_darts2_is_the_second_order_gradient(monkeypatch):
    """dL_val(w - lr (m + dL_train/dw + d w), alpha)/dalpha, by double backward through the plain path in fp64.

    With a finite difference short enough to cross no kink of a ReLU; the search's own is DARTS' 0.01.
    """
    assert unrolled.EPSILON == 0.01
    monkeypatch.setattr(unrolled, "EPSILON", 1e-7)
    sampler = sampler_of(method="darts2", image=8)
    config = sampler.config
    net = SuperNet(sampler.space, channels=2, layers=3, classes=3, policy=["autograd"], dtype=torch.float64)
    learner = Learner(config, net, sampler)
    weights, alphas = list(net.parameters()), list(sampler.parameters())
    for number, weight in enumerate(weights):
        learner.weight_optimizer.buffers[number] = 0.01 * random(*weight.shape, seed=number)
    lr = 0.05
    batches = [(random(3, 3, 8, 8, seed=s), torch.tensor([0, 1, 2])) for s in (1, 2)]
    moment = Moment(0, 1.0, lr, 0.0, guided=False)
    feeds = [learner.feed(*batch, moment, 0) for batch in batches]
    before = [weight.detach().clone() for weight in weights]
    loss = unrolled.unrolled_gradient(learner.passes, sampler, learner.weight_optimizer, *feeds, dropped=False)
    ours = [alpha.grad for alpha in alphas]
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))

    def loss_of(parameters, batch):
        paths = {
            kind: CellPaths(torch.arange(8).expand(14, 8), torch.softmax(sampler.alpha[kind], -1))
            for kind in ("normal", "reduce")
        }
        named = dict(zip([name for name, _ in net.named_parameters()], parameters, strict=True))
        return F.cross_entropy(functional_call(net, named, (batch[0], paths)), batch[1])

    grads = torch.autograd.grad(loss_of(weights, batches[1]), weights, create_graph=True, materialize_grads=True)
    momentum, decay = config.momentum, config.weight_decay
    ahead = [
        w - lr * (momentum * m + g + decay * w)
        for w, m, g in zip(weights, learner.weight_optimizer.buffers, grads, strict=True)
    ]
    expected_loss = loss_of(ahead, batches[0])
    expected = torch.autograd.grad(expected_loss, alphas)
    first_order = torch.autograd.grad(loss_of([w.detach() for w in ahead], batches[0]), alphas)
    torch.testing.assert_close(loss, expected_loss.detach(), rtol=1e-10, atol=0)
    for got, wanted, alone in zip(ours, expected, first_order, strict=True):
        apart = (wanted - alone).norm()
        assert apart > 1e-3 * wanted.norm()
        assert (got - wanted).norm() < 1e-3 * apart


def test_the_second_order_needs_draws_that_stay():
    with pytest.raises(ConfigError, match="do not change"):
        demo(order=2)


@pytest.mark.parametrize(("method", "mib"), [("darts", 119.70), ("pc-darts", 38.04)])
def test_the_plain_path_keeps_what_the_authors_networks_keep(method, mib):
    """MiB per image that autograd keeps at C=16, 8 cells, 32x32, parameters left out: counted on the authors' code."""

    def kept_bytes(batch: int) -> int:
        step = build_step(method=method, policy="autograd", layout="nchw", batch=batch)
        own = {p.untyped_storage().data_ptr() for p in (*step.net.parameters(), *step.sampler.parameters())}
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = step.forward()
        assert loss.requires_grad
        return sum(size for place, size in kept.items() if place not in own)

    assert (kept_bytes(3) - kept_bytes(2)) / (1 << 20) == pytest.approx(mib, rel=0.005)
