"""Facts about this machine: its processor and memory here, its GPUs by way of nvml.py; torch is not needed."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from .errors import ProfileError
from .nvml import GpuFacts, Gpus, Tenant, gpu_with_uuid, gpus, visible_gpus

__all__ = [
    "CpuFacts",
    "GpuFacts",
    "Gpus",
    "Tenant",
    "cpu_facts",
    "gpu_with_uuid",
    "gpus",
    "process_rss_bytes",
    "visible_gpus",
]

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """Processor model, number of cores and installed memory."""

    model: str
    cores: int
    memory_bytes: int


def cpu_facts() -> CpuFacts:
    """This machine's processor; the model is the architecture's name where the system does not tell."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(errors="replace").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return CpuFacts(model, os.cpu_count() or 1, pages * PAGE_BYTES)


def process_rss_bytes(pid: int | None = None) -> int:
    """Resident memory of a process now, this one by default; its peak so far where the system has no /proc.

    Raises:
        ProfileError: another process that is not there, or a system that does not tell.
    """
    statm = Path("/proc/self/statm" if pid is None else f"/proc/{pid}/statm")
    try:
        return int(statm.read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError, ValueError):
        if pid is not None:
            raise ProfileError(f"no process {pid} whose memory can be read", next="ps -e lists them") from None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
