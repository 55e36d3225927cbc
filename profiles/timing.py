"""How long a stretch of code takes on a device, and with how many threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .device import cpu_facts

WARMUP = 2
# A measurement ends after so many runs, or after the least number of them once the time is over (ours).
MOST_RUNS, LEAST_RUNS, LIMIT_NS = 15, 3, 1_500_000_000


def clock_of(device: torch.device, threads: int) -> tuple[str, Callable[[], int]]:
    """Name and function (ns) of the clock that latencies are taken with."""
    if device.type == "cuda":

        def synchronized() -> int:
            torch.cuda.synchronize(device)
            return time.perf_counter_ns()

        return "wall time, synchronized", synchronized
    return ("process time", time.process_time_ns) if threads == 1 else ("wall time", time.perf_counter_ns)


def device_name(device: torch.device) -> str:
    """Of the processor or GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_facts().model


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads of torch within it, as many as before behind it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def warm_runs_ms(run: Callable[[], object], clock: Callable[[], int]) -> list[float]:
    """Milliseconds of each run behind `WARMUP` others: `MOST_RUNS`, or as many as 1.5 s hold, `LEAST_RUNS` or more."""
    for _ in range(WARMUP):
        run()
    taken: list[float] = []
    end = clock() + LIMIT_NS
    while len(taken) < LEAST_RUNS or (len(taken) < MOST_RUNS and clock() < end):
        begin = clock()
        run()
        taken.append((clock() - begin) / 1e6)
    return taken
