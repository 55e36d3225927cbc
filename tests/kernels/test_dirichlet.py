"""Dirichlet samples from counters against their law, and their derivative against the mean's."""

from __future__ import annotations

import pytest
import torch
from msgdas.kernels.reference.dirichlet import log_dirichlet
from scipy import stats

CONCENTRATION = [1.0, 0.3, 2.5, 0.05]
ROWS = 4000


def sample(concentration_EO: torch.Tensor, at: int = 5) -> torch.Tensor:
    return log_dirichlet(concentration_EO, 3, torch.tensor(at)).exp()


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return sample(torch.tensor([CONCENTRATION], dtype=torch.float64).expand(ROWS, 4))


@pytest.mark.parametrize("column", range(4))
def test_margins_are_beta_distributions(rows, column):
    rest = sum(CONCENTRATION) - CONCENTRATION[column]
    law = stats.beta(CONCENTRATION[column], rest)
    assert stats.kstest(rows[:, column].numpy(), law.cdf).pvalue > 1e-3


def test_columns_are_tied_as_in_the_law(rows):
    c, total = torch.tensor(CONCENTRATION, dtype=torch.float64), sum(CONCENTRATION)
    expected = (torch.diag(c) * total - torch.outer(c, c)) / (total**2 * (total + 1))
    torch.testing.assert_close(torch.cov(rows.T), expected, atol=0.004, rtol=0)


def test_the_derivative_of_the_mean_is_the_means():
    c = torch.tensor([CONCENTRATION], dtype=torch.float64).expand(ROWS, 4).clone().requires_grad_()
    (grad,) = torch.autograd.grad(sample(c)[:, 2].mean(), c)
    one = torch.tensor(CONCENTRATION, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(one[2] / one.sum(), one)
    torch.testing.assert_close(grad.sum(0), expected, atol=0.02, rtol=0)


def test_a_sample_is_a_function_of_its_counters():
    c = torch.full((3, 5), 0.7)
    assert torch.equal(sample(c), sample(c)) and not torch.equal(sample(c), sample(c, at=100_000))
    assert sample(c).dtype == torch.float32


def test_tiny_concentrations_stay_finite():
    c = torch.full((4, 8), 1e-4).requires_grad_()
    log = log_dirichlet(c, 0, torch.tensor(0))
    (grad,) = torch.autograd.grad((log.exp() * torch.arange(8)).sum(), c)
    assert torch.isfinite(grad).all() and not torch.isnan(log).any()
