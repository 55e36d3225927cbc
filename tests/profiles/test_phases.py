"""Phases of a timeline: stretches that do not overlap, peaks that survive thinning, gaps that tell what was missed."""

from __future__ import annotations

import time
from array import array
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from msgdas.profiles.phases import MAX_POINTS, PhaseClock, Span, by_phase, described, thinned
from msgdas.profiles.sampler import Timeline

MS = 1_000_000


def timeline(values: list[int], period_ns: int = MS) -> Timeline:
    times = array("Q", (n * period_ns for n in range(len(values))))
    return Timeline(times, array("Q", values), "test", "test thread", max(values, default=0))


def test_a_clock_closes_each_phase_where_the_next_begins():
    clock = PhaseClock()
    for name in ("a", "a", "b", "", "", "a"):
        clock.enter(name)
        time.sleep(0.001)
    clock.close()
    assert [span.name for span in clock.spans] == ["a", "b", "a"]
    assert all(span.start_ns < span.end_ns for span in clock.spans)
    assert clock.spans[0].end_ns == clock.spans[1].start_ns < clock.spans[1].end_ns < clock.spans[2].start_ns


def test_each_phase_has_its_own_peak_over_all_its_stretches():
    line = timeline([1, 9, 2, 3, 7, 4])
    spans = [Span("a", 0, 2 * MS - 1), Span("b", 2 * MS, 4 * MS - 1), Span("a", 4 * MS, 5 * MS)]
    found = by_phase(line, spans)
    assert (found["a"]["peak_bytes"], found["b"]["peak_bytes"]) == (9, 3)
    assert (found["a"]["samples"], found["b"]["samples"]) == (4, 2)


def test_a_phase_without_a_sample_says_so():
    found = by_phase(timeline([1, 2, 3]), [Span("short", 10, 20), Span("long", 0, 9 * MS)])
    assert found["short"]["peak_bytes"] is None and found["short"]["samples"] == 0
    # Nothing was sampled from the third millisecond on.
    assert found["long"]["largest_gap_ms"] == 7.0


@given(st.lists(st.integers(0, 50), max_size=300) | st.lists(st.integers(0, 1 << 40), min_size=2000, max_size=2500))
def test_thinning_keeps_the_peak_the_ends_and_the_order(values):
    times = [n * 7 for n in range(len(values))]
    at, kept = thinned(times, values)
    assert len(at) == len(kept) <= max(MAX_POINTS, 0)
    assert max(kept, default=None) == max(values, default=None)
    assert min(kept, default=None) == min(values, default=None)
    assert all(before < after for before, after in pairwise(at))
    assert all(values[time_ // 7] == value for time_, value in zip(at, kept, strict=True))


def test_flat_stretches_cost_two_points():
    at, kept = thinned(list(range(1000)), [5] * 400 + [8] + [5] * 599)
    assert (at, kept) == ([0, 399, 400, 401, 999], [5, 5, 8, 5, 5])


def test_what_is_kept_begins_at_zero_and_names_its_sampling():
    line = timeline([1, 9, 2])
    shifted = Timeline(array("Q", (n + 10 * MS for n in line.times_ns)), line.bytes, "test", "test thread", 9)
    found = described(shifted, [Span("a", 11 * MS, 12 * MS)])
    assert found["times_ms"][0] == 0 and found["phases"] == [["a", 1.0, 2.0]]
    assert (found["peak_bytes"], found["rate_hz"], found["largest_gap_ms"]) == (9, 1000.0, 1.0)
    assert described(timeline([]), [])["times_ms"] == []
