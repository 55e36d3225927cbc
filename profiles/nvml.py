"""GPUs as NVML describes them, always by UUID: an index of NVML is not one of CUDA.

NVML's two readings of memory differ in whether the driver's own share counts as used; what is free is the same in
both, so `used` here is total minus free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .errors import ProfileError
from .visible import Candidate, visible

WITHOUT_GPU = "plan for a named one (--gpu rtx-4090) or a size (--budget 24GiB)"
# The first branch of the driver that shows CUDA more than one MIG instance (MIG User Guide, "CUDA Device Enumeration").
SEVERAL_INSTANCES_DRIVER = 570
# What the codes of nvml.h mean for a user, and the way out.
FAULTS = {
    4: ("no permission to ask the driver", "run as a user of the GPU's group, or start the container with its GPUs"),
    9: ("the driver is installed but not loaded", "run nvidia-smi as root once, or restart"),
    12: ("no NVIDIA driver here, libnvidia-ml.so.1 is missing", WITHOUT_GPU),
    13: ("the driver is too old to be asked", "install a newer NVIDIA driver"),
    6: ("NVML has no such device", "nvidia-smi -L lists them"),
    15: ("a GPU has fallen off the bus", "restart the machine"),
    18: ("the loaded driver and its library are of different versions", "restart: the driver was updated"),
}


@dataclass(frozen=True, slots=True)
class Tenant:
    """A process that computes on a GPU; `used_bytes` is None where the driver does not tell.

    The PID is the host's: inside a container it names nobody.
    """

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU, or one MIG instance of one.

    Attributes:
        name: as NVML has it.
        uuid: `GPU-…` or `MIG-…`.
        memory_bytes: total.
        used_bytes: total minus free: all processes, and what the driver keeps for itself.
        driver: version.
        arch: compute capability as `sm_89`, None where the driver does not tell.
        tenants: processes that compute here, ours too; None where they may not be listed.
        partitioned: MIG is on: CUDA takes one of the instances, never the whole.
        instances: MIG instances.
        older_name: `MIG-GPU-<uuid>/<gi>/<ci>`, empty unless this is an instance.
    """

    name: str
    uuid: str
    memory_bytes: int
    used_bytes: int
    driver: str
    arch: str | None = None
    tenants: tuple[Tenant, ...] | None = None
    partitioned: bool = False
    instances: tuple[GpuFacts, ...] = ()
    older_name: str = ""

    @property
    def free_bytes(self) -> int:
        """What any process could still take."""
        return self.memory_bytes - self.used_bytes


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs there are, or the reason why none could be asked.

    Attributes:
        devices: may be empty.
        reason: one line where there are no devices, else None.
        remedy: what to do about the reason, None without one.
        notes: what else the user should know, one line each.
    """

    devices: tuple[GpuFacts, ...]
    reason: str | None
    remedy: str | None = None
    notes: tuple[str, ...] = ()


class _UnavailableError(Exception):
    """NVML cannot be used at all; carries what and remedy."""


def gpus() -> Gpus:
    """All GPUs of this machine. Never raises: without a driver the reason says so."""
    try:
        with _session() as (nvml, driver):
            return _all(nvml, driver)
    except _UnavailableError as unavailable:
        reason, remedy = unavailable.args
        return Gpus((), f"NVML: {reason}", remedy)


def visible_gpus(cuda_visible_devices: str | None, *, pci_order: bool) -> Gpus:
    """The GPUs and MIG instances that CUDA leaves to this process, in CUDA's order.

    Args:
        cuda_visible_devices: the variable of that name, None where it is not set.
        pci_order: whether CUDA_DEVICE_ORDER is PCI_BUS_ID.
    """
    found = gpus()
    if not found.devices:
        return found
    left = visible(
        cuda_visible_devices,
        [
            Candidate(gpu.uuid, gpu.name, tuple((part.uuid, part.older_name) for part in gpu.instances))
            for gpu in found.devices
        ],
        pci_order=pci_order,
        one_instance=_is_older(found.devices[0].driver, SEVERAL_INSTANCES_DRIVER),
    )
    by_uuid = {gpu.uuid: gpu for gpu in _flat(found.devices)}
    devices = tuple(gpu for gpu in (by_uuid[uuid] for uuid in left.uuids) if not gpu.partitioned)
    if devices:
        return Gpus(devices, None, None, found.notes + left.notes)
    if left.uuids:
        return Gpus((), "MIG is on and has no instances", "nvidia-smi mig -cgi 0 -C makes one", found.notes)
    here = ", ".join(gpu.uuid for gpu in by_uuid.values())
    return Gpus((), " ".join(left.notes), f"set CUDA_VISIBLE_DEVICES to one of {here}", found.notes)


def gpu_with_uuid(uuid: str) -> GpuFacts:
    """The GPU or MIG instance of a UUID, as it is now; `GPU-` may be left out, as torch does.

    Raises:
        ProfileError: NVML cannot be asked, or has no such device.
    """
    found = gpus()
    if not found.devices:
        raise ProfileError(found.reason or "no GPU", next=found.remedy or WITHOUT_GPU)
    names = (uuid, f"GPU-{uuid}", f"MIG-{uuid}")
    devices = _flat(found.devices)
    match = next((gpu for gpu in devices if gpu.uuid in names or (uuid and gpu.older_name == uuid)), None)
    if match is None:
        raise ProfileError(
            "no GPU of this UUID",
            got=uuid,
            allowed=", ".join(gpu.uuid for gpu in devices),
            next="nvidia-smi -L lists them",
        )
    return match


class UsedMemory:
    """Context manager that reads a device's used bytes again and again, at the cost of one call of NVML each.

    Raises:
        ProfileError: on entering, NVML cannot be asked or has no such device.
    """

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._nvml: Any = None
        self._handle: Any = None

    def __enter__(self) -> UsedMemory:
        import pynvml

        try:
            pynvml.nvmlInit()
            self._nvml = pynvml
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
        except pynvml.NVMLError as error:
            self.__exit__()
            what, remedy = _explain(error)
            raise ProfileError(f"{self._uuid} cannot be sampled: {what}", next=remedy) from None
        return self

    def read(self) -> int | None:
        """Bytes used now; None where the driver gave no answer."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        except self._nvml.NVMLError:
            return None
        return int(memory.total - memory.free)

    def __exit__(self, *exception: object) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None


def _flat(devices: tuple[GpuFacts, ...]) -> list[GpuFacts]:
    """Devices as CUDA can take them: the instances of a partitioned GPU in its place."""
    return [part for gpu in devices for part in (gpu.instances or (gpu,))]


@contextmanager
def _session() -> Iterator[tuple[Any, str]]:
    """(pynvml, driver version) between init and shutdown."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise _UnavailableError(*_explain(error)) from None
    try:
        yield pynvml, _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        raise _UnavailableError(*_explain(error)) from None
    finally:
        pynvml.nvmlShutdown()


def _is_older(driver: str, branch: int) -> bool:
    major = driver.partition(".")[0]
    return major.isdecimal() and int(major) < branch


def explained(code: int, text: str) -> tuple[str, str]:
    """(what a code of NVML means for a user, the way out); the text stands for a code that is not known here."""
    return FAULTS.get(code, (f"{text} (code {code})", WITHOUT_GPU))


def _explain(error: Any) -> tuple[str, str]:
    return explained(error.value, str(error))


def _all(nvml: Any, driver: str) -> Gpus:
    devices, notes, remedies = [], [], []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            gpu = _facts(nvml, nvml.nvmlDeviceGetHandleByIndex(index), driver)
        except nvml.NVMLError as error:
            what, remedy = _explain(error)
            notes.append(f"GPU {index} of NVML was left out: {what}")
            remedies.append(remedy)
            continue
        devices.append(gpu)
        if gpu.arch is None:
            notes.append(f"{gpu.uuid}: the driver does not tell its compute capability")
    if devices:
        return Gpus(tuple(devices), None, None, tuple(notes))
    return Gpus((), f"NVML: {'; '.join(notes) or 'no devices'}", remedies[0] if remedies else WITHOUT_GPU)


def _facts(nvml: Any, handle: Any, driver: str) -> GpuFacts:
    uuid = _text(nvml.nvmlDeviceGetUUID(handle))
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    partitioned = _is_partitioned(nvml, handle)
    return GpuFacts(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=uuid,
        memory_bytes=int(memory.total),
        used_bytes=int(memory.total - memory.free),
        driver=driver,
        arch=_arch(nvml, handle),
        tenants=_tenants(nvml, handle),
        partitioned=partitioned,
        instances=_instances(nvml, handle, uuid, driver) if partitioned else (),
    )


def _arch(nvml: Any, handle: Any) -> str | None:
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except nvml.NVMLError:
        return None
    return f"sm_{major}{minor}"


def _tenants(nvml: Any, handle: Any) -> tuple[Tenant, ...] | None:
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return None
    return tuple(Tenant(int(process.pid), process.usedGpuMemory) for process in processes)


def _is_partitioned(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:
        return False


def _instances(nvml: Any, handle: Any, parent: str, driver: str) -> tuple[GpuFacts, ...]:
    """The MIG instances of a partitioned GPU that this user may see."""
    found = []
    for slot in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
            memory = nvml.nvmlDeviceGetMemoryInfo(part)
            place = f"{nvml.nvmlDeviceGetGpuInstanceId(part)}/{nvml.nvmlDeviceGetComputeInstanceId(part)}"
        except nvml.NVMLError:
            # An empty slot, or an instance that this user may not see.
            continue
        found.append(
            GpuFacts(
                name=_text(nvml.nvmlDeviceGetName(part)),
                uuid=_text(nvml.nvmlDeviceGetUUID(part)),
                memory_bytes=int(memory.total),
                used_bytes=int(memory.total - memory.free),
                driver=driver,
                arch=_arch(nvml, handle),
                tenants=_tenants(nvml, part),
                older_name=f"MIG-{parent}/{place}",
            )
        )
    return tuple(found)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
