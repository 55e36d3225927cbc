"""Which GPUs CUDA_VISIBLE_DEVICES leaves to this process, as UUIDs; NVML itself does not heed it.

Rules: NVIDIA's CUDA C++ Programming Guide, "CUDA Environment Variables"; its MIG User Guide, "CUDA Device Enumeration";
and torch.cuda's own reading of the variable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

UUID_PREFIXES = ("GPU-", "MIG-")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A GPU that CUDA could take.

    Attributes:
        uuid: of the GPU.
        name: of the GPU; CUDA sorts GPUs of different names by speed unless told otherwise.
        instances: (UUID, older name `MIG-GPU-<uuid>/<gi>/<ci>`) of its MIG instances, empty without MIG.
    """

    uuid: str
    name: str
    instances: tuple[tuple[str, str], ...] = ()

    @property
    def first(self) -> str:
        """The UUID that CUDA takes: that of the first instance where the GPU is partitioned."""
        return self.instances[0][0] if self.instances else self.uuid


@dataclass(frozen=True, slots=True)
class Visible:
    """What is left, in CUDA's order.

    Attributes:
        uuids: of GPUs or MIG instances.
        notes: what was cut off or cannot be known, one line each; the reason where nothing is left.
    """

    uuids: tuple[str, ...]
    notes: tuple[str, ...] = ()


def visible(value: str | None, candidates: Sequence[Candidate], *, pci_order: bool, one_instance: bool) -> Visible:
    """Resolve CUDA_VISIBLE_DEVICES.

    Args:
        value: the variable, None where it is not set.
        candidates: all GPUs, in NVML's order, which is that of PCI addresses.
        pci_order: whether CUDA_DEVICE_ORDER is PCI_BUS_ID. Without it CUDA sorts by a speed that NVML does not tell,
            so that with GPUs of different names an index names none for sure.
        one_instance: whether the driver is older than R570, which shows CUDA one MIG instance at most, and no other
            GPU beside it.
    """
    return _enumerated(_named(value, candidates, pci_order), candidates, one_instance)


def _named(value: str | None, candidates: Sequence[Candidate], pci_order: bool) -> Visible:
    """All that the variable names."""
    mixed = not pci_order and len({candidate.name for candidate in candidates}) > 1
    if value is None:
        note = ("the GPUs differ: CUDA may order them otherwise; set CUDA_DEVICE_ORDER=PCI_BUS_ID",) if mixed else ()
        parts = [[uuid for uuid, _ in candidate.instances] or [candidate.uuid] for candidate in candidates]
        return Visible(tuple(uuid for part in parts for uuid in part), note)
    if value.startswith(UUID_PREFIXES):
        prefix = value[:4]
        return _take(value, lambda text: _by_uuid(text, prefix, candidates))
    if mixed and re.match(r"\s*\+?\d", value):
        return Visible(
            (), (f"CUDA_VISIBLE_DEVICES={value} counts in CUDA's order, unknown here for GPUs that differ; name UUIDs",)
        )
    return _take(value, lambda text: _by_index(text, candidates))


def _enumerated(named: Visible, candidates: Sequence[Candidate], one_instance: bool) -> Visible:
    """What CUDA lists of what is named: of a GPU instance its first compute instance."""
    gpu_instances = {uuid: older.rpartition("/")[0] for candidate in candidates for uuid, older in candidate.instances}
    first: dict[str, str] = {}
    for uuid in named.uuids:
        first.setdefault(gpu_instances.get(uuid, uuid), uuid)
    kept = tuple(first.values())
    if one_instance:
        kept = next(((uuid,) for uuid in kept if uuid in gpu_instances), kept)
    if len(kept) == len(named.uuids):
        return named
    what = "one MIG instance and no GPU beside it" if one_instance else "one compute instance of a GPU instance"
    left_out = ", ".join(uuid for uuid in named.uuids if uuid not in kept)
    return Visible(kept, (*named.notes, f"CUDA lists {what}: without {left_out}"))


def _take(value: str, find: Callable[[str], str | None]) -> Visible:
    """The entries up to the first that names nothing; none at all where one stands twice."""
    found: list[str] = []
    for text in value.split(","):
        uuid = find(text.strip())
        if uuid is None and not found and (not text.strip() or text.strip().startswith("-")):
            return Visible((), (f"CUDA_VISIBLE_DEVICES={value} hides all GPUs",))
        if uuid is None:
            what = f"CUDA_VISIBLE_DEVICES={value}: no single GPU is {text.strip()!r}"
            return Visible(tuple(found), (what + (", so it and all after it are hidden" if found else ""),))
        if uuid in found:
            return Visible((), (f"CUDA_VISIBLE_DEVICES={value} names a GPU twice, which hides all",))
        found.append(uuid)
    return Visible(tuple(found))


def _by_uuid(text: str, prefix: str, candidates: Sequence[Candidate]) -> str | None:
    if not text.startswith(prefix):
        return None
    if prefix == "GPU-":
        matches = [candidate.first for candidate in candidates if candidate.uuid.startswith(text)]
    else:
        instances = [instance for candidate in candidates for instance in candidate.instances]
        matches = [uuid for uuid, older in instances if text == older or uuid.startswith(text)]
    return matches[0] if len(matches) == 1 else None


def _by_index(text: str, candidates: Sequence[Candidate]) -> str | None:
    digits = re.match(r"\+?(\d{1,9})", text)
    index = int(digits[1]) if digits else -1
    return candidates[index].first if 0 <= index < len(candidates) else None
