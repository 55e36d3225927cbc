"""Every activation policy against ordinary autograd of the same network, in fp64."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from msgdas.engine.spaces.space import SPACES
from msgdas.engine.supernet import stem as stem_module
from msgdas.engine.supernet.cell import CellFunction
from msgdas.engine.supernet.operation import Drop
from msgdas.engine.supernet.ops import DARTS_TABLE, ModuleOperation
from msgdas.engine.supernet.recompute import RecomputeFunction
from msgdas.engine.supernet.supernet import SuperNet
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from networks import gradients, sampler_of, worst_error

POLICIES = ("all", "bn", "nodes", "min")
TOLERANCE = 1e-12


@pytest.mark.parametrize("policy", [*POLICIES, "min,bn,all"])
@pytest.mark.parametrize(("k", "mode"), [(1, "subgraphs"), (2, "union"), (2, "subgraphs"), (4, "union"), (8, "union")])
def test_darts_cells(policy, k, mode):
    sampler = sampler_of(k=k, mode=mode)
    loss, oracle = gradients(sampler, "autograd")
    our_loss, ours = gradients(sampler, policy)
    assert our_loss == pytest.approx(loss, abs=1e-12)
    assert worst_error(ours, oracle) <= TOLERANCE


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("k", "mode"), [(1, "subgraphs"), (2, "subgraphs"), (3, "union"), (5, "union")])
def test_nasbench201_cells(policy, k, mode):
    sampler = sampler_of("nasbench201", k=k, mode=mode)
    _, oracle = gradients(sampler, "autograd")
    _, ours = gradients(sampler, policy)
    assert worst_error(ours, oracle) <= TOLERANCE


@pytest.mark.parametrize("chunk_bytes", [1 << 23, 1])
@pytest.mark.parametrize("policy", ["all", "min"])
def test_imagenet_stem_in_one_or_many_chunks(policy, chunk_bytes, monkeypatch):
    monkeypatch.setattr(stem_module, "CHUNK_BYTES", chunk_bytes)
    sampler = sampler_of(k=2, mode="union", stem="imagenet")
    _, oracle = gradients(sampler, "autograd", stem="imagenet", image=64)
    _, ours = gradients(sampler, policy, stem="imagenet", image=64)
    assert worst_error(ours, oracle) <= TOLERANCE


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("weights", "alpha"), [(True, False), (False, True)])
def test_a_step_computes_only_its_own_gradients(policy, weights, alpha):
    sampler = sampler_of(k=2, mode="union")
    _, oracle = gradients(sampler, "autograd", weights=weights, alpha=alpha)
    _, ours = gradients(sampler, policy, weights=weights, alpha=alpha)
    assert worst_error(ours, oracle) <= TOLERANCE
    for name, grad in ours.items():
        if name.startswith("alpha.") != alpha:
            assert grad is None, name


def test_operations_that_were_not_sampled_get_no_gradient_at_all():
    sampler = sampler_of(k=2, mode="union")
    sample = sampler.draw(1, 1.3, grad=False)
    _, ours = gradients(sampler, "min")
    names = sampler.space.operations
    for row, columns in enumerate(sample.networks[0]["normal"].operations):
        for column, name in enumerate(names):
            grads = [g for key, g in ours.items() if key.startswith(f"layers.0.edges.{row}.{name}.")]
            assert all(bool(g.any()) == (column in columns) for g in grads)
            assert len(grads) == len(DARTS_TABLE[name].weight_shapes(4, 4, 1)) or name == "skip_connect"


@pytest.mark.parametrize("kind", ["dropblock", "dropout"])
@pytest.mark.parametrize("policy", ["all", "min"])
def test_dropblock_masks_are_the_same_in_recomputation(policy, kind):
    sampler = sampler_of(k=4, mode="union")
    drop = Drop(kind, torch.tensor(0.4), torch.tensor([9, 3]))
    _, oracle = gradients(sampler, "autograd", drop=drop)
    _, ours = gradients(sampler, policy, drop=drop)
    assert worst_error(ours, oracle) <= TOLERANCE
    _, without = gradients(sampler, policy)
    assert worst_error(without, oracle) > 1e-3


@pytest.mark.parametrize("policy", POLICIES)
def test_recomputed_gates_equal_those_of_the_dense_network(policy):
    """`recompute` finds d loss / d gate of all operations while only K exist: the dense net with zero gates agrees."""
    sampler = sampler_of(k=2, mode="union", gate="recompute")
    _, ours = gradients(sampler, policy, weights=False)
    dense = sampler_of(k=2, mode="union", gate="recompute")
    sample = dense.draw(1, 1.3, grad=True)
    every = torch.arange(8).expand(14, 8)
    paths = {kind: type(p)(every, p.gates_EO) for kind, p in sample.networks[0].items()}
    net = SuperNet(dense.space, channels=4, layers=3, classes=5, policy=["autograd"], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 3, 16, 16, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 5, (3,), generator=generator)
    torch.nn.functional.cross_entropy(net(x, paths), y).backward()
    for kind, alpha in dense.alpha.items():
        torch.testing.assert_close(ours[f"alpha.{kind}"], alpha.grad, rtol=1e-10, atol=1e-13)


class Shift(nn.Module):
    """A user's candidate: BatchNorm inside, parameters of its own."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, 1, dtype=torch.float64)
        self.norm = nn.BatchNorm2d(channels, dtype=torch.float64)

    def forward(self, x):
        return self.norm(torch.tanh(self.conv(x)))


@pytest.mark.parametrize("policy", POLICIES)
def test_any_module_is_an_operation(policy):
    table = {**DARTS_TABLE, "dil_conv_5x5": ModuleOperation(Shift)}
    sampler = sampler_of(k=8, mode="union")
    _, oracle = gradients(sampler, "autograd", operations=table)
    _, ours = gradients(sampler, policy, operations=table)
    assert worst_error(ours, oracle) <= TOLERANCE
    assert ours["layers.0.edges.0.dil_conv_5x5.0"] is not None


def test_fp32_stays_within_rounding_of_fp64():
    # 8 channels: torch 2.14.1's own fp32 backward of a strided 1x1 convolution to 2 channels writes out of bounds.
    def run(policy, dtype):
        return gradients(sampler_of(k=2, mode="union", dtype=dtype), policy, dtype=dtype, channels=8)[1]

    truth = run("autograd", torch.float64)
    ours, plain = run("min", torch.float32), run("autograd", torch.float32)
    double = {name: None if g is None else g.double() for name, g in ours.items()}
    reference = {name: None if g is None else g.double() for name, g in plain.items()}
    assert worst_error(double, truth) <= worst_error(reference, truth) + 1e-4


def test_gradcheck_of_one_network():
    sampler = sampler_of("nasbench201", k=2, mode="union", channels=2)
    net = SuperNet(SPACES["nasbench201"], channels=2, layers=3, classes=2, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    paths = sampler.draw(0, 1.0, grad=False).networks[0]["cell"]
    gates = paths.gates_EO.detach().requires_grad_()
    weight = net.stems[0][0].detach().requires_grad_()

    def run(gates_EO, w):
        own = {"cell": type(paths)(paths.indices_EK, gates_EO)}
        return torch.func.functional_call(net, {"stems.0.0": w}, (x, own))

    assert torch.autograd.gradcheck(run, (gates, weight), nondet_tol=0.0)


def test_a_node_that_drew_only_none_is_zero_and_not_nan():
    sampler = sampler_of(k=1, mode="union")
    with torch.no_grad():
        for alpha in sampler.alpha.values():
            alpha.zero_()[:, 0] = 60.0
    loss, grads = gradients(sampler, "min")
    assert loss == pytest.approx(torch.log(torch.tensor(5.0)).item(), abs=0.5)
    assert all(torch.isfinite(g).all() for g in grads.values() if g is not None)


def test_second_backward_is_refused_where_maps_were_released_and_right_where_not():
    sampler = sampler_of(k=2, mode="union")
    x, y = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1])
    for policy, allowed in (("bn", False), ("min", True)):
        net = SuperNet(sampler.space, channels=4, layers=1, classes=5, policy=[policy], dtype=torch.float64)
        loss = torch.nn.functional.cross_entropy(net(x, sampler.draw(0, 1.0, grad=False).networks[0]), y)
        loss.backward(retain_graph=True)
        first = net.stems[0][0].grad.clone()
        if not allowed:
            with pytest.raises(RuntimeError, match="policy bn released"):
                loss.backward()
            continue
        loss.backward()
        torch.testing.assert_close(net.stems[0][0].grad, 2 * first)


def test_weights_changed_between_forward_and_backward_are_caught():
    sampler = sampler_of(k=2, mode="union")
    net = SuperNet(sampler.space, channels=4, layers=1, classes=5, dtype=torch.float64)
    loss = net(torch.randn(2, 3, 8, 8, dtype=torch.float64), sampler.draw(0, 1.0, grad=False).networks[0]).sum()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.01)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_recompute_function_keeps_its_input_only():
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    w = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: RecomputeFunction.apply(lambda p, q: torch.tanh(p @ q), a, b), (x, w))


def test_the_engine_is_one_function_per_cell():
    assert issubclass(CellFunction, torch.autograd.Function)
    sampler = sampler_of(k=2, mode="union")
    net = SuperNet(sampler.space, channels=4, layers=3, classes=5)
    logits = net(
        torch.randn(2, 3, 16, 16),
        sampler_of(k=2, mode="union", dtype=torch.float32).draw(0, 1.0, grad=False).networks[0],
    )
    seen, todo, cells = set(), [logits.grad_fn], 0
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        cells += type(node).__name__ == "CellFunctionBackward"
        todo += [parent for parent, _ in node.next_functions]
    assert cells == 3
