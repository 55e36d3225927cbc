"""The peak memory of a stretch of code, by the best counter that the device has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from .tracker import LiveBytes

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes above what lived before, and what counted them.

    Attributes:
        times_ns, values: live bytes above what lived before over `time.monotonic_ns`'s clock, on a CPU and where asked.
    """

    bytes: int
    source: str
    times_ns: Sequence[int] = ()
    values: Sequence[int] = ()


def measure(run: Callable[[], Result], device: torch.device, *, history: bool = False) -> tuple[Result, Peak]:
    """(run(), its peak of live bytes above those that lived before it), with their course where `history` asks for it.

    On CUDA the caching allocator is asked; on a CPU every storage is counted, which slows the run down by
    some tenths.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = run()
        torch.cuda.synchronize(device)
        return result, Peak(torch.cuda.max_memory_allocated(device) - before, "CUDA allocator")
    with LiveBytes(history=history) as tracker:
        result = run()
    # A storage that outlives this still tells the tracker of its end.
    times_ns, values = tracker.times_ns[:], tracker.values[:]
    return result, Peak(tracker.peak_bytes, "storage tracker", times_ns, values)


def allocated_peak(run: Callable[[], object], device: torch.device, before_bytes: int) -> tuple[int, str]:
    """(bytes that the device's allocator holds at the peak of run(), what measured them).

    On CUDA all that it reserves for this process; on a CPU its own events on top of `before_bytes`, which live
    already. Exact, and slow on a CPU: every operation is recorded.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_reserved(device), "CUDA allocator, reserved"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    live = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return before_bytes + peak, "CPU allocator's events"
