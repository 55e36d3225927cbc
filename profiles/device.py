"""Facts about this machine's processor and GPUs; NVML is asked directly, torch is not needed."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """Processor model, number of cores and installed memory."""

    model: str
    cores: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU as NVML describes it; `used_bytes` counts all processes."""

    name: str
    uuid: str
    memory_bytes: int
    used_bytes: int
    driver: str


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs there are, or the reason why none could be asked."""

    devices: tuple[GpuFacts, ...]
    reason: str | None


def gpus() -> Gpus:
    """All GPUs of this machine. Never raises: without a driver the reason says so."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Gpus((), f"NVML: {error}")
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        devices = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            devices.append(
                GpuFacts(
                    _text(pynvml.nvmlDeviceGetName(handle)),
                    _text(pynvml.nvmlDeviceGetUUID(handle)),
                    int(memory.total),
                    int(memory.used),
                    driver,
                )
            )
        return Gpus(tuple(devices), None if devices else "NVML: no devices")
    except pynvml.NVMLError as error:
        return Gpus((), f"NVML: {error}")
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def cpu_facts() -> CpuFacts:
    """This machine's processor; the model is the architecture's name where the system does not tell."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(errors="replace").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return CpuFacts(model, os.cpu_count() or 1, pages * PAGE_BYTES)


def process_rss_bytes() -> int:
    """Resident memory of this process now; its peak so far where the system has no /proc."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * PAGE_BYTES
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
