"""From a budget to a plan: K, batch, activation policy, mode and dtype.

A probe predicts one setting; nothing here knows what it asks. Every figure of a plan is a probe's answer at exactly
that setting: between batches the peak is a line through two probes, and the batch found on it is probed in turn;
between values of K nothing is ever interpolated, for the peak is not linear in K.

The rules, in this order:
1. K. For each policy the largest that fits at the wanted batch, in any of the modes and dtypes, and still trains a
   fair share of the images per second that the smallest K trains. How quick it is does not depend on the budget, so
   that a larger budget never gives a smaller K at the same policy. Where not even the smallest fits, the batch shrinks.
2. Batch. The largest that fits, up to the limit that was given.
3. Policy, mode, dtype. What trains the most sampled paths in a second: images per second times K.
4. Cells. Early cells hold the bytes: late ones take a policy that keeps more, as many as fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from .errors import BudgetError, in_words
from .predictor import Prediction

# (k, batch, policy, mode, dtype); the policy is one for all cells, or one for each cell joined by commas.
Probe = Callable[[int, int, str, str, str], Prediction]
# Of the budget, left free for what no prediction sees: fragmentation on a real device, libraries' workspaces (ours).
MARGIN = 0.05
# A K that trains less than one in this many of the smallest K's images in a second is not taken for the sake of memory
# that is free anyway: where a policy keeps nothing of the paths, every K fits, and time is what K costs (ours).
MOST_SLOWDOWN = 2.0
# Probes that look for the largest batch before the best found so far is taken.
MAX_PROBES = 8
# Share of what may be used from which on no larger batch is looked for beside the line's.
WELL_USED = 0.95
# Of the batches that are left, the share 1 / STRIDES is passed over for each miss in a row but the first.
STRIDES = 24


@dataclass(frozen=True, slots=True)
class Setting:
    """What a plan decides."""

    k: int
    batch: int
    policy: str
    mode: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Choices:
    """What a plan may choose from; a pinned value is the only one of its kind.

    Attributes:
        ks: values of K.
        batch: wanted.
        max_batch: the most that it may grow to; equal to `batch` where that is pinned.
        min_batch: the least that it may shrink to, likewise.
        policies: from the one that keeps the least to the one that keeps the most.
        modes, dtypes: names.
        cells: number of cells, for a policy of each cell; 0 where one policy serves all.
        most_slowdown: images per second of the smallest K over those of the K that is taken, at most.
    """

    ks: tuple[int, ...]
    batch: int
    max_batch: int
    min_batch: int
    policies: tuple[str, ...]
    modes: tuple[str, ...]
    dtypes: tuple[str, ...]
    cells: int = 0
    most_slowdown: float = MOST_SLOWDOWN

    def __post_init__(self) -> None:
        assert self.ks and self.policies and self.modes and self.dtypes
        assert 1 <= self.min_batch <= self.batch <= self.max_batch


@dataclass(frozen=True, slots=True)
class Candidate:
    """A setting that fits, and what was predicted for it."""

    setting: Setting
    prediction: Prediction

    @property
    def paths_per_s(self) -> float:
        """Sampled paths of single images that are trained in a second."""
        return self.prediction.samples_per_s * self.setting.k


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run under a budget.

    Attributes:
        setting, prediction: of the choice.
        budget_bytes: given.
        margin: share of it that stays free.
        why: one line for each decision.
        others: the best of each other policy that fits, best first.
    """

    setting: Setting
    prediction: Prediction
    budget_bytes: int
    margin: float
    why: tuple[str, ...]
    others: tuple[Candidate, ...]

    @property
    def limit_bytes(self) -> int:
        return usable_bytes(self.budget_bytes, self.margin)


def usable_bytes(budget_bytes: int, margin: float) -> int:
    """The budget without its margin, rounded down."""
    return int(budget_bytes * (1 - Fraction(margin).limit_denominator(10_000)))


class Surface:
    """A probe's answers, each asked for once, and the largest batch that fits for any setting.

    Args:
        probe: predicts one setting.
        alike: the policy that is asked for in place of another that keeps the same.

    Attributes:
        known: the answers so far; those of another process may be added.
    """

    def __init__(self, probe: Probe, alike: Callable[[str], str] = str) -> None:
        self._probe, self._alike = probe, alike
        self.known: dict[Setting, Prediction] = {}

    def at(self, setting: Setting) -> Prediction:
        setting = dataclasses.replace(setting, policy=self._alike(setting.policy))
        if setting not in self.known:
            self.known[setting] = _ask(self._probe, setting)
        return self.known[setting]

    def fits(self, setting: Setting, limit_bytes: int) -> bool:
        return self.at(setting).needed_bytes <= limit_bytes

    def largest_batch(self, start: Setting, low: int, high: int, limit_bytes: int) -> Setting | None:
        """The setting with the largest batch from `low` to `high` that fits, as far as MAX_PROBES tell.

        The line through the last two probes says where to look next; what is returned was probed itself.
        """
        if low == high:
            return start if self.fits(start, limit_bytes) else None
        near, last = start.batch, 2 * start.batch
        fitting, above = low - 1, high + 1
        for batch in (near, last):
            fitting, above = self._narrowed(dataclasses.replace(start, batch=batch), fitting, above, limit_bytes)
        misses = 0
        for _ in range(MAX_PROBES):
            aimed = min(max(self._aim(start, near, last, limit_bytes, high), fitting), above - 1)
            # The allocator's segments make steps, on which a line leads astray: go further after each miss.
            aimed = max(aimed - (above - fitting) * max(0, misses - 1) // STRIDES, fitting)
            if aimed <= fitting:
                if (
                    fitting >= low
                    and self.at(dataclasses.replace(start, batch=fitting)).needed_bytes > WELL_USED * limit_bytes
                ):
                    break
                aimed = (fitting + above) // 2
                if aimed <= fitting:
                    break
            setting = dataclasses.replace(start, batch=aimed)
            misses = 0 if self.fits(setting, limit_bytes) else misses + 1
            fitting, above = self._narrowed(setting, fitting, above, limit_bytes)
            near, last = last, aimed
        return dataclasses.replace(start, batch=fitting) if fitting >= low else None

    def _narrowed(self, setting: Setting, fitting: int, above: int, limit_bytes: int) -> tuple[int, int]:
        if self.fits(setting, limit_bytes):
            return (max(fitting, setting.batch), above) if setting.batch < above else (fitting, above)
        return fitting, min(above, max(setting.batch, fitting + 1))

    def _aim(self, start: Setting, near: int, last: int, limit_bytes: int, high: int) -> int:
        """The batch at which the line through two batches meets the limit."""
        if near == last:
            return last
        first_bytes, last_bytes = (
            self.at(dataclasses.replace(start, batch=batch)).needed_bytes for batch in (near, last)
        )
        slope = Fraction(last_bytes - first_bytes, last - near)
        return high if slope <= 0 else int((limit_bytes - first_bytes) / slope) + near


def plan(
    probe: Probe | Surface, budget_bytes: int, choices: Choices, *, margin: float = MARGIN, exact: Probe | None = None
) -> Plan:
    """The plan for a budget by the rules above.

    Args:
        probe: predicts one setting.
        budget_bytes: all that may be used, context included.
        choices: what may be chosen.
        margin: share of the budget that stays free.
        exact: a slower probe whose answer the plan is held to, where `probe` is a quick one.

    Raises:
        BudgetError: not even the smallest setting fits.
    """
    surface = probe if isinstance(probe, Surface) else Surface(probe)
    limit_bytes = room_bytes = usable_bytes(budget_bytes, margin)
    for _ in range(MAX_PROBES):
        best = [found for policy in choices.policies if (found := best_of(surface, policy, choices, room_bytes))]
        if not best:
            break
        best.sort(key=lambda candidate: candidate.paths_per_s, reverse=True)
        first = best[0]
        last = confirmed = _mixed(surface, first, choices, room_bytes)
        if exact is not None:
            confirmed = Candidate(last.setting, _ask(exact, last.setting))
        excess_bytes = confirmed.prediction.needed_bytes - limit_bytes
        if excess_bytes <= 0:
            why = tuple(_reasons(surface, first, last, best, choices, limit_bytes))
            return Plan(last.setting, confirmed.prediction, budget_bytes, margin, why, tuple(best[1:]))
        room_bytes = min(room_bytes, last.prediction.needed_bytes) - excess_bytes
    raise _nothing_fits(surface, choices, budget_bytes, margin)


def largest_k(surface: Surface, policy: str, choices: Choices, limit_bytes: int) -> int | None:
    """The largest K that fits and is quick enough at the wanted batch, in any mode and dtype; None where none is."""
    for k in sorted(choices.ks, reverse=True):
        settings = _settings(k, choices.batch, policy, choices)
        if any(quick_enough(surface, setting, choices) and surface.fits(setting, limit_bytes) for setting in settings):
            return k
    return None


def quick_enough(surface: Surface, setting: Setting, choices: Choices) -> bool:
    """Whether a setting trains a fair share of what the smallest K would train in its place."""
    least = _smallest_k(setting, choices)
    if least == setting:
        return True
    return surface.at(setting).samples_per_s * choices.most_slowdown >= surface.at(least).samples_per_s


def best_of(surface: Surface, policy: str, choices: Choices, limit_bytes: int) -> Candidate | None:
    """The best setting of one policy by the rules 1 to 3, None where none fits."""
    k = largest_k(surface, policy, choices, limit_bytes)
    low, high = choices.batch, choices.max_batch
    if k is None:
        k, low, high = min(choices.ks), choices.min_batch, choices.batch
    found: list[Candidate] = []
    for start in _settings(k, choices.batch, policy, choices):
        if not quick_enough(surface, start, choices):
            continue
        setting = surface.largest_batch(start, low, high, limit_bytes)
        if setting is not None:
            found.append(Candidate(setting, surface.at(setting)))
    return max(found, key=lambda candidate: candidate.paths_per_s, default=None)


def _mixed(surface: Surface, first: Candidate, choices: Choices, limit_bytes: int) -> Candidate:
    """`first` with the policy that keeps the most in as many late cells as fit, where that is quicker."""
    richest = choices.policies[-1]
    if choices.cells < 2 or first.setting.policy == richest:
        return first
    low, high = 0, choices.cells
    while high - low > 1:
        count = (low + high) // 2
        setting = _late(first.setting, richest, count, choices.cells)
        low, high = (count, high) if surface.fits(setting, limit_bytes) else (low, count)
    if not low:
        return first
    setting = _late(first.setting, richest, low, choices.cells)
    return max(first, Candidate(setting, surface.at(setting)), key=lambda one: one.paths_per_s)


def _late(setting: Setting, richer: str, count: int, cells: int) -> Setting:
    policy = ",".join([setting.policy] * (cells - count) + [richer] * count)
    return dataclasses.replace(setting, policy=policy)


def _settings(k: int, batch: int, policy: str, choices: Choices) -> Iterator[Setting]:
    for mode in choices.modes:
        for dtype in choices.dtypes:
            yield Setting(k, batch, policy, mode, dtype)


def _ask(probe: Probe, setting: Setting) -> Prediction:
    return probe(setting.k, setting.batch, setting.policy, setting.mode, setting.dtype)


def _nothing_fits(surface: Surface, choices: Choices, budget_bytes: int, margin: float) -> BudgetError:
    settings = [
        setting
        for policy in choices.policies
        for setting in _settings(min(choices.ks), choices.min_batch, policy, choices)
    ]
    least = min(settings, key=lambda setting: surface.at(setting).needed_bytes)
    needed_bytes = surface.at(least).needed_bytes
    whole_bytes = int(needed_bytes / (1 - margin)) + 1
    pinned = len(choices.ks) == 1 or choices.min_batch == choices.batch
    return BudgetError(
        f"not even K={least.k} with batch {least.batch} and policy {least.policy} fits",
        asked_bytes=budget_bytes,
        free_bytes=usable_bytes(budget_bytes, margin),
        needed_bytes=needed_bytes,
        next=f"take --budget {-(-whole_bytes // (1 << 20))}MiB"
        + (", or leave K and batch to the plan" if pinned else ", or fewer channels or layers"),
    )


def _smallest_k(setting: Setting, choices: Choices) -> Setting:
    return dataclasses.replace(setting, k=min(choices.ks))


def _larger_k(setting: Setting, choices: Choices) -> Setting:
    """The setting at the wanted batch with the next larger K."""
    return dataclasses.replace(setting, k=min(k for k in choices.ks if k > setting.k), batch=choices.batch)


def _reasons(
    surface: Surface, first: Candidate, last: Candidate, best: Sequence[Candidate], choices: Choices, limit_bytes: int
) -> Iterator[str]:
    setting = last.setting
    if len(choices.ks) == 1:
        yield f"K={setting.k}: given"
    elif setting.batch < choices.batch:
        yield f"K={setting.k}: the smallest, for none fits at batch {choices.batch}"
    elif setting.k == max(choices.ks):
        yield f"K={setting.k}: all there are fit at batch {choices.batch}"
    elif surface.fits(larger := _larger_k(first.setting, choices), limit_bytes):
        share = surface.at(larger).samples_per_s / surface.at(_smallest_k(larger, choices)).samples_per_s
        yield (
            f"K={setting.k}: {larger.k} would fit too, but train {share:.0%} of the images/s of "
            f"K={min(choices.ks)}; at least {1 / choices.most_slowdown:.0%} is asked, --k says otherwise"
        )
    else:
        yield f"K={setting.k}: the largest that fits at batch {choices.batch} with policy {first.setting.policy}"
    if choices.min_batch == choices.max_batch:
        yield f"batch {setting.batch}: given"
    elif setting.batch == choices.max_batch:
        yield f"batch {setting.batch}: the most that is allowed"
    else:
        yield f"batch {setting.batch}: the largest that keeps {in_words(limit_bytes)}"
    second = f"; next is {best[1].setting.policy} with {best[1].paths_per_s:,.0f}" if len(best) > 1 else ""
    yield f"policy {first.setting.policy}: {first.paths_per_s:,.0f} paths/s predicted{second}"
    if last is not first:
        late = setting.policy.count(setting.policy.rpartition(",")[2])
        yield f"the last {late} cells keep more, which fits too: {last.paths_per_s:,.0f} paths/s predicted"
