"""Results of benchmarks: JSON Lines that are only ever appended to, each row with what it was measured on.

A row of a measurement is an object with `kind`, `name`, `config`, `figures`, `gate` and `provenance`. A figure that
was taken n times is a summary (see `summary`) that holds its n values, so that a reader can check it. The unit ends its
name.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..engine.errors import DataError
from ..engine.run.environment import commit, package_version
from ..profiles.clocks import cpu_mhz, gpu_state
from ..profiles.device import GpuFacts, cpu_facts, gpus
from .gate import Gate

FOLDER = Path(__file__).resolve().parent / "results"
PACKAGES = ("msgdas", "torch", "triton", "numpy")
REQUIRED: Mapping[str, type] = {
    "kind": str, "name": str, "config": dict, "figures": dict, "gate": dict, "provenance": dict,
}  # fmt: skip
# Rows of searches stand for themselves: one search each, with these fields and no summary.
SEARCHES: Mapping[str, tuple[str, ...]] = {
    "quality": ("method", "seed", "accuracy", "cpu_s", "sample_passes", "space", "provenance"),
    "ablation": ("method", "seed", "accuracy", "cpu_s", "space", "provenance"),
    "collapse": ("space", "dbi", "seed", "skips", "provenance"),
    "yardsticks": ("values",),
}
DIGITS = 7

Row = dict[str, Any]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median and spread of n values.

    Returns:
        n, median, min, max, first and third quartile (q1, q3; inclusive method, of one value the value itself) and
        the values, all to `DIGITS` significant digits.

    Raises:
        ValueError: without values, or for one that is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"a figure needs finite values, got {list(values)}")
    kept = [_rounded(value) for value in values]
    q1, median, q3 = statistics.quantiles(kept, n=4, method="inclusive") if len(kept) > 1 else kept * 3
    found = {"median": median, "min": min(kept), "max": max(kept), "q1": q1, "q3": q3}
    return {"n": len(kept), **{name: _rounded(value) for name, value in found.items()}, "values": kept}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def row(
    kind: str, name: str, config: Mapping[str, Any], figures: Mapping[str, Sequence[float]], gate: Gate,
    provenance: Mapping[str, Any],
) -> Row:  # fmt: skip
    """A row of measured figures.

    Raises:
        GateError: for a gate that is red.
    """
    gate.require(name)
    return {
        "kind": kind, "name": name, "config": dict(config), "gate": asdict(gate),
        "figures": {figure: summary(values) for figure, values in figures.items()}, "provenance": dict(provenance),
    }  # fmt: skip


def provenance(command: str, **more: Any) -> dict[str, Any]:
    """What a measurement was made on and with; no host, user or folder in it.

    Args:
        command: that measures the same again.
        more: further facts, as the number of threads.
    """
    cpu, libc = cpu_facts(), " ".join(platform.libc_ver())
    return {
        "machine": f"{cpu.model}, {cpu.cores} cores",
        "cpu": {**asdict(cpu), "instructions": _instructions(), "mhz": cpu_mhz()},
        "gpus": [_gpu(gpu) for gpu in gpus().devices],
        "system": f"{platform.system()} {platform.machine()} {libc}".strip(),
        "versions": {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}},
        "commit": commit(), "dirty": dirty(), "command": command,
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"), **more,
    }  # fmt: skip


def _gpu(gpu: GpuFacts) -> dict[str, Any]:
    """A GPU and its state now; `clean` is None where the driver does not tell what could disturb."""
    state = gpu_state(gpu.uuid)
    return {
        "name": gpu.name, "memory_bytes": gpu.memory_bytes, "driver": gpu.driver, "arch": gpu.arch,
        "mhz": {"sm": state.sm_mhz, "memory": state.memory_mhz}, "temperature_c": state.temperature_c,
        "power_w": state.power_w, "foreign_pids": state.foreign_pids, "clean": state.clean,
        "not_clean": state.disturbances,
    }  # fmt: skip


def behind(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a measurement that has just ended: each GPU's state of now, and what disturbs or disturbed it.

    Args:
        facts: `provenance` of before the measurement, on the same GPUs.
    """
    found = []
    for before, now in zip(facts["gpus"], map(_gpu, gpus().devices), strict=True):
        every = list(dict.fromkeys([*before["not_clean"], *now["not_clean"]]))
        unknown = None in (before["clean"], now["clean"])
        found.append(now | {"not_clean": every, "clean": False if every else None if unknown else True})
    return {**facts, "gpus": found}


def warning(one: Row, separator: str) -> str:
    """The separator and `not clean: ...` for a row whose measurement was disturbed on a GPU, else empty."""
    every = [reason for gpu in one["provenance"]["gpus"] for reason in gpu.get("not_clean", ())]
    return f"{separator}not clean: {', '.join(dict.fromkeys(every))}" if every else ""


def _instructions() -> str:
    from ..kernels import native

    return native.instruction_set() if native.why_not() is None else "C++ kernels are not built"


def dirty() -> bool | None:
    """Whether the source tree differs from its commit, results and docs apart; None where it is no checkout."""
    if commit() is None:
        return None
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "status", "--porcelain", "--", ".", ":!bench/results", ":!docs"]
    return bool(subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.strip())


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows behind those that are there, and read the file back.

    Raises:
        DataError: a file that cannot be written, or that did not hold results before.
    """
    lines = "".join(json.dumps(one, allow_nan=False) + "\n" for one in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            read(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path} cannot be written", got=error.strerror, next="--out FILE of your own") from None
    read(path)


def show_and_keep(rows: Iterable[Row], text: Callable[[Row], str], *, as_json: bool, out: Path | None) -> None:
    """Print each row as it comes, as `text` says or as JSON, and add all to `out` where there is one.

    Raises:
        DataError: as `append`.
    """
    found = []
    for one in rows:
        print(json.dumps(one) if as_json else text(one), flush=True)
        found.append(one)
    if out is not None:
        append(out, found)


def read(path: Path) -> list[Row]:
    """All rows of a file, the oldest first.

    Raises:
        DataError: for the first line that is not a row, or whose summary is not that of its values.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read", got=str(error), next="python -m msgdas.bench --help") from None
    if text and not text.endswith("\n"):
        raise DataError(
            f"{path} ends in the middle of a row", got=repr(text[-40:]), allowed="whole lines", next="delete that line"
        )
    return [_checked(path, number, line) for number, line in enumerate(text.splitlines(), 1)]


def _checked(path: Path, number: int, line: str) -> Row:
    where = f"{path} line {number}"
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON", got=str(error), next="delete that line") from None
    if isinstance(found, dict) and found.get("kind") in SEARCHES:
        fields = SEARCHES[found["kind"]]
        if not set(fields) <= set(found):
            raise DataError(f"{where} is no result", got=f"fields {', '.join(found)}", allowed=", ".join(fields),
                            next="delete that line")  # fmt: skip
        return found
    missing = [
        name for name, kind in REQUIRED.items() if not isinstance(found, dict) or not isinstance(found.get(name), kind)
    ]
    if missing:
        raise DataError(f"{where} is no result", got=f"no {missing[0]}", allowed=", ".join(REQUIRED),
                        next="delete that line")  # fmt: skip
    if not found["gate"].get("passed"):
        raise DataError(f"{where} is of a red gate", got=found["gate"].get("reason"), next="delete that line")
    for name, figure in found["figures"].items():
        if not isinstance(figure, dict) or not figure.get("values") or summary(figure["values"]) != figure:
            raise DataError(f"{where}: {name} is not the summary of its values", next="delete that line")
    return dict(found)


def latest(rows: Iterable[Row]) -> list[Row]:
    """Of measurements with the same machine, kind, name and configuration the last, where their first was."""
    found: dict[str, Row] = {}
    for number, one in enumerate(rows):
        if one["kind"] in SEARCHES:
            found[str(number)] = one
            continue
        key = json.dumps([one["provenance"].get("machine"), one["kind"], one["name"], one["config"]], sort_keys=True)
        found[key] = one
    return list(found.values())
