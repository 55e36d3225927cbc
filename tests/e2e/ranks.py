"""Searches and trainings of several processes, started as torchrun starts them but without its agent."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from msgdas.engine.run.rundir import keep_until, read_metrics

DEADLINE_S = 400


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(world: int, *words: str, code: str = "", command: str = "search") -> list[subprocess.Popen[str]]:
    """`msgdas COMMAND WORDS` in `world` processes; `code` runs in each before it, and knows `rank`."""
    port = free_port()
    program = f"import os\nrank = int(os.environ['RANK'])\n{code}\nfrom msgdas.engine.cli import run\nrun()"
    found = []
    for rank in range(world):
        place = {
            "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        environment = os.environ | {name: str(value) for name, value in place.items()}
        line = [sys.executable, "-c", program, command, *words]
        pipe = subprocess.PIPE
        found.append(subprocess.Popen(line, env=environment, stdout=pipe, stderr=pipe, text=True))
    return found


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each; none lives longer than a test may wait."""
    deadline = time.monotonic() + DEADLINE_S
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process in processes if (texts := process.communicate())]


def wait_for_steps(run: Path, count: int, processes: list[subprocess.Popen[str]]) -> None:
    """Until the run folder has that many steps."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        if len(steps(run)) >= count:
            return
        time.sleep(0.01)


def steps(run: Path) -> list[dict]:
    return [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "step"]


def rows(run: Path) -> list[dict]:
    """Steps and epochs without times, and without the peaks, which differ with the images of a process."""
    found = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] in ("step", "epoch")]
    return [{key: value for key, value in row.items() if key != "time"} for row in found]


def events(run: Path, what: str) -> list[str]:
    return [row["detail"] for row in read_metrics(run / "metrics.jsonl") if row.get("what") == what]


def tensors(state) -> dict[str, torch.Tensor]:
    found = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": tensor for name, tensor in tensors(value).items()}
        elif isinstance(value, torch.Tensor):
            found[str(key)] = value
    return found


def back_to(run: Path, step: int) -> None:
    """As if the run had been stopped after that step."""
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    for name in ("genotype.json", "report.html"):
        (run / name).unlink(missing_ok=True)
    keep_until(run / "metrics.jsonl", step, epoch_closed=False)
