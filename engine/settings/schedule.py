"""What changes from epoch to epoch, as functions of the epoch."""

from __future__ import annotations

import math

from .config import SearchConfig


def temperature(config: SearchConfig, epoch: int) -> float:
    """tau, linear from tau_max in the first epoch to tau_min in the last (GDAS)."""
    if config.epochs == 1:
        return config.tau_max
    return config.tau_max - (config.tau_max - config.tau_min) * epoch / (config.epochs - 1)


def sampled(config: SearchConfig, epoch: int) -> int:
    """K of an epoch: `k_stages` over equal shares of the epochs (ours)."""
    return config.k_stages[epoch * len(config.k_stages) // config.epochs]


def kept(config: SearchConfig, epoch: int) -> int | None:
    """Operations that every edge keeps in an epoch, None for all: `kept_stages` after the first of equal shares."""
    stage = epoch * (len(config.kept_stages) + 1) // config.epochs
    return config.kept_stages[stage - 1] if stage else None


def learning_rate(config: SearchConfig, epoch: int) -> float:
    """SGD's learning rate, a half cosine from lr towards lr_min (DARTS).

    In the first lr_warmup epochs times (epoch + 1) / lr_warmup (PC-DARTS' train_search_imagenet.py).
    """
    cosine = config.lr_min + 0.5 * (config.lr - config.lr_min) * (1 + math.cos(math.pi * epoch / config.epochs))
    return cosine * min(1.0, (epoch + 1) / config.lr_warmup) if config.lr_warmup else cosine


def drop_rate(config: SearchConfig, epoch: int) -> float:
    """Rate of Dropblock-Identity, linear to dbi_last (ours; DropBlock and P-DARTS decay theirs to 0)."""
    left = 1 - epoch / config.epochs
    return 0.0 if config.dbi == "off" else config.dbi_rate * left + config.dbi_last * (1 - left)


def alpha_trains(config: SearchConfig, epoch: int) -> bool:
    """Whether alpha is updated in this epoch: not in the warm-up (PC-DARTS), nor where the super-net chooses."""
    return epoch >= config.warmup and config.choose == "alpha"


def alpha_due(config: SearchConfig, epoch: int, place: int) -> bool:
    """Whether a step on alpha precedes the W step in that place of the epoch: every `alpha_every`-th has one."""
    return alpha_trains(config, epoch) and (place + 1) % config.alpha_every == 0


def cost_share(config: SearchConfig, epoch: int) -> float:
    """Share of the expected cost's term: linear to 1 over `cost_ramp` of the epochs after the warm-up (ours)."""
    ramp = config.cost_ramp * (config.epochs - config.warmup)
    return min(1.0, max(0.0, (epoch + 1 - config.warmup) / ramp)) if ramp else 1.0


def guidance_active(config: SearchConfig, epoch: int) -> bool:
    """Whether super-net guidance may act in this epoch."""
    return epoch >= config.teacher_start * config.epochs
