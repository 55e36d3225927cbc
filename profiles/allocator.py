"""What PyTorch's CUDA caching allocator would reserve for a sequence of allocations, without a GPU.

Rules and constants: c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h of PyTorch 2.14, its native
allocator as configured by default (no expandable segments, no split limit, no rounding to powers of two), one stream.
Not simulated: a cudaMalloc that fails below the cap, for device memory that is itself fragmented.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable
from dataclasses import dataclass

from .errors import BudgetError

MIN_BLOCK_BYTES = 512
SMALL_SIZE_BYTES = 1 << 20
SMALL_SEGMENT_BYTES = 2 << 20
LARGE_SEGMENT_BYTES = 20 << 20
MIN_LARGE_ALLOC_BYTES = 10 << 20
ROUND_LARGE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a sequence of events came to.

    Attributes:
        requested_bytes: the most that was asked for at once, before rounding.
        allocated_bytes: the most in blocks: `torch.cuda.max_memory_allocated`.
        reserved_bytes: the most in segments: `torch.cuda.max_memory_reserved`.
        retries: times that all unused segments were given back to find room below the cap.
    """

    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    retries: int


class _Block:
    __slots__ = ("address", "next", "previous", "requested_bytes", "size_bytes", "used", "where")

    def __init__(self, address: int, size_bytes: int, where: tuple[str, bool]) -> None:
        self.address = address
        self.size_bytes = size_bytes
        self.where = where
        self.requested_bytes = 0
        self.used = False
        self.previous: _Block | None = None
        self.next: _Block | None = None


class CachingAllocator:
    """The allocator's state between events.

    Args:
        cap_bytes: the most that may be reserved, as `set_per_process_memory_fraction` sets it; None for no cap.

    Attributes:
        requested_bytes, allocated_bytes, reserved_bytes: now.
        retries: see `Peaks`.
    """

    def __init__(self, cap_bytes: int | None = None) -> None:
        self.cap_bytes = cap_bytes
        self.requested_bytes = self.allocated_bytes = self.reserved_bytes = self.retries = 0
        self._most_requested_bytes = self._most_allocated_bytes = self._most_reserved_bytes = 0
        self._used: dict[Hashable, _Block] = {}
        # (size, address, block) in order, for each pool and size class.
        self._free: dict[tuple[str, bool], list[tuple[int, int, _Block]]] = {}
        self._next_address = 0

    @property
    def peaks(self) -> Peaks:
        """The most so far."""
        most = (self._most_requested_bytes, self._most_allocated_bytes, self._most_reserved_bytes)
        return Peaks(*most, self.retries)

    def allocate(self, key: Hashable, size_bytes: int, pool: str = "") -> None:
        """Take a block; nothing at all for zero bytes, as in PyTorch.

        Raises:
            BudgetError: no room below the cap, even after all unused segments were given back.
        """
        assert key not in self._used
        if size_bytes == 0:
            return
        rounded_bytes = round_size(size_bytes)
        where = (pool, rounded_bytes <= SMALL_SIZE_BYTES)
        block = self._best_fit(where, rounded_bytes) or self._new_segment(where, rounded_bytes)
        self._split(block, rounded_bytes)
        block.used, block.requested_bytes = True, size_bytes
        self._used[key] = block
        self.requested_bytes += size_bytes
        self.allocated_bytes += block.size_bytes
        if self.requested_bytes > self._most_requested_bytes:
            self._most_requested_bytes = self.requested_bytes
        if self.allocated_bytes > self._most_allocated_bytes:
            self._most_allocated_bytes = self.allocated_bytes
        if self.reserved_bytes > self._most_reserved_bytes:
            self._most_reserved_bytes = self.reserved_bytes

    def free(self, key: Hashable) -> None:
        """Return a block to its pool, merged with unused neighbours; unknown keys are those of zero bytes."""
        block = self._used.pop(key, None)
        if block is None:
            return
        self.requested_bytes -= block.requested_bytes
        self.allocated_bytes -= block.size_bytes
        block.used = False
        if block.next and not block.next.used:
            self._take(block.next)
            self._absorb_next(block)
        if block.previous and not block.previous.used:
            block = block.previous
            self._take(block)
            self._absorb_next(block)
        self._put(block)

    def empty_cache(self) -> None:
        """Give back all segments of the common pool that are wholly unused."""
        for small in (True, False):
            blocks = self._free.get(("", small), [])
            kept = [entry for entry in blocks if entry[2].previous or entry[2].next]
            self.reserved_bytes -= sum(entry[0] for entry in blocks) - sum(entry[0] for entry in kept)
            self._free["", small] = kept

    def _best_fit(self, where: tuple[str, bool], size_bytes: int) -> _Block | None:
        blocks = self._free.setdefault(where, [])
        position = bisect_left(blocks, (size_bytes, 0))
        return blocks.pop(position)[2] if position < len(blocks) else None

    def _new_segment(self, where: tuple[str, bool], size_bytes: int) -> _Block:
        segment_bytes = segment_size(size_bytes)
        if self._above_cap(segment_bytes):
            self.retries += 1
            self.empty_cache()
            if self._above_cap(segment_bytes):
                assert self.cap_bytes is not None
                raise BudgetError(
                    "out of memory in the simulated allocator",
                    asked_bytes=self.cap_bytes,
                    free_bytes=self.cap_bytes - self.reserved_bytes,
                    needed_bytes=segment_bytes,
                    next="take a smaller K or batch",
                )
        self.reserved_bytes += segment_bytes
        block = _Block(self._next_address, segment_bytes, where)
        self._next_address += segment_bytes
        return block

    def _above_cap(self, more_bytes: int) -> bool:
        return self.cap_bytes is not None and self.reserved_bytes + more_bytes > self.cap_bytes

    def _split(self, block: _Block, size_bytes: int) -> None:
        """Cut a block to size where the allocator would; the rest becomes an unused block behind it."""
        rest_bytes = block.size_bytes - size_bytes
        if rest_bytes < MIN_BLOCK_BYTES if block.where[1] else rest_bytes <= SMALL_SIZE_BYTES:
            return
        rest = _Block(block.address + size_bytes, rest_bytes, block.where)
        rest.previous, rest.next = block, block.next
        if rest.next:
            rest.next.previous = rest
        block.next, block.size_bytes = rest, size_bytes
        self._put(rest)

    def _put(self, block: _Block) -> None:
        insort(self._free[block.where], (block.size_bytes, block.address, block))

    def _take(self, block: _Block) -> None:
        blocks = self._free[block.where]
        del blocks[bisect_left(blocks, (block.size_bytes, block.address))]

    @staticmethod
    def _absorb_next(block: _Block) -> None:
        gone = block.next
        assert gone
        block.size_bytes += gone.size_bytes
        block.next = gone.next
        if block.next:
            block.next.previous = block


def round_size(size_bytes: int) -> int:
    """The size of the block that serves a request."""
    return -(-size_bytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES or MIN_BLOCK_BYTES


def segment_size(rounded_bytes: int) -> int:
    """The size of the segment that is reserved where no unused block serves."""
    if rounded_bytes <= SMALL_SIZE_BYTES:
        return SMALL_SEGMENT_BYTES
    if rounded_bytes < MIN_LARGE_ALLOC_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-rounded_bytes // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES
