"""SampledSGD against torch.optim.SGD, and the rows that it must leave alone."""

from __future__ import annotations

import pytest
import torch
from msgdas.engine.learning.optimizer import SampledSGD
from torch import nn

OK, NOT_OK = torch.tensor(True), torch.tensor(False)


def arena(rows: int = 6) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, 4, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("nesterov", [False, True])
def test_an_arena_moves_like_one_parameter_for_each_row_under_torch_sgd(nesterov):
    generator = torch.Generator().manual_seed(2)
    ours = arena()
    rows = [nn.Parameter(ours.detach()[row].clone()) for row in range(6)]
    theirs = torch.optim.SGD(rows, lr=0.1, momentum=0.9, weight_decay=3e-2, nesterov=nesterov)
    optimizer = SampledSGD([ours], momentum=0.9, weight_decay=3e-2, nesterov=nesterov)
    for _ in range(5):
        used = torch.rand(6, generator=generator) < 0.5
        grad = torch.randn(6, 4, generator=generator)
        for row in range(6):
            rows[row].grad = grad[row].clone() if used[row] else None
        ours.grad = grad * used[:, None]
        theirs.step()
        optimizer.step(torch.tensor(0.1), [used[:, None].float()], OK)
    torch.testing.assert_close(ours.detach(), torch.stack([row.detach() for row in rows]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_ok_changes_nothing(bad):
    weight = arena()
    optimizer = SampledSGD([weight], momentum=0.9, weight_decay=1e-2)
    weight.grad = torch.ones_like(weight)
    optimizer.step(torch.tensor(0.1), [None], OK)
    before, momentum = weight.detach().clone(), optimizer.buffers[0].clone()
    weight.grad = torch.full_like(weight, bad)
    optimizer.step(torch.tensor(0.1), [None], NOT_OK)
    assert torch.equal(weight, before) and torch.equal(optimizer.buffers[0], momentum)


def test_clip_is_torchs():
    ours, theirs = arena(), arena()
    ours.grad, theirs.grad = torch.full_like(ours, 3.0), torch.full_like(theirs, 3.0)
    norm = SampledSGD([ours], momentum=0.9, weight_decay=0.0).clip(5.0)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_([theirs], 5.0))
    torch.testing.assert_close(ours.grad, theirs.grad)
