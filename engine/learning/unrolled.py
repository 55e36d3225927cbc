"""The second order of DARTS: alpha's gradient one W step ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .optimizer import SampledSGD
from .passes import Feed, GateLeaves, Passes
from .sampler import Sampler

# Of the finite difference, over the norm of the direction (DARTS, section 2.3).
EPSILON = 0.01


def unrolled_gradient(
    passes: Passes, sampler: Sampler, sgd: SampledSGD, feed: Feed, train: Feed, *, dropped: bool,
    average_: Callable[[Iterable[Tensor | None]], None] = lambda tensors: None,
) -> Tensor:  # fmt: skip
    """Alpha's gradient of L_val(w', alpha), w' = w - lr (momentum + dL_train/dw + weight decay w); weights stay.

    dL_val(w')/dalpha - lr (dL_train(w+)/dalpha - dL_train(w-)/dalpha) / (2 r), w+- = w +- r dL_val(w')/dw', with
    r = 0.01 / norm: equations 7 and 8 of Liu, Simonyan and Yang (ICLR 2019), momentum as in quark0/darts.

    Args:
        passes, sampler: of the search.
        sgd: its momentum and weight decay; nothing in it changes.
        feed, train: batches of alpha's half and of the weights', with lr.
        dropped: whether Dropblock-Identity acts.
        average_: overwrites gradients by their mean over all processes.

    Returns:
        L_val(w', alpha) []; the gradients are in alpha's parameters.
    """
    weights, alphas = sgd.parameters, list(sampler.parameters())
    before = [weight.detach().clone() for weight in weights]
    try:
        _look_ahead(passes, sampler, sgd, train, dropped, average_)
        loss, leaves = passes.gates(feed, sampler.draw(feed.clock, feed.tau, grad=True), dropped=dropped, weights=True)
        _to_alpha(leaves, average_)
        direction = [weight.grad for weight in weights]
        average_(direction)
        sgd.zero_grad()
        ahead = [alpha.grad for alpha in alphas]
        given = [grad for grad in direction if grad is not None]
        radius = EPSILON / torch.nn.utils.get_total_norm(given).clamp_min(torch.finfo(given[0].dtype).tiny)
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                for weight, old, grad in zip(weights, before, direction, strict=True):
                    weight.copy_(old if grad is None else old + sign * radius * grad)
            for alpha in alphas:
                alpha.grad = None
            _, leaves = passes.gates(train, sampler.draw(train.clock, train.tau, grad=True), dropped=dropped)
            _to_alpha(leaves, average_)
            sides.append([alpha.grad for alpha in alphas])
        scale = feed.lr / (2 * radius)
        for alpha, grad, plus, minus in zip(alphas, ahead, *sides, strict=True):
            assert grad is not None and plus is not None and minus is not None
            alpha.grad = grad - (scale * (plus - minus)).to(grad.dtype)
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
    return loss


def _to_alpha(leaves: GateLeaves, average_: Callable[[Iterable[Tensor | None]], None]) -> None:
    average_(leaves.gradients())
    leaves.backward()


def _look_ahead(
    passes: Passes, sampler: Sampler, sgd: SampledSGD, train: Feed, dropped: bool,
    average_: Callable[[Iterable[Tensor | None]], None],
) -> None:  # fmt: skip
    """Take a W step on the weights alone; leaves no gradients."""
    sgd.zero_grad()
    passes.weights(train, sampler.draw(train.clock, train.tau, grad=False), guided=False, dropped=dropped)
    average_([weight.grad for weight in sgd.parameters])
    with torch.no_grad():
        for weight, buffer in zip(sgd.parameters, sgd.buffers, strict=True):
            if weight.grad is not None:
                step = weight.grad.add_(weight, alpha=sgd.weight_decay)
                if buffer is not None:
                    step = step.add_(buffer, alpha=sgd.momentum)
                weight.sub_(train.lr * step)
    sgd.zero_grad()
