"""The sampler's mathematics: law, ties, edge values, relaxations and their closed-form backward."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgdas.kernels.reference import gumbel_topk as gt
from msgdas.kernels.reference.philox import philox_bits, philox_uniform
from scipy import stats

RELAXATIONS = ("masked", "shared", "soft")


def test_philox_matches_the_published_vector():
    # Random123's kat_vectors: philox4x32-10 with counter and key all zero gives 6627e8d5 first.
    assert philox_bits(0, torch.zeros(1, dtype=torch.int64)).item() == 0x6627E8D5


def test_philox_uses_all_64_bits_of_the_counter_and_of_the_seed():
    offsets = torch.tensor([5, 5 + (1 << 32), 5 + (1 << 40)])
    draws = philox_bits(7, offsets).tolist() + philox_bits(7 + (1 << 33), offsets).tolist()
    assert len(set(draws)) == 6


def test_uniform_is_uniform_and_independent_of_the_block():
    offsets = torch.arange(1 << 16)
    u = philox_uniform(3, offsets)
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    assert torch.equal(u[100:200], philox_uniform(3, offsets[100:200]))
    assert u.min() >= 0 and u.max() < 1


def test_plackett_luce_law_by_chi_square():
    log_p = torch.log_softmax(torch.tensor([[0.3, -1.0, 1.2, 0.0, -0.4]]), -1)
    draws = 200_000
    u = philox_uniform(11, torch.arange(draws * 5)).view(draws, 5)
    indices = gt.top_k(log_p + gt.gumbel_noise(u), 3)
    codes = indices[:, 0] * 25 + indices[:, 1] * 5 + indices[:, 2]
    triples = list(itertools.permutations(range(5), 3))
    observed = [int((codes == a * 25 + b * 5 + c).sum()) for a, b, c in triples]
    expected = [math.exp(gt.log_probability(log_p, torch.tensor([triple]))[0].item()) for triple in triples]
    assert sum(expected) == pytest.approx(1, abs=1e-5)
    total = sum(expected)
    assert stats.chisquare(observed, [e / total * draws for e in expected]).pvalue > 1e-3


@given(
    st.lists(st.one_of(st.floats(-50, 50, width=32), st.just(-math.inf), st.just(0.0)), min_size=2, max_size=9),
    st.data(),
)
def test_fault_19_k_distinct_operations_whatever_the_logits(logits, data):
    k = data.draw(st.integers(1, len(logits)))
    scores = torch.tensor([logits])
    indices = gt.top_k(scores, k)[0].tolist()
    assert len(set(indices)) == k
    expected = sorted(range(len(logits)), key=lambda o: (-logits[o], o))[:k]
    assert indices == expected, "decreasing order, ties to the lowest index"


@given(st.sampled_from([0.0, 1.0, 1 - 2**-24, torch.finfo(torch.float32).tiny, 0.5, 1e-45]))
def test_fault_18_noise_is_finite_at_the_ends_of_the_interval(u):
    assert torch.isfinite(gt.gumbel_noise(torch.tensor([u], dtype=torch.float32))).all()


def test_fault_18_without_the_clip_zero_would_be_infinite():
    assert torch.isinf(-torch.log(-torch.log(torch.zeros(1)))).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(2, 8), st.data(), st.sampled_from(["masked", "shared"]), st.floats(0.1, 10))
def test_closed_form_backward_equals_autograd(edges, operations, data, relaxation, tau):
    k = data.draw(st.integers(1, operations))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    alpha = torch.randn(edges, operations, generator=g, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(edges, operations, generator=g, dtype=torch.float64)
    v = torch.randn(k, edges, operations, generator=g, dtype=torch.float64)
    scores = torch.log_softmax(alpha, -1) + noise
    indices = gt.top_k(scores.detach(), k)
    soft = gt.relax(scores, indices, tau, relaxation)
    hard = torch.zeros_like(soft).scatter(2, indices.t()[:, :, None], 1.0)
    y = gt.straight_through(hard, soft)
    torch.testing.assert_close(y, hard, atol=1e-12, rtol=0)
    (y * v).sum().backward()
    closed = gt.masked_backward(soft.detach(), v, tau)
    torch.testing.assert_close(alpha.grad, closed, atol=1e-12, rtol=1e-9)
    assert closed.sum(-1).abs().max() < 1e-10 / min(tau, 1)


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_relaxations_are_distributions_and_pass_gradcheck(relaxation):
    scores = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    indices = gt.top_k(scores.detach(), 3)
    soft = gt.relax(scores, indices, 0.7, relaxation)
    torch.testing.assert_close(soft.sum(-1), torch.ones(3, 3, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda s: gt.relax(s, indices, 0.7, relaxation), scores)


def test_masked_leaves_out_what_earlier_ranks_took_and_its_last_rank_has_no_gradient():
    scores = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    indices = gt.top_k(scores.detach(), 5)
    soft = gt.relax(scores, indices, 1.0, "masked")
    for rank in range(1, 5):
        taken = soft[rank].gather(1, indices[:, :rank])
        assert taken.abs().max() == 0
    (last,) = torch.autograd.grad(soft[4].sum() + soft[4].pow(2).sum(), scores)
    assert last.abs().max() < 1e-15


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 5), st.data())
def test_log_probability_sums_to_one_and_its_gradient_is_right(operations, data):
    k = data.draw(st.integers(1, operations))
    alpha = torch.randn(
        1, operations, dtype=torch.float64, generator=torch.Generator().manual_seed(k), requires_grad=True
    )
    total = torch.zeros((), dtype=torch.float64)
    for order in itertools.permutations(range(operations), k):
        total = total + gt.log_probability(torch.log_softmax(alpha, -1), torch.tensor([order]))[0].exp()
    assert total.item() == pytest.approx(1, abs=1e-12)
    first = torch.tensor([list(range(k))])
    assert torch.autograd.gradcheck(lambda a: gt.log_probability(torch.log_softmax(a, -1), first), alpha)


def test_soft_is_xie_and_ermons_recursion():
    scores = torch.tensor([[1.0, 0.5, -0.2]], dtype=torch.float64)
    soft = gt.relax(scores, gt.top_k(scores, 2), 0.1, "soft")
    first = torch.softmax(scores / 0.1, -1)
    second = torch.softmax((scores + torch.log(1 - first)) / 0.1, -1)
    torch.testing.assert_close(soft, torch.stack([first, second]))


def test_scores_of_low_precision_alpha_stay_ordered():
    alpha = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float16).float()
    assert gt.top_k(torch.log_softmax(alpha, -1), 3).tolist() == [[0, 2, 1]]
