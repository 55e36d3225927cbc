"""Steps on weights and alpha: execution modes agree, guidance obeys its rule, NaN gets nowhere."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from msgdas.engine.errors import NumericsError
from msgdas.engine.learning.guidance import Guidance
from msgdas.engine.learning.steps import Learner, Moment
from msgdas.engine.supernet.supernet import SuperNet

sys.path.insert(0, str(Path(__file__).parent))
from networks import sampler_of


def learner_of(policy: str = "min", **overrides) -> Learner:
    options = {"dtype": torch.float32, **overrides}
    sampler = sampler_of(policy=policy, **options)
    net = SuperNet(sampler.space, channels=4, layers=3, classes=5, policy=[policy], dtype=options["dtype"])
    return Learner(sampler.config, net, sampler)


def batch(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, 16, 16, generator=generator), torch.randint(0, 5, (6,), generator=generator)


def moment(step: int = 0, **changes) -> Moment:
    return Moment(**{"step": step, "tau": 1.0, "lr": 0.05, "drop_rate": 0.2, "guided": False, **changes})


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.net.named_parameters()}


@pytest.mark.parametrize("kind", ["none", "ensemble", "supernet"])
def test_sequential_and_co_resident_take_the_same_steps(kind):
    results = []
    for execution in ("sequential", "co-resident"):
        learner = learner_of(k=3, execution=execution, teacher=kind, dtype=torch.float64)
        for step in range(3):
            alpha = learner.alpha_step(*batch(step), moment(step, guided=True))
            result = learner.weight_step(*batch(step + 9), moment(step, guided=True))
        results.append((alpha, result, weights(learner), copy.deepcopy(learner.sampler.state_dict())))
    (a1, r1, w1, s1), (a2, r2, w2, s2) = results
    assert a1.loss == pytest.approx(a2.loss, rel=1e-10) and r1.loss == pytest.approx(r2.loss, rel=1e-10)
    for name in w1:
        torch.testing.assert_close(w1[name], w2[name], rtol=1e-8, atol=1e-10)
    for name in s1:
        torch.testing.assert_close(s1[name], s2[name], rtol=1e-8, atol=1e-10)


def test_no_gradient_of_the_weights_is_left_for_the_step_on_alpha():
    learner = learner_of(k=2)
    learner.weight_step(*batch(), moment())
    assert all(parameter.grad is None for parameter in learner.net.parameters())


def test_alpha_step_changes_alpha_only_and_w_step_weights_only():
    learner = learner_of(k=2)
    before, alpha = weights(learner), copy.deepcopy(learner.sampler.state_dict())
    learner.alpha_step(*batch(), moment())
    assert all(torch.equal(before[name], now) for name, now in weights(learner).items())
    assert not torch.equal(alpha["alpha.normal"], learner.sampler.alpha["normal"])
    alpha = copy.deepcopy(learner.sampler.state_dict())
    learner.weight_step(*batch(), moment())
    assert torch.equal(alpha["alpha.normal"], learner.sampler.alpha["normal"])
    changed = [name for name, now in weights(learner).items() if not torch.equal(before[name], now)]
    assert "layers.0.depthwise_TC" in changed and "layers.0.pointwise_SCC" in changed


@pytest.mark.parametrize("gate", ["sampled", "recompute", "restricted", "score"])
@pytest.mark.parametrize("mode", ["union", "subgraphs"])
def test_every_estimator_takes_an_alpha_step(gate, mode):
    learner = learner_of(k=2, gate=gate, mode=mode, teacher="none")
    before = copy.deepcopy(learner.sampler.state_dict())
    for step in range(2):
        learner.alpha_step(*batch(step), moment(step))
    assert not torch.equal(before["alpha.normal"], learner.sampler.alpha["normal"])


def test_a_search_in_one_batch_learns_it():
    learner = learner_of(k=2, mode="union", teacher="none")
    losses = [learner.weight_step(*batch(), moment(step, drop_rate=0.0)).loss for step in range(40)]
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


def test_teacher_leaves_no_graph_and_no_running_statistics():
    learner = learner_of(k=2, teacher="supernet")
    state = copy.deepcopy(learner.net.state_dict())
    z = learner.guidance.logits(batch()[0], [])
    assert z.grad_fn is None and not z.requires_grad
    assert all(torch.equal(state[name], now) for name, now in learner.net.state_dict().items())
    assert not any(buffer.is_floating_point() for buffer in learner.net.buffers())


def test_a_teacher_worse_than_its_students_is_not_used():
    learner = learner_of(k=2, teacher="supernet")
    guidance = learner.guidance
    assert not guidance.trusted
    guidance.judge(20.0, student_loss=1.0)
    assert not guidance.trusted
    for _ in range(60):
        guidance.judge(0.1, student_loss=1.0)
    assert guidance.trusted
    guidance.judge(20.0, student_loss=1.0)
    assert not guidance.trusted and guidance.due(8) and not guidance.due(9)


def test_distillation_only_when_trusted_and_guided():
    learner = learner_of(k=2, teacher="ensemble")
    first = learner.weight_step(*batch(), moment(0, guided=False))
    second = learner.weight_step(*batch(), moment(8, guided=True))
    third = learner.weight_step(*batch(), moment(9, guided=True))
    assert first.distill is None and second.distill is None
    assert learner.guidance.trusted and third.distill is not None and third.distill > 0


def test_distillation_is_t_squared_kl():
    guidance = Guidance.__new__(Guidance)
    guidance.config = sampler_of(k=2, teacher_temperature=2.0).config
    teacher, student = torch.randn(4, 5), torch.randn(4, 5)
    p = torch.softmax(teacher / 2, -1)
    expected = 4 * (p * (p.log() - torch.log_softmax(student / 2, -1))).sum(-1).mean()
    torch.testing.assert_close(guidance.distillation(teacher, student), expected)


def test_ema_teacher_follows_the_weights():
    learner = learner_of(k=2, teacher="ema", teacher_decay=0.5)
    name = "classifier.weight"
    start = learner.net.get_parameter(name).detach().clone()
    learner.weight_step(*batch(), moment())
    now, follower = learner.net.get_parameter(name), learner.guidance.ema.get_parameter(name)
    torch.testing.assert_close(follower, (start + now) / 2)


def test_fault_15_nan_in_the_loss_stops_before_the_weights_change():
    learner = learner_of(k=2)
    x, y = batch()
    before = weights(learner)
    with pytest.raises(NumericsError, match="W step 1 is not finite"):
        learner.weight_step(torch.full_like(x, float("nan")), y, moment())
    assert all(torch.equal(before[name], now) for name, now in weights(learner).items())
    alpha = copy.deepcopy(learner.sampler.state_dict())
    with pytest.raises(NumericsError, match="alpha step 1 is not finite"):
        learner.alpha_step(torch.full_like(x, float("nan")), y, moment())
    assert all(torch.equal(alpha[name], now) for name, now in learner.sampler.state_dict().items())


def test_fault_15_infinite_gradient_stops_before_the_weights_change():
    learner = learner_of(k=2)
    with torch.no_grad():
        learner.net.classifier.weight.mul_(1e38)
    before = weights(learner)
    with pytest.raises(NumericsError):
        learner.weight_step(*batch(), moment())
    assert all(torch.equal(before[name], now) for name, now in weights(learner).items())


def test_fault_16_alpha_that_becomes_infinite_is_put_back():
    learner = learner_of(k=2)
    learner.alpha_optimizer.param_groups[0]["lr"] = float("inf")
    before = copy.deepcopy(learner.sampler.state_dict())
    with pytest.raises(NumericsError, match="alpha"):
        learner.alpha_step(*batch(), moment())
    assert all(torch.equal(before[name], now) for name, now in learner.sampler.state_dict().items())


@pytest.mark.parametrize("teacher", ["none", "ema"])
def test_state_round_trip_continues_bit_for_bit(teacher):
    learner = learner_of(k=2, teacher=teacher)
    for step in range(3):
        learner.alpha_step(*batch(step), moment(step))
        learner.weight_step(*batch(step), moment(step, guided=True))
    state = copy.deepcopy(learner.state_dict())
    other = learner_of(k=2, teacher=teacher)
    other.load_state_dict(state)
    for both in (learner, other):
        both.alpha_step(*batch(7), moment(7))
        both.weight_step(*batch(8), moment(7, guided=True))
    for name, now in weights(learner).items():
        assert torch.equal(now, other.net.get_parameter(name))
    assert torch.equal(learner.sampler.alpha["normal"], other.sampler.alpha["normal"])
