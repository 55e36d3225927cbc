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

    def backward(self, losses_K: Tensor, log_probability: Tensor, reward: str) -> None:
        """Leaves alpha the estimate that `reward` names.

        `mean` and `contrast`: (cost - running mean) * grad log P of the draw, an unbiased estimate of grad E[cost] but
        for the running mean's lag. The cost is the mean loss, or the first network's less the mean of the others':
        they saw the same images, so the batch's own difficulty cancels (ours). The contrast also falls where the
        others get worse, which takes most of its signal away.

        `leave-one-out`: the mean over the networks of (loss - mean of the others') * grad log P of that network alone.
        Leave-one-out baselines as in Kool et al., "Buy 4 REINFORCE Samples, Get a Baseline for Free!" (2019), there of
        independent samples; these exclude each other, and the weights that would correct for it (Kool et al., ICLR
        2020) are left out (ours): exact in direction at a uniform alpha.

        Where a schedule or a budget leaves one network, there is nothing to compare and all rewards are `mean`.

        Args:
            losses_K: of the sampled networks.
            log_probability: of the draw, [], or of each network, [K], as `Sample` has it for that reward.
            reward: as the configuration has it.
        """
        k = len(losses_K)
        if reward == "leave-one-out" and k > 1:
            costs_K = (losses_K - losses_K.mean()) * (k / (k - 1))
            (costs_K * log_probability).mean().backward()
            return
        cost = losses_K[0] - losses_K[1:].mean() if reward == "contrast" and k > 1 else losses_K.mean()
        mean = torch.where(torch.isnan(self.mean), cost, self.mean)
        ((cost - mean) * log_probability).sum().backward()
        self.mean.copy_(DECAY * mean + (1 - DECAY) * cost)

    def state(self) -> float | None:
        """The running mean, None before the first cost."""
        return None if torch.isnan(self.mean) else self.mean.item()

    def load(self, state: float | None) -> None:
        """The inverse of `state`."""
        self.mean.fill_(math.nan if state is None else state)
