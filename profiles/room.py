"""How much memory a process could have now, read again before every step: other processes come and go.

A reading is total and free; what this process holds itself is its own to use again, so the caller adds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .device import cpu_facts
from .errors import ProfileError
from .nvml import UsedMemory, gpu_with_uuid

MEMINFO = Path("/proc/meminfo")
CGROUP, CGROUP_MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Names of a control group's limit and use, and of the line of memory.stat with file pages that the system takes back
# first: of version 2, and of version 1.
NAMES_2 = ("memory.max", "memory.current", "inactive_file")
NAMES_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@dataclass(frozen=True, slots=True)
class Room:
    """A device's memory at one moment.

    Attributes:
        total_bytes: all there is.
        free_bytes: what any process could still take.
        source: who said so, for people.
    """

    total_bytes: int
    free_bytes: int
    source: str


ReadRoom = Callable[[], Room]


@contextmanager
def gpu_room(uuid: str) -> Iterator[ReadRoom]:
    """Reads the memory of a GPU or MIG instance by NVML, at the cost of one call.

    Args:
        uuid: `GPU-` may be left out.

    Raises:
        ProfileError: NVML cannot be asked, has no such device, or gives no answer to a later call.
    """
    gpu = gpu_with_uuid(uuid)
    with UsedMemory(gpu.uuid) as used:

        def read() -> Room:
            used_bytes = used.read()
            if used_bytes is None:
                raise ProfileError(f"{gpu.uuid} no longer tells its memory", next="nvidia-smi")
            return Room(gpu.memory_bytes, gpu.memory_bytes - used_bytes, f"NVML {gpu.uuid}")

        yield read


def host_room() -> ReadRoom:
    """Reads this machine's memory, or that of the tightest of this process's control groups where that is less."""
    total_bytes, groups = cpu_facts().memory_bytes, _control_groups()

    def read() -> Room:
        room = Room(total_bytes, _available_bytes(total_bytes), "system memory")
        for folder, (limit, used, reclaimable) in groups:
            limit_bytes, used_bytes = _number(folder / limit), _number(folder / used)
            if limit_bytes is None or used_bytes is None or limit_bytes >= total_bytes:
                continue
            free_bytes = max(0, limit_bytes - used_bytes + _stat(folder, reclaimable))
            if free_bytes < room.free_bytes or limit_bytes < room.total_bytes:
                room = Room(
                    min(room.total_bytes, limit_bytes), min(room.free_bytes, free_bytes), "control group"
                )  # fmt: skip
        return room

    return read


def _control_groups() -> list[tuple[Path, tuple[str, str, str]]]:
    """Folders of this process's memory control group and of all above it, with the names of their files."""
    try:
        lines = CGROUP.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, names = (CGROUP_MOUNT / "memory", NAMES_1) if controllers else (CGROUP_MOUNT, NAMES_2)
        place = mount / path.lstrip("/")
        found += [(folder, names) for folder in (place, *place.parents) if folder == mount or mount in folder.parents]
    return found


def _available_bytes(total_bytes: int) -> int:
    """MemAvailable; all there is where the system has no /proc."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return total_bytes
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return total_bytes if found is None else int(found) * 1024


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _stat(folder: Path, name: str) -> int:
    """A line of a control group's memory.stat; 0 where it is not told."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
