"""Means with their spread, and paired comparisons; nothing here gives a best of n as if it were a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..engine.errors import ConfigError

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Summary:
    """Of n independent runs.

    Attributes:
        n, mean, low, high: number, mean, smallest and largest.
        sd: sample standard deviation (n - 1), NaN for one run.
        interval: of the mean at CONFIDENCE, from Student's t; NaN for one run.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.mean:.2f} +- {self.sd:.2f} (n={self.n}, {self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, slots=True)
class Paired:
    """Two methods on the same seeds.

    Attributes:
        n: seeds.
        difference: mean of a - b.
        interval: of it at CONFIDENCE, by bootstrap over the seeds (percentile, fixed generator).
        t_p: two-sided p of the paired t test; NaN where all differences are equal.
        wilcoxon_p: two-sided p of Wilcoxon's signed rank test; 1 where all differences are zero.
    """

    n: int
    difference: float
    interval: tuple[float, float]
    t_p: float
    wilcoxon_p: float


def _values(values: ArrayLike, least: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < least or not np.isfinite(array).all():
        raise ConfigError(
            "statistics need finite numbers", got=f"shape {array.shape}", allowed=f"{least} or more in a row",
            next="more --seeds",
        )  # fmt: skip
    return array


def summary(values: ArrayLike) -> Summary:
    """Mean and spread of one run or more; ConfigError for none, or for values that are not finite."""
    from scipy import stats

    array = _values(values, 1)
    n, mean = len(array), float(array.mean())
    sd, interval = math.nan, (math.nan, math.nan)
    if n > 1:
        sd = float(array.std(ddof=1))
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * sd / math.sqrt(n)
        interval = (mean - half, mean + half)
    return Summary(n, mean, sd, float(array.min()), float(array.max()), interval)


def paired(a: ArrayLike, b: ArrayLike) -> Paired:
    """a against b, element by element the same seed; ConfigError for unequal lengths or fewer than two."""
    from scipy import stats

    first, second = _values(a, 2), _values(b, 2)
    if len(first) != len(second):
        raise ConfigError(
            "a paired test compares the same seeds", got=f"{len(first)} and {len(second)} runs",
            allowed="equally many", next="the same --seeds for both methods",
        )  # fmt: skip
    difference = first - second
    picks = np.random.default_rng(0).integers(0, len(difference), (RESAMPLES, len(difference)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(difference[picks].mean(1), (tail, 1 - tail))
    t_p = math.nan if np.ptp(difference) == 0 else float(stats.ttest_rel(first, second).pvalue)
    wilcoxon_p = float(stats.wilcoxon(first, second).pvalue) if difference.any() else 1.0
    return Paired(len(difference), float(difference.mean()), (float(low), float(high)), t_p, wilcoxon_p)


def kendall_tau(a: Sequence[float] | ArrayLike, b: Sequence[float] | ArrayLike) -> float:
    """Kendall's tau-b of two rankings; NaN where one of them has no order at all."""
    from scipy import stats

    return float(stats.kendalltau(_values(a, 2), _values(b, 2)).statistic)
