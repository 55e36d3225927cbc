"""The peak memory of a stretch of code, by the best counter that the device has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from .tracker import LiveBytes

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes above what lived before, and what counted them."""

    bytes: int
    source: str


def measure(run: Callable[[], Result], device: torch.device) -> tuple[Result, Peak]:
    """(run(), its peak of live bytes above those that lived before it).

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
    with LiveBytes() as tracker:
        result = run()
    return result, Peak(tracker.peak_bytes, "storage tracker")
