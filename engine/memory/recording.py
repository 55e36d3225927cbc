"""A memory timeline of the steps of a search, with their phases."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from ...profiles.errors import ProfileError
from ...profiles.meter import Peak, measure
from ...profiles.phases import PhaseClock, described, thinned
from ...profiles.sampler import MemorySampler, native_library
from ..atomic import write_atomically
from ..learning.steps import Learner

Result = TypeVar("Result")
# A step takes 0.999 times as long with it (EPYC, process memory, bench/recording.py); the first of every epoch has it.
SEARCH_RATE_HZ = 1000.0


def gpu_uuid_of(device: torch.device) -> str | None:
    """The UUID under which NVML knows a CUDA device, None for a CPU."""
    if device.type != "cuda":
        return None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


class Recording:
    """Context manager that samples memory while a learner takes steps, and takes down their phases.

    On CUDA phases are where the host was; of a step that runs as a graph only its kind is known. Live tensors are
    counted in the steps that `measure` takes, on a CPU.

    Args:
        learner: whose phases are heard.
        device: whose memory is sampled: a GPU's by NVML, else this process's.
        rate_hz: samples per second to aim for.
    """

    def __init__(self, learner: Learner, device: torch.device, *, rate_hz: float = SEARCH_RATE_HZ) -> None:
        self.learner, self.device, self.rate_hz = learner, device, rate_hz
        self._clock = PhaseClock()
        self._sampler: MemorySampler | None = None
        self._live: tuple[list[int], list[int]] = [], []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with suppress(ProfileError):
            uuid = gpu_uuid_of(self.device)
            sampler = MemorySampler(uuid, rate_hz=self.rate_hz, library=native_library())
            self._sampler = self._stack.enter_context(sampler)
        self.learner.passes.enter = self._clock.enter
        self._stack.callback(self._clock.close)
        self._stack.callback(self.learner.passes.unheard)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def measure(self, run: Callable[[], Result]) -> tuple[Result, Peak]:
        """As `meter.measure`; the course of live tensors, those between steps included, joins the timeline."""
        before_bytes = self.learner.state_bytes()
        result, peak = measure(run, self.device, history=True)
        times_ns, values = thinned(peak.times_ns, peak.values)
        self._live[0].extend(times_ns)
        self._live[1].extend(before_bytes + value for value in values)
        return result, peak

    def values(self) -> dict[str, Any]:
        """The timeline after leaving (see `phases.described`); {} where the device's memory cannot be sampled."""
        if self._sampler is None:
            return {}
        line = self._sampler.timeline
        found = described(line, self._clock.spans)
        if self._live[0] and line.times_ns:
            start_ns = line.times_ns[0]
            found["live_times_ms"] = [round((at_ns - start_ns) / 1e6, 3) for at_ns in self._live[0]]
            found["live_bytes"] = self._live[1]
        return found

    def save(self, folder: Path, step: int) -> None:
        """Write timeline-STEP.json into a run folder, whole or not at all.

        Raises:
            OSError: where it cannot be written.
        """
        values = self.values()
        if values:
            write_atomically(folder / f"timeline-{step}.json", json.dumps({"step": step, **values}) + "\n")
