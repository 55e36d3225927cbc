"""Every method against its published formula, written out by hand here."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from networks import sampler_of


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pulled_back(sampler, sample, v_EO: torch.Tensor) -> torch.Tensor:
    """Gradient in alpha where v is that of the first network's gates."""
    gates_EO = sample.networks[0]["normal"].gates_EO
    (grad,) = torch.autograd.grad((gates_EO * v_EO).sum(), sampler.alpha["normal"], retain_graph=True)
    return grad


def test_plain_gates_have_the_gradient_of_softmax_without_noise_and_tau():
    """ProxylessNAS, equation 4: dL/dalpha_i = sum_j dL/dg_j p_j (delta_ij - p_i), g the binary gates."""
    sampler = sampler_of(k=1, relaxation="plain", gate="recompute")
    sample, v = sampler.draw(3, 0.37, grad=True), random(14, 8)
    p = torch.softmax(sampler.alpha["normal"].detach(), -1)
    expected = p * (v - (p * v).sum(-1, keepdim=True))
    torch.testing.assert_close(pulled_back(sampler, sample, v), expected)
    binary = sample.networks[0]["normal"].gates_EO.detach()
    torch.testing.assert_close(binary, torch.nn.functional.one_hot(sample.indices["normal"][:, 0], 8).double())


def test_sigmoid_gates_do_not_compete():
    sampler = sampler_of(k=8, mode="union", noise="off", relaxation="sigmoid", tau_min=3.0)
    sample, v = sampler.draw(3, 3.0, grad=True), random(14, 8)
    s = 1 / (1 + torch.exp(-sampler.alpha["normal"].detach()))
    torch.testing.assert_close(sample.networks[0]["normal"].gates_EO.detach(), s)
    torch.testing.assert_close(pulled_back(sampler, sample, v), v * s * (1 - s))
