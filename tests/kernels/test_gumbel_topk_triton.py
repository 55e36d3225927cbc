"""The Gumbel-Top-K kernel against its plain-PyTorch twin, and the twin against the engine's sampler."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from msgdas.engine.learning.sampler import Sampler
from msgdas.engine.settings.config import SearchConfig
from msgdas.engine.spaces.space import SPACES
from msgdas.kernels import backend
from msgdas.kernels.errors import KernelError
from msgdas.kernels.reference import gumbel_topk as twin
from torch import Tensor

if not backend.interpreting() and not torch.cuda.is_available():
    pytest.skip("neither a GPU nor Triton's interpreter", allow_module_level=True)

from msgdas.kernels import gumbel_topk as ours

DEVICE = "cpu" if backend.interpreting() else "cuda"
RELAXATIONS = ("masked", "shared", "soft")
WAYS = [("union", "rank"), ("subgraphs", "rank"), ("subgraphs", "shuffle")]
SETTINGS = list(itertools.product(RELAXATIONS, WAYS))
# Each hands the gates a gradient that is not contiguous.
GATE_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda gates: (gates.sum((0, 1)) ** 2).sum(),
    "transposed": lambda gates: (gates.mT.contiguous() ** 2 * gates.mT.detach().contiguous()).sum(),
    "part of a cat": lambda gates: torch.cat([gates.detach(), gates], -1).exp().sum(),
}


def alpha_of(edges: int, operations: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(edges, operations, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)


def call(function: Any, alpha: Tensor, **changes: Any) -> tuple[Tensor, Tensor, Tensor]:
    settings = {
        "k": 2, "stream": 1, "relaxation": "masked", "noise": True, "mode": "union", "assign": "rank",
        "seed": 5, "draw": 11, "tau": 0.7, **changes,
    }  # fmt: skip
    clock = torch.tensor([settings.pop("seed"), settings.pop("draw")], device=alpha.device)
    tau = torch.tensor(settings.pop("tau"), dtype=alpha.dtype, device=alpha.device)
    return function(alpha, clock, tau, **settings)


def agree(ours_: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> None:
    assert torch.equal(ours_[0], truth[0])
    tolerance = 1e-13 if truth[1].dtype == torch.float64 else 2e-6
    for a, b in zip(ours_[1:], truth[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("relaxation", "way"), SETTINGS)
def test_the_kernel_equals_its_twin_forward_and_backward(relaxation, way, dtype):
    for edges, operations, k, noise in [
        (14, 8, 2, True),
        (17, 5, 3, True),
        (3, 8, 8, True),
        (6, 5, 1, False),
    ]:
        results, grads = [], []
        for function in (ours.gumbel_topk, twin.gumbel_topk):
            alpha = alpha_of(edges, operations, dtype).requires_grad_()
            result = call(function, alpha, k=k, noise=noise, relaxation=relaxation, mode=way[0], assign=way[1])
            weights = torch.randn(result[1].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            (result[1] * weights.to(result[1])).sum().backward()
            results.append([tensor.detach() for tensor in result])
            grads.append(alpha.grad)
        agree(*results)
        tolerance = 1e-12 if dtype == torch.float64 else 5e-6
        torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance)
        assert torch.equal((results[0][1] != 0).sum(-1).max(), torch.tensor(k if way[0] == "union" else 1))


@pytest.mark.parametrize(("relaxation", "way"), SETTINGS)
def test_the_twin_is_the_engines_sampler(relaxation, way):
    space = SPACES["darts"]
    config = SearchConfig(seed=9, k=3, relaxation=relaxation, mode=way[0], assign=way[1], gate="sampled")
    sampler = Sampler(space, config)
    sample = sampler.draw(7, torch.tensor(2.5), grad=True)
    for stream, cell in enumerate(space.cells):
        alpha = sampler.alpha[cell.kind]
        indices, gates, _ = call(
            twin.gumbel_topk, alpha, k=3, stream=stream, seed=9, draw=7, tau=2.5, relaxation=relaxation, mode=way[0],
            assign=way[1],
        )  # fmt: skip
        assert torch.equal(indices, sample.indices[cell.kind].int())
        theirs = torch.stack([network[cell.kind].gates_EO for network in sample.networks])
        assert torch.equal(gates, theirs)
        grads = [torch.autograd.grad((g * g.detach().exp()).sum(), alpha)[0] for g in (gates, theirs)]
        assert torch.equal(*grads)


@pytest.mark.parametrize(("relaxation", "way"), SETTINGS)
def test_backward_is_the_gradient_of_the_relaxation(relaxation, way):
    def relaxed(alpha: Tensor) -> Tensor:
        # The gates' value is hard; their gradient is that of the relaxation where an operation runs.
        _, gates, soft = call(ours.gumbel_topk, alpha, relaxation=relaxation, mode=way[0], assign=way[1], k=3)
        return (gates - gates.detach()) + soft * (gates.detach() != 0)

    assert torch.autograd.gradcheck(relaxed, alpha_of(3, 5, torch.float64).requires_grad_())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", GATE_LOSSES.values(), ids=GATE_LOSSES)
def test_fault_31_gates_take_any_gradient(way, loss):
    found = []
    for function in (ours.gumbel_topk, twin.gumbel_topk):
        alpha, strides = alpha_of(6, 5, torch.float64).requires_grad_(), []
        gates = call(function, alpha, k=3, relaxation="soft", mode=way[0], assign=way[1])[1]
        gates.register_hook(lambda grad, to=strides: to.append(grad.is_contiguous()))
        loss(gates).backward()
        assert strides == [False]
        found.append(alpha.grad)
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_fault_19_ties_go_to_the_lowest_index(way):
    alpha = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0, 2.0]], device=DEVICE)
    for function in (ours.gumbel_topk, twin.gumbel_topk):
        indices = call(function, alpha, k=4, noise=False, mode=way[0], assign=way[1])[0]
        assert indices.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]


@pytest.mark.parametrize(("relaxation", "way"), SETTINGS)
def test_fault_19_extreme_logits_stay_finite_and_distinct(relaxation, way):
    rows = [[1e4, -1e4, 0, 0, 0], [88, -88, 88, -88, 1], [-1e30, -1e30, -1e30, 0, -1e30], [1e36, 0, 0, 0, 0]]
    alpha = torch.tensor(rows, device=DEVICE)
    for k, tau in ((5, 0.05), (3, 10.0)):
        result = call(ours.gumbel_topk, alpha, k=k, tau=tau, relaxation=relaxation, mode=way[0], assign=way[1])
        agree(
            result,
            call(twin.gumbel_topk, alpha, k=k, tau=tau, relaxation=relaxation, mode=way[0], assign=way[1]),
        )
        assert all(len(set(row)) == k for row in result[0].tolist())
        assert all(tensor.isfinite().all() for tensor in result[1:])


# numpy, which stands behind the interpreter, warns of -inf - -inf.
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_fault_19_operations_of_probability_zero_come_last_and_once():
    alpha = torch.full((2, 5), -torch.inf, device=DEVICE)
    alpha[0, 3], alpha[1, :2] = 1.0, 0.0
    ours_, truth = (call(function, alpha, k=5)[0] for function in (ours.gumbel_topk, twin.gumbel_topk))
    assert torch.equal(ours_, truth)
    assert ours_[0].tolist() == [3, 0, 1, 2, 4]


def test_counters_have_64_bits():
    alpha = alpha_of(14, 8)
    seen = set()
    clocks = [(5, 1), (5, 4097), (5, 1 + (1 << 33)), (5 + (1 << 40), 1), (5 + (1 << 40), 1 + (1 << 42))]
    for seed, draw in clocks:
        result = call(ours.gumbel_topk, alpha, seed=seed, draw=draw, mode="subgraphs", assign="shuffle")
        agree(result, call(twin.gumbel_topk, alpha, seed=seed, draw=draw, mode="subgraphs", assign="shuffle"))
        seen.add(str(result[0].tolist()))
    assert len(seen) == 5


def test_the_clock_is_read_on_the_device_and_the_bytes_repeat():
    alpha, tau = alpha_of(14, 8), torch.tensor(1.0, device=DEVICE)
    clock = torch.tensor([3, 0], device=DEVICE)
    settings = {
        "k": 2,
        "stream": 0,
        "relaxation": "soft",
        "noise": True,
        "mode": "subgraphs",
        "assign": "shuffle",
    }
    first = ours.gumbel_topk(alpha, clock, tau, **settings)
    again = ours.gumbel_topk(alpha, clock, tau, **settings)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    clock[1] += 1
    assert not torch.equal(first[0], ours.gumbel_topk(alpha, clock, tau, **settings)[0])


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("alpha_EO", {"alpha": torch.zeros(3, 5, dtype=torch.bfloat16)}),
        ("alpha_EO", {"alpha": torch.zeros(5, 3).T}),
        ("alpha_EO", {"alpha": torch.zeros(0, 5)}),
        ("clock", {"clock": torch.zeros(2, dtype=torch.int32)}),
        ("clock", {"clock": torch.zeros(3, dtype=torch.int64)}),
        ("clock", {"clock": torch.zeros(2, dtype=torch.int64, device="meta")}),
        ("tau", {"tau": torch.ones(1)}),
        ("tau", {"tau": torch.tensor(1)}),
        ("k", {"k": 0}),
        ("k", {"k": 6}),
        ("stream", {"stream": 8}),
        ("relaxation", {"relaxation": "hard"}),
        ("mode", {"mode": "both"}),
        ("assign", {"assign": "first"}),
    ],
)
def test_wrong_arguments_are_named_before_a_launch(argument, changes):
    arguments = {
        "alpha": torch.zeros(3, 5), "clock": torch.zeros(2, dtype=torch.int64), "tau": torch.tensor(1.0), "k": 2,
        "stream": 0, "relaxation": "masked", "noise": True, "mode": "union", "assign": "rank", **changes,
    }  # fmt: skip
    tensors = [arguments.pop(name) for name in ("alpha", "clock", "tau")]
    with pytest.raises(KernelError, match=argument) as error:
        ours.gumbel_topk(*tensors, **arguments)
    assert error.value.argument == argument
