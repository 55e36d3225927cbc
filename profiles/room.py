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
# Limit and use of this process's control group, version 2 and version 1.
CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


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
    """Reads this machine's memory, or that of this process's control group where it is tighter."""
    total_bytes = cpu_facts().memory_bytes

    def read() -> Room:
        room = Room(total_bytes, _available_bytes(total_bytes), "system memory")
        for limit_path, used_path in CGROUPS:
            limit_bytes, used_bytes = _number(limit_path), _number(used_path)
            if limit_bytes is None or used_bytes is None or limit_bytes >= total_bytes:
                continue
            free_bytes = min(room.free_bytes, max(0, limit_bytes - used_bytes))
            return Room(limit_bytes, free_bytes, "control group")
        return room

    return read


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
