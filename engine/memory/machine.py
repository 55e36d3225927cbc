"""What a plan is made for: a GPU by name, the one that is here, or this processor; and how much of its memory.

Speeds are peaks of data sheets, nominal ones where there is no sheet, so that equal machines give equal plans.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ...profiles.budget import Budget
from ...profiles.device import GpuFacts, cpu_facts, process_rss_bytes, visible_gpus
from ...profiles.errors import ProfileError
from ...profiles.gpu_table import TableGpu, find_gpu, gpu_named
from ...profiles.nvml import WITHOUT_GPU
from ...profiles.room import host_room

# What reports name for one process with all of torch's kernels loaded lies between 256 and 667 MiB; cuBLAS and cuDNN
# take their workspaces beside it. Assumed until a run has measured them.
CONTEXT_BYTES, WORKSPACE_BYTES = 640 << 20, 64 << 20
# What oneDNN keeps for the shapes of a step beside torch's tensors: 14 to 18 MiB on an AMD EPYC with torch 2.14.1.
PROCESSOR_WORKSPACE_BYTES = 20 << 20
# (bytes per second, fp32 operations per second): of one fast core, and of a GPU that the table does not know.
NOMINAL_CORE = (2e10, 1.5e11)
NOMINAL_GPU = (5e11, 2e13)
# Of one more launch: by PyTorch on the host, in a CUDA graph (nominal, ours).
HOST_LAUNCH_S, GRAPH_LAUNCH_S = 5e-6, 1.5e-6
OLDEST_TRITON_ARCH = 80


@dataclass(frozen=True, slots=True)
class Machine:
    """One device.

    Attributes:
        name: for people.
        cuda: whether it is a GPU.
        memory_bytes: total.
        free_bytes: what this process could have.
        bytes_per_s: of its memory.
        flops: peak operations per second by dtype; bfloat16 is missing where it has no unit for it.
        arch: compute capability as 89, None for a processor or where nothing tells it.
        context_bytes, workspace_bytes: see `Prediction`.
        model, driver: the device's name and driver as measurements are kept under; "" for one that is not here.
        notes: what the user should know of where this comes from, one line each.
    """

    name: str
    cuda: bool
    memory_bytes: int
    free_bytes: int
    bytes_per_s: float
    flops: Mapping[str, float]
    arch: int | None = None
    context_bytes: int = 0
    workspace_bytes: int = 0
    model: str = ""
    driver: str = ""
    notes: tuple[str, ...] = ()

    def bytes_of(self, budget: Budget) -> int:
        """The budget here. Raises BudgetError where the machine has less."""
        return budget.bytes_on(total_bytes=self.memory_bytes, free_bytes=self.free_bytes)


def machine_named(name: str | None) -> Machine:
    """The machine that `--gpu` names.

    Args:
        name: a GPU of the table, `auto` for the first that CUDA would use here, `cpu` for this processor; None for
            `auto` where there is a GPU, else `cpu`.

    Raises:
        ProfileError: no such GPU in the table, or `auto` and none that can be asked.
    """
    if name == "cpu":
        return processor()
    if name not in (None, "auto"):
        return _of_table(gpu_named(name))
    found = visible_gpus(
        os.environ.get("CUDA_VISIBLE_DEVICES"), pci_order=os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    )
    if found.devices:
        return _of_nvml(found.devices[0], found.notes)
    if name == "auto":
        raise ProfileError(found.reason or "no GPU here", next=found.remedy or WITHOUT_GPU)
    return processor(f"no GPU here ({found.reason}), so for this processor; --gpu NAME plans for another device")


def processor(*notes: str) -> Machine:
    """This processor and its memory; what the process holds already counts as its context."""
    facts = cpu_facts()
    bytes_per_s, flops = (facts.cores * each for each in NOMINAL_CORE)
    held_bytes, room = process_rss_bytes(), host_room()()
    return Machine(
        f"{facts.model}, {facts.cores} cores", False, room.total_bytes,
        min(room.total_bytes, room.free_bytes + held_bytes), bytes_per_s,
        {"float32": flops, "float64": flops / 2}, context_bytes=held_bytes,
        workspace_bytes=PROCESSOR_WORKSPACE_BYTES, model=facts.model, notes=notes,
    )  # fmt: skip


def _of_table(gpu: TableGpu) -> Machine:
    checked = f"checked against {', '.join(gpu.checked)}"
    notes = (f"{gpu.key}: {gpu.source}, {checked}; all of its memory taken to be free",)
    return Machine(
        gpu.name, True, gpu.memory_bytes, gpu.memory_bytes, gpu.bandwidth_bytes_per_s, _flops(gpu),
        int(gpu.arch.removeprefix("sm_")), CONTEXT_BYTES, WORKSPACE_BYTES, notes=notes,
    )  # fmt: skip


def _of_nvml(gpu: GpuFacts, notes: tuple[str, ...]) -> Machine:
    known = find_gpu(gpu.name)
    if known is None:
        notes += (f"{gpu.name} is not in the table of GPUs: speeds are nominal",)
    others = len(gpu.tenants or ())
    if others:
        notes += (f"{others} other processes compute on it; what is free now is planned with",)
    bytes_per_s, fp32 = NOMINAL_GPU
    arch = None if gpu.arch is None else int(gpu.arch.removeprefix("sm_"))
    flops = {"float32": fp32, "float64": fp32 / 2, "bfloat16": 2 * fp32} if known is None else _flops(known)
    return Machine(
        gpu.name, True, gpu.memory_bytes, gpu.free_bytes, known.bandwidth_bytes_per_s if known else bytes_per_s, flops,
        arch, CONTEXT_BYTES, WORKSPACE_BYTES, gpu.name, gpu.driver, notes,
    )  # fmt: skip


def _flops(gpu: TableGpu) -> dict[str, float]:
    # fp64 at 1/2 is the most that any GPU has of it; only a lower bound of the time is made from it.
    flops = {"float32": gpu.fp32_flops, "float64": gpu.fp32_flops / 2}
    return flops if gpu.bf16_flops is None else {**flops, "bfloat16": gpu.bf16_flops}
