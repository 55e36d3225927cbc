"""K over the epochs: what a schedule means, and what a guard takes from it."""

from __future__ import annotations

import pytest
import torch
from msgdas.engine.errors import ConfigError
from msgdas.engine.learning.assembly import build_learner
from msgdas.engine.learning.rung import Rung
from msgdas.engine.settings import schedule
from msgdas.engine.settings.recipes import demo

SMALL = {"channels": 4, "layers": 3, "image": 16, "batch": 4}


def ks(**changes):
    config = demo(**changes)
    return [schedule.sampled(config, epoch) for epoch in range(config.epochs)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [8] * 8),
        ("grow", [1, 1, 2, 2, 4, 4, 8, 8]),
        ("shrink", [8, 8, 4, 4, 2, 2, 1, 1]),
        ("8, 2", [8] * 4 + [2] * 4),
        ("1,8,3", [1, 1, 1, 8, 8, 8, 3, 3]),
    ],
)
def test_equal_shares_of_the_epochs(text, expected):
    assert ks(k=8, epochs=8, warmup=0, k_schedule=text) == expected


def test_k_that_is_no_power_of_two_ends_the_doubling():
    assert demo(k=5, k_schedule="grow").k_stages == (1, 2, 4, 5)
    assert demo(k=1, k_schedule="grow").k_stages == (1,)


def test_a_list_says_what_k_is():
    assert demo(k_schedule="1,4").k == 4
    with pytest.raises(ConfigError, match=r"k is the largest of k_schedule.*got k 2.*--k 4"):
        demo(k=2, k_schedule="1,4")
    with pytest.raises(ConfigError, match="k is the largest"):
        demo(method="gdas", mode="subgraphs", k_schedule="1,2")


@pytest.mark.parametrize("text", ["up", "1,,2", "0,1", "1;2", "-1", "²"])
def test_what_is_no_schedule(text):
    with pytest.raises(ConfigError, match="unreadable k_schedule"):
        demo(k_schedule=text)


def test_more_stages_than_epochs():
    with pytest.raises(ConfigError, match="every K of k_schedule"):
        demo(epochs=2, warmup=0, k_schedule="1,2,4")


def test_a_learner_samples_what_schedule_and_rung_allow():
    learner, _, _ = build_learner(demo(**SMALL, k=4, k_schedule="grow"), torch.device("cpu"), 10)
    assert learner.sampler.k == 4
    learner.follow(2)
    assert learner.sampler.k == 2 and learner.rung.k == 4
    learner.stand_on(Rung(1, learner.net.policies, 1))
    assert learner.sampler.k == 1
    learner.follow(4)
    assert learner.sampler.k == 1, "the guard's K stays the largest"
    assert learner.standing(Rung(2, ("min",), 8)) == Rung(2, ("min",), 4)


def test_the_drop_rate_goes_from_its_first_value_to_its_last():
    rates = [schedule.drop_rate(demo(epochs=4, warmup=0, dbi_rate=0.4), epoch) for epoch in range(4)]
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])
    constant = demo(epochs=4, warmup=0, dbi_rate=0.1, dbi_last=0.1)
    assert [schedule.drop_rate(constant, epoch) for epoch in range(4)] == pytest.approx([0.1] * 4)


def test_the_learning_rate_rises_over_its_warm_up():
    config = demo(epochs=10, lr=0.5, lr_min=0.0, lr_warmup=4)
    plain = demo(epochs=10, lr=0.5, lr_min=0.0)
    shares = [schedule.learning_rate(config, epoch) / schedule.learning_rate(plain, epoch) for epoch in range(10)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 7])
