"""Gradients that reach the engine's autograd Functions expanded, transposed or as a part of a cat's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgdas.engine.network.native import takes
from msgdas.engine.network.ops import SeparableStage
from msgdas.engine.spaces.space import SPACES, search_skeleton
from msgdas.engine.supernet.autograd_net import plain_stem
from msgdas.engine.supernet.recompute import RecomputeFunction
from msgdas.engine.supernet.stem import StemFunction
from msgdas.engine.supernet.supernet import SuperNet
from msgdas.kernels import backend, native
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from networks import random, sampler_of, weight_gradients, worst_error

TOLERANCE = 1e-12


def weights_of(y: Tensor) -> Tensor:
    return random(*y.shape).to(y)


def times_weights(y: Tensor) -> Tensor:
    return (y * weights_of(y)).sum()


# Of a tensor of four dimensions, each with a gradient of other strides.
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded over the map": lambda y: times_weights(y.sum((1, 2))),
    "expanded over the batch": lambda y: times_weights(y.sum(0)),
    "transposed": lambda y: times_weights(y.permute(0, 3, 1, 2).contiguous()),
    "part of a cat": lambda y: times_weights(torch.cat([y.detach(), y, y.detach()], -1)),
    "every other pixel": lambda y: times_weights(torch.stack([y, y.detach()], 2)),
}


@pytest.fixture(params=LOSSES)
def loss_of(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    """A loss of a map whose gradient is not contiguous, which is looked at."""

    def loss(y: Tensor, *, watched: bool = True) -> Tensor:
        if watched:
            y.register_hook(lambda grad: seen.append(grad.is_contiguous()))
        return LOSSES[request.param](y)

    seen: list[bool] = []
    yield loss
    assert seen and not any(seen)


def of_the_last_cell(
    sampler: Any, loss_of: Callable[..., Tensor], policy: str, *, layers: int = 3, side: int = 8, **options: Any
) -> dict[str, Any]:
    """Gradients of weights and alpha by a loss of the last cell's output [B, H, W, C]."""
    net = SuperNet(
        sampler.space, channels=4, layers=layers, classes=5, policy=[policy], dtype=torch.float64, **options
    )  # fmt: skip
    sampler.zero_grad()
    watched = not net.plain

    def head(x: Tensor) -> Tensor:
        return loss_of(x if watched else x.permute(0, 2, 3, 1), watched=watched)

    net._head = head
    net(random(2, 3, side, side), sampler.draw(1, 1.3, grad=True).networks[0]).backward()
    grads = weight_gradients(net) | {
        f"alpha.{kind}": alpha.grad.clone() for kind, alpha in sampler.alpha.items() if alpha.grad is not None
    }
    return {name: grad for name, grad in grads.items() if not name.startswith(("classifier", "norm"))}


@pytest.mark.parametrize(("space", "policy"), [("darts", "bn"), ("darts", "min"), ("nasbench201", "min")])
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_fault_31_a_cell_takes_any_gradient_of_its_output(loss_of, space, policy, impl, monkeypatch):
    """The kernels' launches by their twins."""
    monkeypatch.setattr(backend, "interpreting", lambda: False)
    sampler = sampler_of(space, k=2, mode="union")
    oracle = of_the_last_cell(sampler, loss_of, "autograd")
    assert worst_error(of_the_last_cell(sampler, loss_of, policy, impl=impl), oracle) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.skipif(not backend.interpreting(), reason="in Triton's interpreter only")
@pytest.mark.parametrize("loss_of", ["transposed", "expanded over the batch"], indirect=True)
def test_fault_31_the_kernels_take_any_gradient_of_a_cells_output(loss_of):
    """In Triton's interpreter: one cell, of which two edges have a separable convolution and the others nothing."""
    size, sampler = {"layers": 1, "side": 4}, sampler_of(k=1, mode="union")
    with torch.no_grad():
        for alpha in sampler.alpha.values():
            alpha.zero_()[:, 0] = 60.0
            alpha[:2, 4] = 120.0
    oracle = of_the_last_cell(sampler, loss_of, "autograd", **size)
    assert worst_error(of_the_last_cell(sampler, loss_of, "min", impl="triton", **size), oracle) <= TOLERANCE


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", ["cifar", "imagenet"])
def test_fault_31_a_stem_takes_any_gradient_of_its_output(loss_of, kind, keep):
    spec = search_skeleton(SPACES["darts"], channels=4, layers=3, stem=kind).stems[0]
    x = random(2, 3, 16, 16)
    shapes = [shape for one in spec.convs for shape in ((one.channels, one.channels_in, 3, 3), *[(one.channels,)] * 2)]
    ours, plain = ([random(*shape).requires_grad_() for shape in shapes] for _ in range(2))
    loss_of(StemFunction.apply(spec, keep, x.permute(0, 2, 3, 1), *ours)).backward()
    loss_of(plain_stem(spec, x, plain).permute(0, 2, 3, 1), watched=False).backward()
    named = [{str(number): one.grad for number, one in enumerate(group)} for group in (ours, plain)]
    assert worst_error(*named) <= TOLERANCE


def test_fault_31_what_is_computed_again_takes_any_gradient(loss_of):
    x, w = random(2, 4, 4, 6), random(6, 6)
    ours, plain = ([x.clone().requires_grad_(), w.clone().requires_grad_()] for _ in range(2))
    loss_of(RecomputeFunction.apply(lambda a, b: torch.tanh(a @ b), *ours)).backward()
    loss_of(torch.tanh(plain[0] @ plain[1]), watched=False).backward()
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(native.why_not() is not None, reason="the C++ kernels are not built")
def test_fault_31_a_separable_convolution_takes_any_gradient_of_its_output(loss_of):
    """Trained in fp32 by the C++ kernels, held against autograd in fp64: no worse than autograd in fp32."""

    def grads(dtype: torch.dtype, memory: torch.memory_format) -> list[Tensor]:
        torch.manual_seed(0)
        stage = SeparableStage(8, 3, 1, 1).to(dtype)
        x = random(4, 8, 6, 6).to(dtype).contiguous(memory_format=memory).requires_grad_()
        by_kernels = takes(x, stage.depthwise.weight)
        assert by_kernels == (memory is torch.channels_last)
        loss_of(stage(x).permute(0, 2, 3, 1), watched=by_kernels).backward()
        return [x.grad.double(), *(parameter.grad.double() for parameter in stage.parameters())]

    truth = grads(torch.float64, torch.contiguous_format)
    plain = grads(torch.float32, torch.contiguous_format)
    for ours, theirs, right in zip(grads(torch.float32, torch.channels_last), plain, truth, strict=True):
        scale = right.norm() + 1e-6
        assert (ours - right).norm() / scale <= (theirs - right).norm() / scale + 1e-5
