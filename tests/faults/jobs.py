"""A search and a training of six steps each, with a checkpoint after every step: what the faults are injected into."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from msgdas.engine.cli import main
from msgdas.engine.learning import steps
from msgdas.engine.run import checkpoint
from msgdas.engine.run.rundir import RunFolder, read_metrics
from msgdas.engine.settings import config, train_config
from msgdas.engine.training import student

STEPS = 6
BOTH: dict[str, Any] = {"channels": 4, "layers": 3, "epochs": 2, "checkpoint_every": 1, "keep": 9, "threads": 1}
SEARCH = BOTH | {
    "space": "nasbench201", "image": 16, "batch": 8, "warmup": 1, "limit": 24, "eval_images": 16, "k": 2,
    "mode": "union",
}  # fmt: skip
TRAIN = BOTH | {"image": 28, "batch": 16, "limit": 48, "eval_images": 32}


def flags(sizes: dict[str, Any]) -> list[str]:
    return [word for name, value in sizes.items() for word in ("--set", f"{name}={value}")]


@dataclass(frozen=True)
class Job:
    """A command, and the step of it that is a step on the weights."""

    verb: str
    begin: tuple[str, ...]
    owner: type
    step: str
    read: Callable[[str], Any]

    def words(self, run: Path, *more: str) -> list[str]:
        return [*self.begin, *more, "--out", str(run)]

    def resume(self, run: Path) -> int:
        return main([self.verb, "--resume", str(run)])

    def process(self, words: list[str], code: str = "", **options: Any) -> subprocess.Popen[str]:
        """The command in a process of its own; `code` runs before it."""
        program = f"{code}\nfrom msgdas.engine.cli import run\nif __name__ == '__main__': run()"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([sys.executable, "-c", program, *words], text=True, **pipes)

    def at_step(self, patch: Any, number: int, act: Callable[[], None]) -> None:
        """Do something before that step, 1 for the first, is taken."""
        original = getattr(self.owner, self.step)

        def take(learner: Any, images: Any, labels: Any, at: Any, *more: Any) -> Any:
            if getattr(at, "step", at) == number - 1:
                act()
            return original(learner, images, labels, at, *more)

        patch.setattr(self.owner, self.step, take)

    def last(self, run: Path) -> checkpoint.Checkpoint:
        found = checkpoint.load(run, RunFolder.open(run, self.read).config)
        assert found is not None
        return found

    def assert_same(self, run: Path, other: Path) -> None:
        """The same rows and the same last state, bit for bit."""
        assert rows(run) == rows(other)
        assert (run / "genotype.json").read_text() == (other / "genotype.json").read_text()
        ours, theirs = self.last(run), self.last(other)
        assert (ours.step, theirs.step) == (STEPS, STEPS) and equal(ours.state, theirs.state)


JOBS = {
    "search": Job("search", ("search", "demo", *flags(SEARCH)), steps.Learner, "weight_step", config.from_json),
    "train": Job(
        "train", ("train", "random:1", "demo", *flags(TRAIN)), student.Student, "passes", train_config.from_json
    ),
}  # fmt: skip


def rows(run: Path) -> list[dict[str, Any]]:
    """Steps and epochs without times."""
    found = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] in ("step", "epoch")]
    return [{key: value for key, value in row.items() if key != "time"} for row in found]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def back_to(whole: Path, run: Path, step: int) -> Path:
    """A copy of a run folder as it was after a step; returns the folder of its newest checkpoint."""
    shutil.copytree(whole, run)
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    return run / "checkpoints" / f"step-{step:010d}"


def one_line(text: str) -> str:
    """The text, which has to be one line of the command line that says what to do next."""
    assert text.startswith("msgdas: ") and text.count("\n") == 1, text
    assert re.search(r"Next: \S", text), text
    return text


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A small file system of its own; the test is skipped where this user may not mount one."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"needs the right to mount a file system ({done.stderr.strip() if done else 'no mount'})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
