"""What this device measured before, held against what was predicted for it."""

from __future__ import annotations

from dataclasses import asdict

import torch

from ...profiles.device import cpu_facts, gpu_with_uuid
from ...profiles.errors import ProfileError
from ...profiles.store import Key, Measurement, MeasurementStore, cache_folder, fingerprint
from ..run.environment import package_version
from ..settings.config import SearchConfig


def key_of(config: SearchConfig, device: torch.device, impl: str) -> Key:
    """What a measurement of this configuration's step depends on."""
    name, driver = cpu_facts().model, ""
    if device.type == "cuda":
        try:
            gpu = gpu_with_uuid(str(torch.cuda.get_device_properties(device).uuid))
            name, driver = gpu.name, gpu.driver
        except ProfileError:
            name = torch.cuda.get_device_name(device)
    free = ("recipe", "data", "data_root", "seed", "epochs", "budget")
    deciding = {key: value for key, value in asdict(config).items() if key not in free}
    return _key(name, driver, fingerprint(deciding | {"impl": impl}))


def known_ratio(key: Key) -> float:
    """Measured over predicted as this device showed before with this configuration; 1 where it is not known."""
    return [1.0, *_ratios(key, any_config=False)][-1]


def device_ratio(name: str, driver: str, tolerance: float) -> float:
    """The largest measured over predicted of any configuration on a device with the versions of now.

    1 where no prediction fell short by more than `tolerance`, a share of the measured peak.
    """
    worst = max([1.0, *_ratios(_key(name, driver, ""), any_config=True)])
    return worst if 1 - 1 / worst > tolerance else 1.0


def keep(key: Key, *, predicted_bytes: int, measured_bytes: int) -> None:
    """Add a measurement to the store, so that later plans and searches on this device are corrected by it.

    Raises:
        ProfileError: the store cannot be written.
    """
    values = {"predicted_bytes": predicted_bytes, "measured_bytes": measured_bytes}
    MeasurementStore(cache_folder()).add(key, values)


def _key(name: str, driver: str, config: str) -> Key:
    return Key(name, driver, torch.__version__, package_version("triton") or "", config)


def _ratios(key: Key, *, any_config: bool) -> list[float]:
    """Measured over predicted, oldest first; none where the store cannot be read."""
    try:
        found = MeasurementStore(cache_folder()).read().of(key, any_config=any_config)
    except ProfileError:
        return []
    return [ratio for ratio in map(_ratio, found) if ratio]


def _ratio(found: Measurement) -> float:
    predicted, measured = (found.values.get(f"{name}_bytes", 0) for name in ("predicted", "measured"))
    return measured / predicted if predicted > 0 and measured > 0 else 0.0
