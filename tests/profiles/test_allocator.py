"""The simulated caching allocator: PyTorch's rules, hand-worked cases, and what must hold for any sequence."""

from __future__ import annotations

import gc
import re
from collections.abc import Hashable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgdas.profiles import allocator as module
from msgdas.profiles.allocator import CachingAllocator, Peaks, round_size, segment_size
from msgdas.profiles.errors import BudgetError

MIB = 1 << 20


class Event(NamedTuple):
    """A birth of `size_bytes`, or the end of the block of the same key where `size_bytes` is None.

    `pool` is that of a captured CUDA graph, whose blocks serve no one else; empty for the common one.
    """

    key: Hashable
    size_bytes: int | None
    pool: str = ""


def replay(events: Iterable[Event], *, cap_bytes: int | None = None) -> Peaks:
    """The peaks of a sequence of events."""
    allocator = CachingAllocator(cap_bytes)
    for key, size_bytes, pool in events:
        if size_bytes is None:
            allocator.free(key)
        else:
            allocator.allocate(key, size_bytes, pool)
    return allocator.peaks


def test_constants_are_those_of_the_installed_torch():
    header = Path(torch.__file__).parent / "include/c10/core/AllocatorConfig.h"
    if not header.exists():
        pytest.skip("this build of torch ships no headers")
    text = header.read_text()
    found = {name: int(value) for name, value in re.findall(r"constexpr size_t (k\w+) = (\d+);", text)}
    assert found == {
        "kSmallBuffer": module.SMALL_SEGMENT_BYTES,
        "kMinBlockSize": module.MIN_BLOCK_BYTES,
        "kSmallSize": module.SMALL_SIZE_BYTES,
        "kMinLargeAlloc": module.MIN_LARGE_ALLOC_BYTES,
        "kRoundLarge": module.ROUND_LARGE_BYTES,
    }
    assert f"large_segment_size_{{{module.LARGE_SEGMENT_BYTES}}}" in text


@pytest.mark.parametrize(
    ("asked", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
    ],
)
def test_rounding_and_segments(asked, block, segment):
    assert round_size(asked) == block
    assert segment_size(block) == segment
    assert replay([Event("a", asked)]) == Peaks(asked, block, segment, 0)


def test_small_requests_share_a_segment():
    assert replay(Event(i, 512) for i in range(4096)).reserved_bytes == 2 * MIB
    assert replay(Event(i, 512) for i in range(4097)).reserved_bytes == 4 * MIB


@pytest.mark.parametrize(("asked", "in_block"), [(11 * MIB, 12 * MIB), (11 * MIB - 512, 11 * MIB - 512)])
def test_a_rest_of_a_mebibyte_stays_in_a_large_block(asked, in_block):
    allocator = CachingAllocator()
    allocator.allocate("a", 12 * MIB)
    allocator.free("a")
    allocator.allocate("b", asked)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (in_block, 12 * MIB)


def test_best_fit_takes_the_smallest_that_serves():
    allocator = CachingAllocator()
    for key, size_mib in (("a", 30), ("b", 12), ("c", 20)):
        allocator.allocate(key, size_mib * MIB)
    for key in "abc":
        allocator.free(key)
    allocator.allocate("d", 12 * MIB)
    allocator.allocate("e", 25 * MIB)
    allocator.allocate("f", 20 * MIB)
    assert allocator.reserved_bytes == 62 * MIB


def test_free_neighbours_merge():
    allocator = CachingAllocator()
    for key in "abcd":
        allocator.allocate(key, 5 * MIB)
    for key in "bdca":
        allocator.free(key)
    allocator.allocate("whole", 20 * MIB)
    assert allocator.reserved_bytes == 20 * MIB


def test_retry_gives_back_what_is_unused_and_only_that():
    allocator = CachingAllocator(cap_bytes=40 * MIB)
    for key in ("a", "b"):
        allocator.allocate(key, 20 * MIB)
    allocator.free("a")
    allocator.allocate("c", 14 * MIB)
    allocator.free("c")
    allocator.allocate("d", 16 * MIB)
    assert (allocator.retries, allocator.reserved_bytes) == (0, 40 * MIB)
    allocator.free("b")
    with pytest.raises(BudgetError, match=r"asked 40\.00 MiB, free 20\.00 MiB, needed 22\.00 MiB"):
        allocator.allocate("e", 22 * MIB)
    allocator.free("d")
    allocator.allocate("e", 22 * MIB)
    assert (allocator.retries, allocator.reserved_bytes) == (2, 22 * MIB)


def test_the_pool_of_a_graph_serves_no_one_else():
    events = [Event("a", 20 * MIB, "graph"), Event("a", None), Event("b", 20 * MIB)]
    assert replay(events).reserved_bytes == 40 * MIB
    assert replay([*events, Event("c", 20 * MIB, "graph")]).reserved_bytes == 40 * MIB


@st.composite
def sequences(draw):
    """Events in which blocks die after their birth, in any order."""
    sizes = draw(
        st.lists(st.one_of(st.integers(0, 4000), st.integers(1, 3 * MIB), st.integers(1, 60 * MIB)), max_size=60)
    )
    events, alive = [], []
    for key, size_bytes in enumerate(sizes):
        events.append(Event(key, size_bytes))
        alive.append(key)
        for _ in range(draw(st.integers(0, min(2, len(alive))))):
            events.append(Event(alive.pop(draw(st.integers(0, len(alive) - 1))), None))
    return events, alive


@given(sequences())
def test_what_holds_after_every_event(sequence):
    events, alive = sequence
    allocator, sizes = CachingAllocator(), {}
    for key, size_bytes, _ in events:
        if size_bytes is None:
            allocator.free(key)
            del sizes[key]
        else:
            allocator.allocate(key, size_bytes)
            sizes[key] = size_bytes
        assert allocator.requested_bytes == sum(sizes.values())
        assert allocator.requested_bytes <= allocator.allocated_bytes <= allocator.reserved_bytes
        # A block is at most a mebibyte larger than what it serves, for larger rests are split off.
        assert allocator.allocated_bytes <= sum(round_size(size) + MIB for size in sizes.values() if size)
        assert_no_overlap(allocator)
    for key in alive:
        allocator.free(key)
    assert allocator.allocated_bytes == allocator.requested_bytes == 0
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0


def assert_no_overlap(allocator):
    used = [(block.address, block.size_bytes) for block in allocator._used.values()]
    free = [(address, size_bytes) for blocks in allocator._free.values() for size_bytes, address, _ in blocks]
    spans = sorted(used + free)
    assert sum(size_bytes for _, size_bytes in spans) == allocator.reserved_bytes
    assert all(start + size_bytes <= after for (start, size_bytes), (after, _) in pairwise(spans))


@given(sequences(), st.integers(1, 200))
def test_same_again_and_a_cap_is_kept(sequence, cap_mib):
    events, _ = sequence
    peaks = replay(events)
    assert replay(events) == peaks
    assert replay(events, cap_bytes=peaks.reserved_bytes) == peaks
    allocator = CachingAllocator(cap_mib * MIB)
    try:
        for key, size_bytes, _ in events:
            allocator.free(key) if size_bytes is None else allocator.allocate(key, size_bytes)
    except BudgetError:
        assert allocator.retries
    assert allocator.peaks.reserved_bytes <= cap_mib * MIB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", range(5))
def test_against_the_real_one(seed):
    random = torch.Generator().manual_seed(seed)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    if before:
        pytest.skip("other tests' tensors are alive on the device")
    tensors, allocator = {}, CachingAllocator()
    for key in range(300):
        size_bytes = int(2 ** (24 * torch.rand((), generator=random).item() + 2))
        tensors[key] = torch.empty(size_bytes, dtype=torch.uint8, device="cuda")
        allocator.allocate(key, size_bytes)
        while len(tensors) > 40:
            gone = list(tensors)[int(torch.randint(len(tensors), (), generator=random))]
            del tensors[gone]
            allocator.free(gone)
    assert allocator.peaks.allocated_bytes == torch.cuda.max_memory_allocated()
    assert allocator.peaks.reserved_bytes == torch.cuda.max_memory_reserved()
