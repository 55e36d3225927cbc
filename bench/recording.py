"""`python -m msgdas.bench recording`: what the memory timeline costs the step that it is taken of.

Steps without and with a recording take turns in one process; the ratio of a pair's times is taken pair by pair. The
sampler's thread is also weighed by itself, as its share of one core: what a step loses at most where no core is free.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..engine.memory.recording import SEARCH_RATE_HZ, Recording
from ..profiles.sampler import RATE_HZ
from . import command
from .gate import Gate
from .results import append, provenance, row
from .step import Step, build_step

TASKS = Path("/proc/self/task")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one kind of recording.

    Attributes:
        name: of the kind.
        plain_ms, recorded_ms: wall time of a step without and with it, medians.
        ratio: of the two within a pair, median.
        core: share of one core that the sampler's thread took, median; None where the system does not tell.
        rate_hz, largest_gap_ms: as achieved, medians.
    """

    name: str
    plain_ms: float
    recorded_ms: float
    ratio: float
    core: float | None
    rate_hz: float
    largest_gap_ms: float


@contextmanager
def sampler_share(recording: Recording) -> Iterator[Callable[[], float | None]]:
    """Records; gives a function that tells, while it lasts, the share of one core that the sampler's thread takes."""
    before = set(_threads_ns())
    with recording:
        begin_ns = time.perf_counter_ns()

        def share() -> float | None:
            taken = [used for thread, used in _threads_ns().items() if thread not in before]
            return taken[0] / (time.perf_counter_ns() - begin_ns) if len(taken) == 1 else None

        yield share


def _threads_ns() -> dict[str, int]:
    """Time on a processor by thread of this process; empty where the system does not tell."""
    try:
        return {task.name: int((task / "schedstat").read_text().split()[0]) for task in TASKS.iterdir()}
    except OSError:
        return {}


def cost(name: str, step: Step, pairs: int, *, rate_hz: float, live: bool) -> Cost:
    """The cost of a recording over pairs of steps, after one pair that warms up.

    Args:
        name: of the kind.
        step: what is recorded.
        pairs: at least 1.
        rate_hz: of the sampler.
        live: whether live tensors are counted too, as a search does once in an epoch.
    """
    plain_s: list[float] = []
    recorded_s: list[float] = []
    shares: list[float | None] = []
    lines: list[dict[str, Any]] = []

    def plain() -> None:
        begin = time.perf_counter()
        step.step()
        plain_s.append(time.perf_counter() - begin)

    def recorded() -> None:
        recording = Recording(step.learner, step.images_BCHW.device, rate_hz=rate_hz)
        begin = time.perf_counter()
        with sampler_share(recording) as share:
            recording.measure(step.step) if live else step.step()
            shares.append(share())
        recorded_s.append(time.perf_counter() - begin)
        lines.append(recording.values())

    for number in range(pairs + 1):
        for take in (plain, recorded) if number % 2 else (recorded, plain):
            take()
    median = statistics.median
    known = [share for share in shares[1:] if share is not None]
    return Cost(
        name, 1e3 * median(plain_s[1:]), 1e3 * median(recorded_s[1:]),
        median(slow / quick for slow, quick in zip(recorded_s[1:], plain_s[1:], strict=True)),
        median(known) if known else None,
        median(line["rate_hz"] for line in lines[1:]), median(line["largest_gap_ms"] for line in lines[1:]),
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    made = command.parser("recording", __doc__)
    made.add_argument("--pairs", type=int, default=30, help="steps without and with each kind of recording")
    command.add_sizes(made, threads=1)
    arguments = made.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    step = build_step()
    kinds = (
        (f"{SEARCH_RATE_HZ:.0f} Hz, as in a search", SEARCH_RATE_HZ, False),
        (f"{RATE_HZ:.0f} Hz, as msgdas profile", RATE_HZ, False),
        ("the first with live tensors counted", SEARCH_RATE_HZ, True),
    )
    costs = [cost(name, step, arguments.pairs, rate_hz=rate, live=live) for name, rate, live in kinds]
    facts = provenance(command.again("recording", argv), threads=arguments.threads)
    gate = Gate(True, {}, "a timeline is compared with a step of its own, not with another implementation")
    rows = [
        row("recording", one.name, asdict(step.config), {"ratio": [one.ratio], "plain_ms": [one.plain_ms]}, gate, facts)
        for one in costs
    ]
    if arguments.out is not None:
        append(arguments.out, rows)
    if arguments.json:
        print("\n".join(map(json.dumps, rows)))
        return 0
    print(f"K=2 union, min, DARTS cell, C=16, 8 layers, 32x32, batch 16, {arguments.threads} thread(s), fp32")
    print(f"{'timeline':36} {'plain ms':>8} {'recorded':>8} {'ratio':>7} {'core':>9} {'samples/s':>9} {'gap ms':>6}")
    for one in costs:
        core = "?" if one.core is None else f"{one.core:.2%}"
        print(
            f"{one.name:36} {one.plain_ms:8.0f} {one.recorded_ms:8.0f} {one.ratio:7.3f} {core:>9} {one.rate_hz:9.0f} "
            f"{one.largest_gap_ms:6.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(command.answer(main))
