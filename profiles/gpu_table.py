"""GPUs by name, for plans that are made without one; the figures and their sources lie in gpus.toml."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from .errors import ProfileError

TABLE = Path(__file__).with_name("gpus.toml")
MIB_BYTES = 1 << 20
# GeForce from sm_86 on runs bf16 with fp32 accumulation at twice the rate of fp32 (NVIDIA's GA102, Ada and
# Blackwell white papers, peak rates).
GEFORCE_BF16_OVER_FP32 = 2


@dataclass(frozen=True, slots=True)
class TableGpu:
    """One row of gpus.toml.

    Attributes:
        key: the name that `--gpu` takes.
        name: the name that NVML reports.
        memory_bytes: total memory as NVML reports it.
        bandwidth_bytes_per_s: memory bandwidth.
        fp32_flops: peak of plain fp32, operations per second.
        bf16_flops: peak of dense bf16 tensor cores with fp32 accumulation, None where the device has none.
        arch: compute capability as `sm_89`.
        year: year of announcement.
        source: the vendor's page that has the figures.
        checked: what they were held against, by the names that gpus.toml explains.
    """

    key: str
    name: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    fp32_flops: float
    bf16_flops: float | None
    arch: str
    year: int
    source: str
    checked: tuple[str, ...]


@cache
def known_gpus() -> dict[str, TableGpu]:
    """All rows by key, in the file's order."""
    with TABLE.open("rb") as file:
        return {key: _row(key, values) for key, values in tomllib.load(file).items()}


def gpu_named(name: str) -> TableGpu:
    """The row of a name, in any case, with or without `NVIDIA GeForce`, spaces or hyphens.

    Raises:
        ProfileError: no such row; the message has the nearest names.
    """
    found = find_gpu(name)
    if found:
        return found
    wanted, keys = _plain(name), list(known_gpus())
    near = [key for key in keys if wanted and key.startswith(wanted)]
    near = near or [key for key in keys if wanted.startswith(f"{key}-")]
    near = near or get_close_matches(wanted, keys, n=3, cutoff=0.5)
    hint = f"try {' or '.join(near)}" if near else f"take one of {', '.join(keys)}"
    raise ProfileError(
        "no GPU of this name in the table",
        got=repr(name),
        next=f"{hint}, or give the memory as --budget 24GiB",
    )


def find_gpu(name: str) -> TableGpu | None:
    """Like `gpu_named`, None where the table has no such row: for names that NVML reports."""
    wanted = _plain(name)
    rows = known_gpus()
    return rows.get(wanted) or next((row for row in rows.values() if _plain(row.name) == wanted), None)


def _plain(name: str) -> str:
    words = re.split(r"[\s_-]+", name.strip().lower())
    return "-".join(word for word in words if word not in ("nvidia", "geforce", "tesla"))


def _row(key: str, values: dict[str, Any]) -> TableGpu:
    fp32, bf16 = values.get("fp32_tflops"), values.get("bf16_tflops")
    if fp32 is None:
        fp32 = 2 * values["cuda_cores"] * values["boost_ghz"] / 1000
        bf16 = fp32 * GEFORCE_BF16_OVER_FP32
    return TableGpu(
        key=key,
        name=values["name"],
        memory_bytes=values["memory_mib"] * MIB_BYTES,
        bandwidth_bytes_per_s=values["bandwidth_gb_s"] * 1e9,
        fp32_flops=fp32 * 1e12,
        bf16_flops=None if bf16 is None else bf16 * 1e12,
        arch=values["arch"],
        year=values["year"],
        source=values["source"],
        checked=tuple(values["checked"]),
    )
