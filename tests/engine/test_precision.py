"""16-bit maps in plain PyTorch: as near to fp32 as autocast is, in less memory; the loss scale of fp16."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from msgdas.engine.errors import ConfigError, NumericsError
from msgdas.engine.learning.assembly import build_learner
from msgdas.engine.learning.loss_scale import FIRST, GROWTH_STEPS, LossScale
from msgdas.engine.learning.steps import Moment
from msgdas.engine.settings.checks import POLICIES
from msgdas.engine.settings.recipes import demo
from msgdas.profiles.meter import measure

CPU = torch.device("cpu")
SIZES = {"channels": 8, "layers": 3, "image": 16, "batch": 16, "impl": "reference", "dbi": "off", "teacher": "none"}
MOMENT = Moment(0, tau=1.0, lr=0.1, drop_rate=0.0, guided=False)


def batch(size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, 16, 16, generator=generator), torch.arange(size) % 10


def gradients(*, autocast: torch.dtype | None = None, **changes) -> torch.Tensor:
    """Of the weights and gates of one network."""
    learner, _, _ = build_learner(demo(**{**SIZES, **changes}), CPU, 10)
    (network,) = learner.sampler.draw(3, 1.0, grad=True).networks
    leaves = {kind: cell.leaves() for kind, cell in network.items()}
    images, labels = batch()
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        loss = F.cross_entropy(learner.net(images, leaves), labels)
    (loss * 1024).backward()
    found = [parameter.grad for parameter in learner.net.parameters() if parameter.grad is not None]
    found += [cell.gates_EO.grad for cell in leaves.values()]
    assert {grad.dtype for grad in found} == {torch.float32}
    return torch.cat([grad.flatten() for grad in found]) / 1024


def off(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return ((ours - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_are_as_near_to_fp32_as_those_of_autocast(space, dtype):
    truth = gradients(space=space)
    cast = off(gradients(space=space, policy="autograd", autocast=getattr(torch, dtype)), truth)
    for policy in POLICIES:
        ours = off(gradients(space=space, policy=policy, dtype=dtype), truth)
        assert 0 < ours < 2 * cast, (policy, ours, cast)


def test_maps_take_half_of_the_memory():
    peaks = {}
    for dtype in ("float32", "bfloat16"):
        learner, _, _ = build_learner(demo(**{**SIZES, "policy": "bn", "dtype": dtype}), CPU, 10)
        images, labels = batch(32)
        learner.weight_step(images, labels, MOMENT)
        peaks[dtype] = measure(functools.partial(learner.weight_step, images, labels, MOMENT), CPU)[1].bytes
    assert peaks["bfloat16"] < 0.7 * peaks["float32"]


def test_fault_17_a_step_of_fp16_that_is_not_finite_is_skipped_and_counted():
    learner, _, _ = build_learner(demo(**SIZES, dtype="float16", scale_skips=3), CPU, 10)
    before = [parameter.detach().clone() for parameter in learner.net.parameters()]
    alphas = [alpha.detach().clone() for alpha in learner.sampler.parameters()]
    learner.scale.scale = 2.0**60
    assert learner.weight_step(*batch(), MOMENT).grad_norm is None
    assert learner.alpha_step(*batch(), MOMENT).grad_norm is None
    assert (learner.scale.scale, learner.scale.skipped) == (2.0**58, 2)
    assert all(map(torch.equal, before, learner.net.parameters()))
    assert all(map(torch.equal, alphas, learner.sampler.parameters()))
    with pytest.raises(NumericsError, match="gradient norm of the W step 1 is not finite"):
        learner.weight_step(*batch(), MOMENT)
    learner.scale.scale = FIRST
    assert learner.weight_step(*batch(), MOMENT).grad_norm is not None
    assert learner.scale.run == 0
    assert not all(map(torch.equal, before, learner.net.parameters()))


def test_the_scale_leaves_the_size_of_a_step_alone():
    norms = []
    for scale in (1.0, 2.0**10):
        learner, _, _ = build_learner(demo(**SIZES, dtype="float16"), CPU, 10)
        learner.scale.scale = scale
        norms.append((learner.alpha_step(*batch(), MOMENT).grad_norm, learner.weight_step(*batch(), MOMENT).grad_norm))
    for one, other in zip(*norms, strict=True):
        assert math.isclose(one, other, rel_tol=0.05)


def test_the_scale_grows_after_good_steps_and_comes_back_from_a_checkpoint():
    scale = LossScale(on=True, patience=2)
    assert scale.forgives(finite=False) and scale.scale == FIRST / 2
    for _ in range(GROWTH_STEPS):
        assert not scale.forgives(finite=True)
    assert scale.scale == FIRST
    other = LossScale(on=True, patience=2)
    other.load_state_dict(scale.state_dict())
    assert other.state_dict() == scale.state_dict()


def test_other_dtypes_have_no_scale():
    scale = LossScale(on=False, patience=2)
    assert scale.scale == 1 and not scale.forgives(finite=False) and scale.scale == 1


def test_the_plain_path_takes_no_16_bit_maps():
    with pytest.raises(ConfigError, match="16-bit maps need the cell engine"):
        demo(dtype="bfloat16", policy="autograd")
