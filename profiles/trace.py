"""The births and ends of a step's storages in order: its peak, the peak's split, and what an allocator makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .allocator import CachingAllocator

# In the order in which they are shown. `kept` is what forward leaves to backward; `transient` everything that lives
# for a moment, the scratch of custom operators included.
CATEGORIES = ("parameters", "gradients", "optimizer", "images", "kept", "transient")
KEPT, TRANSIENT = "kept", "transient"
STATE = "state"
# Storages by number, see `Section.events`.
Events = NDArray[np.int64]


class Work(NamedTuple):
    """What one launch has to do: bytes of the tensors that it reads and writes, and floating-point operations."""

    moved_bytes: int
    flops: int


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a trace: storages by number, n + 1 for the birth of storage n, -n - 1 for its end."""

    events: tuple[int, ...]
    work: Mapping[Work, int]

    def scaled(self, batch: int, to: int) -> Section:
        """See `Trace.scaled`; work grows with the batch."""
        ratio = to / batch
        work: Counter[Work] = Counter()
        for one, count in self.work.items():
            work[Work(int(one.moved_bytes * ratio), int(one.flops * ratio))] += count
        return Section(self.events, work)


class Run(NamedTuple):
    """One pass through a section.

    Attributes:
        section: its name.
        pool: of the allocator; a captured graph has its own.
        fresh: whether all unused segments are given back before, as a capture does.
    """

    section: str
    pool: str = ""
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that was alive at once.

    Attributes:
        bytes: as requested, before any rounding.
        section: where.
        split_bytes: by category, at that moment; sums to `bytes`.
    """

    bytes: int
    section: str
    split_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Reserved:
    """What the CUDA allocator came to: blocks, segments, and the segments of captured graphs alone."""

    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything that a recorder saw.

    Attributes:
        sizes_bytes, categories: of storage n.
        sections: by name, in the order in which they ran; `state` is what lived before.
    """

    sizes_bytes: tuple[int, ...]
    categories: tuple[str, ...]
    sections: Mapping[str, Section]
    # What `_play` found, by order; the same for every batch.
    _plays: dict[tuple[Run, ...], list[Events]] = field(default_factory=dict, compare=False, repr=False)

    def peak(self, order: Sequence[Run]) -> Peak:
        """The peak of sections that run in this order, each as often as it is named."""
        plays = self._play(tuple(order))
        events = np.concatenate(plays)
        if not len(events):
            return Peak(0, order[0].section, dict.fromkeys(CATEGORIES, 0))
        serials, signs = np.abs(events) - 1, np.sign(events)
        sizes = np.asarray(self.sizes_bytes, dtype=np.int64)[serials] * signs
        live = np.cumsum(sizes)
        top = int(np.argmax(live))
        codes = np.array([CATEGORIES.index(name) for name in self.categories])[serials[: top + 1]]
        split = {name: int(sizes[: top + 1][codes == code].sum()) for code, name in enumerate(CATEGORIES)}
        ends = np.cumsum([len(play) for play in plays])
        return Peak(int(live[top]), order[int(np.searchsorted(ends, top, side="right"))].section, split)

    def reserve(self, order: Sequence[Run], *, cap_bytes: int | None = None) -> Reserved:
        """What PyTorch's CUDA allocator reserves for the same order (see `allocator`).

        Raises:
            BudgetError: it does not fit under the cap.
        """
        allocator, sizes = CachingAllocator(cap_bytes), self.sizes_bytes
        for run, events in zip(order, self._play(tuple(order)), strict=True):
            if run.fresh:
                allocator.empty_cache()
            for event in events.tolist():
                if event > 0:
                    allocator.allocate(event, sizes[event - 1], run.pool)
                else:
                    allocator.free(-event)
        peaks = allocator.peaks
        return Reserved(peaks.allocated_bytes, peaks.reserved_bytes)

    def scaled(self, batch: int, to: int) -> Trace:
        """The trace of the same step with another batch.

        Args:
            batch: of this trace; a prime that divides no size that does not grow with the batch.
            to: the other.
        """
        sizes = tuple(size // batch * to if size % batch == 0 else size for size in self.sizes_bytes)
        sections = {name: section.scaled(batch, to) for name, section in self.sections.items()}
        return Trace(sizes, self.categories, sections, self._plays)

    def _play(self, order: tuple[Run, ...]) -> list[Events]:
        """The events of each run.

        A section that runs again first ends what its last run left alive: the second step replaces the gradients of
        the first. Ends of storages that are gone already are passed over.
        """
        if order in self._plays:
            return self._plays[order]
        alive: set[int] = set()
        plays: list[Events] = []
        for run in order:
            events = self.sections[run.section].events
            played = [-event for event in events if event in alive]
            alive.difference_update(-event for event in played)
            for event in events:
                if event > 0:
                    alive.add(event)
                elif -event in alive:
                    alive.remove(-event)
                else:
                    continue
                played.append(event)
            plays.append(np.array(played, dtype=np.int64))
        self._plays[order] = plays
        return plays

    def work(self, sections: Iterable[str]) -> Counter[Work]:
        """The launches of some sections, equal ones counted together."""
        total: Counter[Work] = Counter()
        for name in sections:
            total.update(self.sections[name].work)
        return total
