"""The score estimator of alpha's gradient (REINFORCE): from losses and the draw's probability, through no gate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Of the running mean that losses are compared with (ours).
DECAY = 0.9


class ScoreBaseline:
    """Leaves alpha its gradient, and remembers what samples cost so far.

    Args:
        like: the device and dtype of the running mean are its.

    Attributes:
        mean: of the costs, []; NaN before the first.
    """

    def __init__(self, like: Tensor) -> None:
        self.mean = like.new_full((), math.nan, requires_grad=False)

    def backward(self, losses_K: Tensor, log_probability: Tensor, *, contrast: bool) -> None:
        """(cost - mean) * grad log P, an unbiased estimate of grad E[cost] but for the running mean's lag.

        Args:
            losses_K: of the sampled networks.
            log_probability: of the draw, [].
            contrast: whether the cost is the first network's loss less the mean of the others', instead of the mean of
                all: they saw the same images, so the batch's own difficulty cancels (ours).
        """
        cost = losses_K[0] - losses_K[1:].mean() if contrast and len(losses_K) > 1 else losses_K.mean()
        mean = torch.where(torch.isnan(self.mean), cost, self.mean)
        ((cost - mean) * log_probability).backward()
        self.mean.copy_(DECAY * mean + (1 - DECAY) * cost)

    def state(self) -> float | None:
        """The running mean, None before the first cost."""
        return None if torch.isnan(self.mean) else self.mean.item()

    def load(self, state: float | None) -> None:
        """The inverse of `state`."""
        self.mean.fill_(math.nan if state is None else state)
