"""Clock frequencies and what else a GPU is under now, for the record of a measurement; None where nobody tells."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Bits of NVML's clocks event reasons that mean slower than the GPU could be; idle and a user's own clocks are none.
SLOWED_BY = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake",
    0x200: "board limit", 0x400: "reliability",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GpuState:
    """A GPU at one moment; what the driver does not tell is None.

    Attributes:
        sm_mhz, memory_mhz: frequencies of its multiprocessors and memory.
        temperature_c, power_w: of the GPU.
        slowed_by: why its clocks are lower than they could be, see `SLOWED_BY`.
        foreign_pids: processes that compute there and are not this one. A container sees the host's PIDs, so its own
            counts as foreign once it computes.
    """

    sm_mhz: int | None
    memory_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    slowed_by: tuple[str, ...] | None
    foreign_pids: tuple[int, ...] | None

    @property
    def disturbances(self) -> list[str]:
        """What makes a measurement taken now not clean, one item each."""
        pids = ", ".join(map(str, self.foreign_pids or ()))
        found = [f"slowed by {reason}" for reason in self.slowed_by or ()]
        return [*found, f"other processes ({pids})"] if pids else found

    @property
    def clean(self) -> bool | None:
        """Whether nothing disturbs it; None where that cannot be known."""
        if self.disturbances:
            return False
        return None if self.slowed_by is None or self.foreign_pids is None else True


def cpu_mhz() -> float | None:
    """Mean frequency of the cores as Linux reports it; a virtual machine reports its nominal one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    found = [float(line.split(":", 1)[1]) for line in lines if line.startswith("cpu MHz")]
    return round(statistics.fmean(found), 1) if found else None


def gpu_state(uuid: str) -> GpuState:
    """A GPU now, by UUID; nothing but None where NVML cannot be asked or has no such device."""
    import pynvml

    nothing = GpuState(None, None, None, None, None, None)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return nothing
    try:
        return _state(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError:
        return nothing
    finally:
        pynvml.nvmlShutdown()


def _state(nvml: Any, handle: Any) -> GpuState:
    def ask(function: Callable[..., Any], *words: Any) -> Any:
        try:
            return function(handle, *words)
        except nvml.NVMLError:
            return None

    milliwatts = ask(nvml.nvmlDeviceGetPowerUsage)
    bits, processes = (
        ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons),
        ask(nvml.nvmlDeviceGetComputeRunningProcesses),
    )
    pids = None if processes is None else tuple(sorted(int(one.pid) for one in processes if one.pid != os.getpid()))
    return GpuState(
        sm_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        memory_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        temperature_c=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        power_w=None if milliwatts is None else milliwatts / 1000,
        slowed_by=None if bits is None else tuple(name for bit, name in SLOWED_BY.items() if bits & bit),
        foreign_pids=pids,
    )  # fmt: skip
