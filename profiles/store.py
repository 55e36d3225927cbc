"""Measurements of earlier runs, so that a plan can be corrected by what this device did before.

JSON Lines in one file, written by appending alone: runs at the same time do not lose each other's lines, and a line
cut off by a crash costs itself only.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from .errors import ProfileError

FILE = "measurements.jsonl"


@dataclass(frozen=True, slots=True)
class Key:
    """What a measurement depends on; each as its own program names it, empty where there is none.

    Attributes:
        device: name, as NVML or the system reports it.
        driver: of the GPU.
        torch, triton: versions.
        config: `fingerprint` of all that decides the step's memory.
    """

    device: str
    driver: str
    torch: str
    triton: str
    config: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the store.

    Attributes:
        key: what was measured.
        at_utc: when, ISO 8601.
        values: finite numbers by name; the names carry units, as `predicted_bytes`, `samples_per_s`.
    """

    key: Key
    at_utc: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Contents:
    """All that could be read, oldest first, and the number of lines that could not."""

    measurements: tuple[Measurement, ...]
    damaged: int

    def of(self, key: Key, *, any_config: bool = False) -> tuple[Measurement, ...]:
        """Those of a key, or of its device and versions with any configuration."""
        wanted = _identity(key, any_config)
        return tuple(found for found in self.measurements if _identity(found.key, any_config) == wanted)


class MeasurementStore:
    """The store in a folder, which is made with the first measurement."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def add(self, key: Key, values: Mapping[str, float]) -> Measurement:
        """Append a measurement.

        Raises:
            ProfileError: the folder or file cannot be written.
        """
        assert all(math.isfinite(value) for value in values.values())
        measurement = Measurement(key, datetime.now(UTC).isoformat(timespec="seconds"), dict(values))
        line = json.dumps({**asdict(key), "at_utc": measurement.at_utc, "values": measurement.values})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _append(self.path, line.encode())
        except OSError as error:
            raise ProfileError(
                f"the measurement cannot be kept: {error.strerror}",
                got=self.path,
                next="make the folder writable, or name another cache folder",
            ) from None
        return measurement

    def read(self) -> Contents:
        """All measurements; none where there is no file yet.

        Raises:
            ProfileError: the file is there and cannot be read.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return Contents((), 0)
        except OSError as error:
            raise ProfileError(
                f"the measurements cannot be read: {error.strerror}", got=self.path, next="make the file readable"
            ) from None
        lines = [line for line in data.split(b"\n") if line.strip()]
        found = [measurement for measurement in map(_parsed, lines) if measurement]
        return Contents(tuple(found), len(lines) - len(found))


def cache_folder() -> Path:
    """Where this user's programs keep what they can do without (XDG Base Directory), in a folder of our own."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given.startswith("/") else Path.home() / ".cache") / "msgdas"


def fingerprint(value: Mapping[str, Any]) -> str:
    """16 hex digits that two mappings share exactly if they are the same JSON, whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode()).hexdigest()[:16]


def _append(path: Path, line: bytes) -> None:
    """One write of one whole line, so that the system keeps the lines of several writers apart."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size_bytes = os.fstat(file).st_size
        torn = size_bytes and os.pread(file, 1, size_bytes - 1) != b"\n"
        os.write(file, (b"\n" if torn else b"") + line + b"\n")
    finally:
        os.close(file)


def _identity(key: Key, any_config: bool) -> tuple[str, ...]:
    return (key.device, key.driver, key.torch, key.triton) + (() if any_config else (key.config,))


def _parsed(line: bytes) -> Measurement | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    names = [field.name for field in fields(Key)]
    texts = [record.get(name) for name in (*names, "at_utc")]
    values = record.get("values")
    if not all(isinstance(text, str) for text in texts) or not isinstance(values, dict):
        return None
    if not all(_is_number(value) for value in values.values()):
        return None
    return Measurement(Key(**{name: record[name] for name in names}), record["at_utc"], values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
