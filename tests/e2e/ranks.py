"""Searches of several processes, started as torchrun starts them but without its agent."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from msgdas.engine.rundir import read_metrics

DEADLINE_S = 400


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(world: int, *words: str, code: str = "") -> list[subprocess.Popen[str]]:
    """`msgdas search WORDS` in `world` processes; `code` runs in each before it, and knows `rank`."""
    port = free_port()
    program = f"import os\nrank = int(os.environ['RANK'])\n{code}\nfrom msgdas.engine.cli import run\nrun()"
    found = []
    for rank in range(world):
        place = {
            "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        environment = os.environ | {name: str(value) for name, value in place.items()}
        command = [sys.executable, "-c", program, "search", *words]
        pipe = subprocess.PIPE
        found.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
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
