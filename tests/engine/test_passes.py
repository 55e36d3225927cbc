"""Micro-batches: gradients are the size-weighted mean of their own, and the peak falls."""

from __future__ import annotations

import sys
from itertools import permutations
from pathlib import Path

import pytest
import torch
from msgdas.engine.errors import ConfigError
from msgdas.engine.learning.passes import Feed
from msgdas.engine.learning.rung import Rung
from msgdas.engine.learning.score_baseline import ScoreBaseline
from msgdas.engine.learning.steps import Learner, Moment
from msgdas.engine.settings.config import SearchConfig
from msgdas.engine.supernet.operation import network_clock
from msgdas.engine.supernet.supernet import SuperNet
from msgdas.kernels.reference import gumbel_topk
from msgdas.profiles.tracker import LiveBytes

sys.path.insert(0, str(Path(__file__).parent))
from networks import sampler_of

MOMENT = Moment(step=8, tau=1.0, lr=0.05, drop_rate=0.0, guided=True)


def learner_of(policy: str = "min", **overrides) -> Learner:
    sampler = sampler_of(policy=policy, **overrides)
    net = SuperNet(sampler.space, channels=4, layers=3, classes=5, policy=[policy], dtype=torch.float64)
    return Learner(sampler.config, net, sampler)


def batch(size: int, side: int = 16):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, side, side, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 5, (size,), generator=generator)


def gradients(learner: Learner, phase: str, feed: Feed) -> dict[str, torch.Tensor]:
    """Of weights (phase W) or of alpha, without an update."""
    learner.drop_gradients()
    sample = learner.sampler.draw(feed.clock, feed.tau, grad=phase == "alpha")
    if phase == "W":
        learner.passes.weights(feed, sample, guided=True, dropped=False)
    elif learner.config.gate == "score":
        losses_K = learner.passes.losses(feed, sample, dropped=False)
        learner.score_baseline.backward(losses_K, sample.log_probability, learner.config.reward)
    else:
        learner.passes.gates(feed, sample, dropped=False)[1].backward()
    parameters = learner.net if phase == "W" else learner.sampler
    return {name: p.grad.clone() for name, p in parameters.named_parameters() if p.grad is not None}


OPTIONS = {
    "one by one": {"k": 2, "teacher": "none"},
    "together": {"k": 2, "execution": "co-resident", "teacher": "ensemble"},
    "union": {"k": 3, "mode": "union", "teacher": "supernet"},
    "restricted, all": {"k": 2, "gate": "restricted", "policy": "all", "teacher": "none"},
    "recompute": {"k": 2, "gate": "recompute", "teacher": "ensemble"},
    "autograd": {"k": 2, "policy": "autograd", "teacher": "none"},
}


@pytest.mark.parametrize("phase", ["W", "alpha"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("size", [4, 5])
def test_two_micro_batches_are_the_weighted_mean_of_their_gradients(options, phase, size):
    learner = learner_of(**options)
    learner.guidance.judge(0.0, 1.0)
    images, labels = batch(size)
    first = -(-size // 2)
    halves = [
        gradients(learner, phase, learner.feed(images[part], labels[part], MOMENT, 3))
        for part in (slice(0, first), slice(first, None))
    ]
    learner.stand_on(Rung(2, learner.net.policies, learner.sampler.k))
    both = gradients(learner, phase, learner.feed(images, labels, MOMENT, 3))
    assert both.keys() == halves[0].keys() and both
    for name, found in both.items():
        expected = halves[0][name] * (first / size) + halves[1][name] * (1 - first / size)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def test_score_estimator_takes_the_mean_loss():
    learner = learner_of(k=2, gate="score", teacher="none")
    learner.score_baseline.mean.fill_(1.0)
    images, labels = batch(4)
    losses = []
    for part in (slice(0, 2), slice(2, None)):
        feed = learner.feed(images[part], labels[part], MOMENT, 3)
        losses.append(learner.passes.losses(feed, learner.sampler.draw(3, feed.tau, grad=False), dropped=False))
    learner.stand_on(Rung(2, learner.net.policies, 2))
    feed = learner.feed(images, labels, MOMENT, 3)
    sample = learner.sampler.draw(3, feed.tau, grad=True)
    torch.testing.assert_close(learner.passes.losses(feed, sample, dropped=False), sum(losses) / 2)
    assert gradients(learner, "alpha", feed)["alpha.normal"].abs().max() > 0


def test_contrast_is_the_gradient_of_how_much_the_first_sub_graph_is_better():
    """The estimates of all pairs of one edge, each times its probability, against the expectation's derivative."""
    learner = learner_of(k=2, gate="score", reward="contrast", teacher="none")
    alpha = learner.sampler.alpha["normal"]
    operations = range(alpha.shape[1])
    costs = torch.linspace(0.5, 1.5, len(operations), dtype=torch.float64) ** 2
    row = alpha[0].detach().clone().requires_grad_(True)
    p = torch.softmax(row, -1)
    pairs = [(i, j) for i in operations for j in operations if i != j]
    chances = torch.stack([p[i] * p[j] / (1 - p[i]) for i, j in pairs])
    differences = torch.stack([costs[i] - costs[j] for i, j in pairs])
    (chances * differences).sum().backward()
    for (i, j), chance in zip(pairs, chances.detach(), strict=True):
        drawn = torch.tensor([[i, j]])
        log_probability = gumbel_topk.log_probability(torch.log_softmax(alpha[:1], -1), drawn).sum()
        learner.score_baseline.mean.fill_(0.0)
        learner.score_baseline.backward(chance * costs[[i, j]], log_probability, "contrast")
    torch.testing.assert_close(alpha.grad[0], row.grad, rtol=1e-10, atol=1e-12)


def test_contrast_keeps_a_third_of_the_signal_at_a_uniform_alpha_of_five():
    """Why there is another reward: the expectation of its estimates against the derivative of one draw's E[loss]."""
    costs = torch.linspace(0.5, 1.5, 5, dtype=torch.float64) ** 2
    alpha, row = (torch.zeros(1, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    (torch.softmax(row, -1) * costs).sum().backward()
    draws = list(permutations(range(5), 2))
    for drawn in draws:
        baseline = ScoreBaseline(alpha)
        baseline.mean.fill_(0.0)
        log_probability = gumbel_topk.log_probability(torch.log_softmax(alpha, -1), torch.tensor([drawn])).sum()
        baseline.backward(costs[list(drawn)] / len(draws), log_probability, "contrast")
    torch.testing.assert_close(alpha.grad, row.grad * 5 / 16)


@pytest.mark.parametrize("k", [2, 3])
def test_leave_one_out_has_the_direction_of_one_draws_loss_at_a_uniform_alpha(k):
    """The estimates of all ordered draws of one edge, each times its probability, against the derivative of E[loss]."""
    learner = learner_of(k=k, gate="score", reward="leave-one-out", teacher="none")
    alpha = learner.sampler.alpha["normal"]
    alpha.data.zero_()
    count = alpha.shape[1]
    costs = torch.linspace(0.5, 1.5, count, dtype=torch.float64) ** 2
    row = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    (torch.softmax(row, -1) * costs).sum().backward()
    draws = list(permutations(range(count), k))
    for drawn in draws:
        log_p_K = torch.log_softmax(alpha[0], -1)[list(drawn)]
        learner.score_baseline.backward(costs[list(drawn)] / len(draws), log_p_K, "leave-one-out")
    torch.testing.assert_close(alpha.grad[0], row.grad * count / (count - 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reward", ["contrast", "leave-one-out"])
def test_one_sub_graph_that_a_schedule_leaves_is_held_against_the_running_mean(reward):
    found = []
    for one in ("mean", reward):
        learner = learner_of(k=2, gate="score", reward=one, teacher="none")
        learner.follow(1)
        learner.score_baseline.mean.fill_(1.0)
        found.append(gradients(learner, "alpha", learner.feed(*batch(4), MOMENT, 3)))
    torch.testing.assert_close(found[1], found[0])


def test_leave_one_out_has_each_networks_own_probability():
    learner = learner_of(k=2, gate="score", reward="leave-one-out", assign="shuffle", teacher="none")
    sample = learner.sampler.draw(3, 1.0, grad=True)
    log_p = {kind: torch.log_softmax(alpha, -1) for kind, alpha in learner.sampler.alpha.items()}
    expected = [
        sum(log_p[kind].gather(1, paths.indices_EK).sum() for kind, paths in network.items())
        for network in sample.networks
    ]
    torch.testing.assert_close(sample.log_probability, torch.stack(expected))


@pytest.mark.parametrize("reward", ["contrast", "leave-one-out"])
@pytest.mark.parametrize(
    "options", [{"gate": "sampled"}, {"gate": "score", "k": 1}, {"gate": "score", "mode": "union"}]
)
def test_what_compares_needs_sub_graphs_to_compare(options, reward):
    with pytest.raises(ConfigError, match=f"reward {reward} compares several sub-graphs"):
        learner_of(**{"k": 2, "reward": reward, "teacher": "none", **options})


@pytest.mark.parametrize("phase", ["W", "alpha"])
def test_one_micro_batch_is_the_whole_batch_bit_for_bit(phase):
    learner = learner_of(k=2, teacher="none")
    images, labels = batch(4)
    found = gradients(learner, phase, learner.feed(images, labels, MOMENT, 3))
    learner.drop_gradients()
    sample = learner.sampler.draw(3, torch.tensor(1.0, dtype=torch.float64), grad=phase == "alpha")
    for paths in sample.networks:
        loss = torch.nn.functional.cross_entropy(learner.net(images, paths), labels)
        (loss / 2).backward(retain_graph=phase == "alpha")
    parameters = learner.net if phase == "W" else learner.sampler
    for name, parameter in parameters.named_parameters():
        if phase == "W" and parameter.grad is not None:
            assert torch.equal(found[name], parameter.grad)
        elif parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-12, atol=1e-15)


def test_results_are_means_over_the_whole_batch():
    whole, cut = learner_of(k=2, teacher="none"), learner_of(k=2, teacher="none")
    cut.stand_on(Rung(3, ("min",) * 3, 2))
    images, labels = batch(6)
    # One image six times: its statistics are those of any part.
    images, labels = images[:1].expand(6, -1, -1, -1).contiguous(), labels[:1].expand(6).contiguous()
    for take in ("alpha_step", "weight_step"):
        ours, theirs = (getattr(learner, take)(images, labels, MOMENT) for learner in (cut, whole))
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-10)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-8)


def test_the_peak_falls_with_micro_batches():
    peaks = {}
    for accumulate in (1, 2, 4):
        learner = learner_of(policy="all", k=2, accumulate=accumulate, batch=16, teacher="none")
        for phase in ("alpha_step", "weight_step"):
            with LiveBytes() as tracker:
                getattr(learner, phase)(*batch(16), MOMENT)
            peaks[phase, accumulate] = tracker.peak_bytes
    for phase in ("alpha_step", "weight_step"):
        assert peaks[phase, 2] < 0.6 * peaks[phase, 1] and peaks[phase, 4] < 0.35 * peaks[phase, 1]


def test_micro_batches_meet_masks_of_their_own():
    clock = torch.tensor([5, 9])
    clocks = {tuple(network_clock(clock, number, part).tolist()) for number in range(4) for part in range(4)}
    assert len(clocks) == 16
    assert torch.equal(network_clock(clock, 3), network_clock(clock, 3, 0))


def test_more_micro_batches_than_images_are_refused():
    with pytest.raises(ConfigError, match="accumulate"):
        SearchConfig(batch=4, accumulate=5)


def test_no_state_changes_where_memory_runs_out_before_the_update():
    """A step that fails in its passes, or while the update's own tensors are made, leaves everything as it was."""
    learner = learner_of(k=2, teacher="none")
    images, labels = batch(4)
    learner.weight_step(images, labels, MOMENT)
    before = {name: value.clone() for name, value in learner.net.state_dict().items()}
    momentum = [None if b is None else b.clone() for b in learner.weight_optimizer.buffers]

    class Full(torch.utils._python_dispatch.TorchDispatchMode):
        """Memory of so many new tensors, then none."""

        def __init__(self, left):
            super().__init__()
            self.left = left

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and not func._schema.is_mutable and not func.is_view:
                self.left -= 1
                if self.left < 0:
                    raise torch.OutOfMemoryError("out of memory")
            return result

    with Full(1 << 30) as counted:
        learner.weight_step(images, labels, MOMENT)
    total = (1 << 30) - counted.left
    learner.net.load_state_dict(before)
    learner.weight_optimizer.buffers = [None if b is None else b.clone() for b in momentum]
    for left in (total // 2, total - 30, total - 1):
        with Full(left), pytest.raises(torch.OutOfMemoryError):
            learner.weight_step(images, labels, MOMENT)
        assert all(torch.equal(before[name], now) for name, now in learner.net.state_dict().items())
        for was, now in zip(momentum, learner.weight_optimizer.buffers, strict=True):
            assert now is None or torch.equal(now, torch.zeros_like(now) if was is None else was)


@pytest.mark.parametrize("gate", ["sampled", "score"])
@pytest.mark.parametrize("earlier", [0, 2])
def test_an_alpha_step_can_be_undone(gate, earlier):
    undone, plain = (learner_of(k=2, gate=gate, teacher="none") for _ in range(2))
    for learner in (undone, plain):
        for _ in range(earlier):
            learner.alpha_step(*batch(4), MOMENT)
    before = undone.alpha_state()
    undone.alpha_step(*batch(5), MOMENT)
    undone.put_back(before)
    assert undone.alpha_step(*batch(4), MOMENT) == plain.alpha_step(*batch(4), MOMENT)
    assert torch.equal(undone.sampler.alpha["normal"], plain.sampler.alpha["normal"])
