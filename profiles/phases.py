"""A memory timeline with the phases of what was sampled: recorded, summed up, and small enough to keep beside a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .sampler import Timeline

# Points kept of a timeline: between two of them the highest and the lowest sample stay.
MAX_POINTS = 2000


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one phase, in nanoseconds of `time.monotonic_ns`'s clock."""

    name: str
    start_ns: int
    end_ns: int


class PhaseClock:
    """Takes down when each phase begins; a phase ends where another begins, or at `close`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._name, self._start_ns = "", 0

    def enter(self, name: str) -> None:
        """A phase begins; the empty name ends one without beginning another."""
        if name == self._name:
            return
        now_ns = time.monotonic_ns()
        if self._name:
            self.spans.append(Span(self._name, self._start_ns, now_ns))
        self._name, self._start_ns = name, now_ns

    def close(self) -> None:
        self.enter("")


def described(line: Timeline, spans: Sequence[Span]) -> dict[str, Any]:
    """A timeline as plain values for JSON, in bytes and in milliseconds since its first sample.

    Beside every peak stand the achieved rate and the largest gap: a spike shorter than the gap may have been missed.
    """
    start_ns = line.times_ns[0] if line.times_ns else 0
    at, values = thinned(line.times_ns, line.bytes)
    return {
        "source": line.source,
        "thread": line.thread,
        "lost": line.lost,
        "failures": line.failures,
        **_summary(line),
        "by_phase": by_phase(line, spans),
        "phases": [[span.name, (span.start_ns - start_ns) / 1e6, (span.end_ns - start_ns) / 1e6] for span in spans],
        "times_ms": [round((at_ns - start_ns) / 1e6, 3) for at_ns in at],
        "bytes": list(values),
    }


def _summary(line: Timeline) -> dict[str, Any]:
    return {
        "peak_bytes": line.peak_bytes,
        "samples": len(line.times_ns),
        "rate_hz": round(line.rate_hz, 1),
        "largest_gap_ms": round(line.largest_gap_ms, 3),
    }


def by_phase(line: Timeline, spans: Sequence[Span]) -> Mapping[str, Mapping[str, Any]]:
    """Peak, time and sampling of each phase over all of its stretches, in the order of their first.

    A phase that no sample fell into has a peak of None.
    """
    found: dict[str, dict[str, Any]] = {}
    for span in spans:
        part = line.during(span.start_ns, span.end_ns)
        phase = found.setdefault(
            span.name, {"peak_bytes": None, "samples": 0, "time_ms": 0.0, "rate_hz": 0.0, "largest_gap_ms": 0.0}
        )
        phase["samples"] += len(part.times_ns)
        phase["time_ms"] += (span.end_ns - span.start_ns) / 1e6
        # From the bounds too: a stretch without a sample is a gap as long as itself.
        bounds = [span.start_ns, *part.times_ns, span.end_ns]
        gaps = (after - before for before, after in pairwise(bounds))
        phase["largest_gap_ms"] = max(phase["largest_gap_ms"], max(gaps) / 1e6)
        if part.times_ns:
            phase["peak_bytes"] = max(phase["peak_bytes"] or 0, part.peak_bytes)
    for phase in found.values():
        phase["rate_hz"] = round(1e3 * phase["samples"] / phase["time_ms"], 1) if phase["time_ms"] else 0.0
        phase["time_ms"], phase["largest_gap_ms"] = round(phase["time_ms"], 3), round(phase["largest_gap_ms"], 3)
    return found


def thinned(times_ns: Sequence[int], values: Sequence[int]) -> tuple[list[int], list[int]]:
    """The samples without those that repeat both neighbours, then at most MAX_POINTS that keep every peak."""
    count = len(times_ns)
    kept = [
        n for n in range(count) if n in (0, count - 1) or not values[n - 1] == values[n] == values[n + 1]
    ]  # fmt: skip
    if len(kept) > MAX_POINTS:
        groups = MAX_POINTS // 2
        edges = [len(kept) * number // groups for number in range(groups + 1)]
        parts = [kept[low:high] for low, high in pairwise(edges)]
        chosen = {n for part in parts for n in (max(part, key=values.__getitem__), min(part, key=values.__getitem__))}
        kept = sorted(chosen)
    return [times_ns[n] for n in kept], [values[n] for n in kept]
