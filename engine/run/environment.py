"""What a run was made with, to be kept beside it and pasted in bug reports; no host, user or home in it."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...profiles.device import cpu_facts, gpus
from ..images.workers import processors

PACKAGES = ("torch", "torchvision", "triton", "numpy", "matplotlib", "rich", "tensorboard", "nvidia-dali-cuda130")


def package_version(name: str) -> str | None:
    """The installed version of a package, None where it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The source tree's git commit, None where this is no checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def environment() -> dict[str, Any]:
    """Versions, processor and GPUs as plain values for JSON."""
    cpu = cpu_facts()
    found = gpus()
    return {
        "msgdas": package_version("msgdas"),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "cpu": {"model": cpu.model, "cores": cpu.cores, "memory_bytes": cpu.memory_bytes},
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.memory_bytes, "driver": gpu.driver} for gpu in found.devices],
        "no_gpu_because": found.reason,
        "affinity": processors(),
        "arguments": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }
