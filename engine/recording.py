"""A memory timeline of the steps of a search, with their phases."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ..profiles.errors import ProfileError
from ..profiles.phases import PhaseClock, described
from ..profiles.sampler import MemorySampler, native_library
from .rundir import write_atomically
from .steps import Learner


def gpu_uuid_of(device: torch.device) -> str | None:
    """The UUID under which NVML knows a CUDA device, None for a CPU."""
    if device.type != "cuda":
        return None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


@contextmanager
def recorded(learner: Learner, device: torch.device) -> Iterator[dict[str, Any]]:
    """Fills the dictionary with a timeline (see `phases.described`) of the steps that are taken inside.

    It stays empty where a CUDA device's memory cannot be sampled. On CUDA phases are where the host was; of a step
    that runs as a graph only its kind is known.
    """
    found: dict[str, Any] = {}
    clock = PhaseClock()
    with ExitStack() as stack:
        sampler: MemorySampler | None = None
        with suppress(ProfileError):
            sampler = stack.enter_context(MemorySampler(gpu_uuid_of(device), library=native_library()))
        learner.passes.enter = clock.enter
        stack.callback(learner.passes.unheard)
        yield found
        clock.close()
    if sampler is not None:
        found.update(described(sampler.timeline, clock.spans))


def write_timeline(folder: Path, timeline: Mapping[str, Any], step: int) -> Path:
    """Write timeline-STEP.json into a run folder, whole or not at all.

    Raises:
        OSError: where it cannot be written.
    """
    path = folder / f"timeline-{step}.json"
    write_atomically(path, json.dumps({"step": step, **timeline}) + "\n")
    return path
