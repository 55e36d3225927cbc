"""Clock frequencies now, for the record of a measurement; None where the system does not tell."""

from __future__ import annotations

import statistics
from pathlib import Path


def cpu_mhz() -> float | None:
    """Mean frequency of the cores as Linux reports it; a virtual machine reports its nominal one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    found = [float(line.split(":", 1)[1]) for line in lines if line.startswith("cpu MHz")]
    return round(statistics.fmean(found), 1) if found else None


def gpu_mhz(uuid: str) -> dict[str, int] | None:
    """Frequencies of a GPU's multiprocessors and memory, by UUID, as `sm` and `memory`."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return {
            "sm": int(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            "memory": int(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)),
        }
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
