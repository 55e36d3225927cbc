"""Means, intervals and paired tests against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from msgdas.bench.statistics import kendall_tau, paired, summary
from msgdas.engine.errors import ConfigError


def test_summary_is_a_mean_and_no_best():
    found = summary([93.0, 92.0, 94.0])
    assert (found.n, found.mean, found.low, found.high) == (3, 93.0, 92.0, 94.0)
    assert found.sd == pytest.approx(1.0)
    # Student's t at 97.5 % with two degrees of freedom is 4.302653.
    assert found.interval == pytest.approx((93 - 4.302653 / 3**0.5, 93 + 4.302653 / 3**0.5))
    assert math.isnan(summary([1.0]).sd)


def test_paired_looks_at_differences_only():
    shared = np.array([0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0])
    gains = np.array([1.0, 2.0, 1.5, 2.5, 0.5, 1.0, 2.0, 1.5])
    found = paired(shared + gains, shared)
    assert found.difference == pytest.approx(1.5)
    assert found.t_p < 0.001
    # All eight differences are positive: two-sided p of the signed rank test is 2 / 2^8 without ties.
    assert found.wilcoxon_p == pytest.approx(2 / 2**8, abs=0.01)
    assert found.interval[0] > 0.9 and found.interval[1] < 2.1
    assert paired(shared + gains, shared) == found


def test_equal_runs_differ_in_nothing():
    found = paired([1.0, 2.0], [1.0, 2.0])
    assert (found.difference, found.wilcoxon_p) == (0.0, 1.0)
    assert math.isnan(found.t_p)


def test_kendall_tau_of_swapped_pairs():
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx((5 - 1) / 6)
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0]]])
def test_nothing_is_averaged_over_nothing(values):
    with pytest.raises(ConfigError, match="finite numbers"):
        summary(values)


def test_pairs_have_the_same_seeds():
    with pytest.raises(ConfigError, match="3 and 2 runs"):
        paired([1.0, 2.0, 3.0], [1.0, 2.0])
