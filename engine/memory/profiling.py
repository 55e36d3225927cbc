"""`msgdas profile`: the memory timeline of a recipe's steps, of a running search, or of any process."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...profiles.device import gpus
from ...profiles.errors import ProfileError, in_words
from ...profiles.phases import PhaseClock, described
from ...profiles.sampler import RATE_HZ, MemorySampler, native_library
from ..atomic import write_atomically
from ..report.timeline import TimelineFile, save_timeline
from ..run.rundir import LOCK, METRICS, RunFolder, read_metrics
from ..settings.config import SearchConfig, from_json

TIMELINE = "timeline.json"
POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Profiled:
    """A timeline that was written, and where."""

    timeline: dict[str, Any]
    folder: Path


def profile_steps(config: SearchConfig, steps: int, folder: Path) -> Profiled:
    """Record steps of a configuration on images of noise, after one that makes the optimizers' state.

    Raises:
        ConfigError: where the configuration cannot run here.
        ProfileError: where the device's memory cannot be sampled, or the folder not be written.
    """
    import torch

    from ..learning.assembly import build_learner
    from ..learning.steps import Moment
    from ..settings import schedule
    from ..supernet.implementation import device_of
    from .recording import Recording

    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    device = device_of(config)
    learner, _, _ = build_learner(config, device, classes=10)
    generator = torch.Generator().manual_seed(config.seed)
    shape = (config.batch, 3, config.image, config.image)
    images = torch.randn(shape, generator=generator).to(device, getattr(torch, config.dtype))
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (config.batch,), generator=generator).to(device)
    recording = Recording(learner, device, rate_hz=RATE_HZ)

    def take(step: int, measure: Callable[[Callable[[], object]], object]) -> None:
        moment = Moment(step, config.tau_max, config.lr, schedule.drop_rate(config, 0), guided=True)
        for phase in (learner.alpha_step, learner.weight_step):
            measure(partial(phase, images, labels, moment))

    take(0, lambda run: run())
    with recording:
        for step in range(1, steps + 1):
            take(step, recording.measure)
    values = recording.values()
    if not values:
        raise ProfileError("the memory of this device cannot be sampled", next="msgdas doctor")
    return _written(values, folder)


def profile_run(run: Path, steps: int, folder: Path) -> Profiled:
    """Record so many steps of the search that holds a run folder.

    Its phases are its steps, as their rows appear in metrics.jsonl.

    Raises:
        RunFolderError: where the folder is no run folder.
        ProfileError: where no process of this machine holds it.
    """
    RunFolder.open(run, from_json)
    pid = _holder(run)
    before = _steps_of(run)
    clock = PhaseClock()

    def done() -> bool:
        now = _steps_of(run)
        clock.enter(f"step {now + 1}")
        return now >= before + steps

    clock.enter(f"step {before + 1}")
    return _written(_attached(pid, done, clock), folder)


def profile_process(pid: int, seconds: float, folder: Path) -> Profiled:
    """Record a process for some seconds, or until it ends: the GPU that it computes on, else its resident memory.

    Raises:
        ProfileError: where there is no such process.
    """
    end = time.monotonic() + seconds
    return _written(_attached(pid, lambda: time.monotonic() >= end, PhaseClock()), folder)


def text_of(profiled: Profiled) -> str:
    """What was seen, for people: every peak with the rate and the largest gap of its sampling."""
    values = profiled.timeline
    lines = [
        f"{values['source']}, {values['thread']}",
        f"peak {in_words(values['peak_bytes'])}, {values['rate_hz']:,.0f} samples/s achieved, "
        f"largest gap {values['largest_gap_ms']:.1f} ms",
    ]
    if values.get("live_bytes"):
        lines.append(f"peak of live tensors {in_words(max(values['live_bytes']))}, counted storage by storage")
    if values["failures"]:
        lines.append(f"{values['failures']} readings were not answered")
    for name, phase in values["by_phase"].items():
        size = "no sample" if phase["peak_bytes"] is None else in_words(phase["peak_bytes"])
        lines.append(
            f"  {name:<15} peak {size:>12} {phase['time_ms']:>10,.1f} ms {phase['rate_hz']:>7,.0f} samples/s, "
            f"largest gap {phase['largest_gap_ms']:.1f} ms"
        )
    return "\n".join([*lines, f"written {profiled.folder / TIMELINE}, timeline.svg, timeline.png"])


def _attached(pid: int, done: Callable[[], bool], clock: PhaseClock) -> dict[str, Any]:
    """Sample a process until it ends or `done` says so."""
    uuid = _gpu_of(pid)
    with MemorySampler(uuid, pid=None if uuid else pid, rate_hz=RATE_HZ, library=native_library()) as sampler:
        while not done() and _lives(pid):
            time.sleep(POLL_S)
        clock.close()
    return described(sampler.timeline, clock.spans)


def _gpu_of(pid: int) -> str | None:
    """The UUID of the GPU that lists a process; None where none does."""
    everywhere = [part for gpu in gpus().devices for part in (gpu.instances or (gpu,))]
    return next((gpu.uuid for gpu in everywhere for tenant in gpu.tenants or () if tenant.pid == pid), None)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _holder(run: Path) -> int:
    """The process that LOCK names."""
    try:
        text = (run / LOCK).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    found = re.fullmatch(r"process (\d{1,9}) on (\S+)\s*", text)
    if found is None or not _lives(int(found[1])):
        raise ProfileError(
            f"no search runs in {run}", got=text.strip() or "an empty LOCK", allowed="a run folder that a search holds",
            next="msgdas profile RECIPE records steps of its own",
        )  # fmt: skip
    if found[2] != socket.gethostname():
        raise ProfileError(f"the search in {run} runs on {found[2]}", next="msgdas profile there")
    return int(found[1])


def _steps_of(run: Path) -> int:
    return sum(row.get("kind") == "step" for row in read_metrics(run / METRICS))


def _written(values: dict[str, Any], folder: Path) -> Profiled:
    timeline = TimelineFile.of(values)
    if timeline is None:
        raise ProfileError(
            "no sample was taken", got=f"{values['failures']} readings that were not answered",
            next="try again while the process lives",
        )  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / TIMELINE, json.dumps(values) + "\n")
        save_timeline(timeline, folder)
    except OSError as error:
        raise ProfileError(f"cannot write into {folder}", got=error.strerror, next="another --out") from None
    return Profiled(values, folder)
