"""Searches of two processes over gloo against searches of one: the same numbers, and every way to end together."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from msgdas.engine.errors import RunFolderError
from msgdas.engine.run import checkpoint
from msgdas.engine.run.rundir import RunFolder
from msgdas.engine.search.searcher import resume, search
from msgdas.engine.settings.config import from_json
from msgdas.engine.settings.recipes import demo

sys.path.insert(0, str(Path(__file__).parent))
import ranks
from ranks import back_to, events, rows, tensors

# 20 steps, 16 of them with a step on alpha; the last evaluation batch is not a whole one.
TINY = {
    "channels": 4, "layers": 3, "image": 16, "batch": 8, "epochs": 5, "warmup": 1, "limit": 32, "eval_images": 18,
    "checkpoint_every": 1, "keep": 100, "threads": 1, "teacher_start": 0.0,
}  # fmt: skip


def flags(**changes) -> list[str]:
    return [word for name, value in {**TINY, **changes}.items() for word in ("--set", f"{name}={value}")]


def last(run: Path) -> checkpoint.Checkpoint:
    found = checkpoint.load(run, RunFolder.open(run, from_json).config)
    assert found is not None
    return found


def assert_same_learner(run: Path, other: Path) -> None:
    ours, theirs = (tensors(last(path).state["learner"]) for path in (run, other))
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def assert_same_search(run: Path, other: Path) -> None:
    assert rows(run) == rows(other)
    assert (run / "genotype.json").read_text() == (other / "genotype.json").read_text()
    assert_same_learner(run, other)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """A process that is alone and cuts its batches into two micro-batches."""
    path = tmp_path_factory.mktemp("ranks") / "one"
    search(demo(**TINY, accumulate=2), out=path)
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, list[tuple[int, str, str]]]:
    """Two processes with half a batch each, and how they ended."""
    path = tmp_path_factory.mktemp("ranks") / "two"
    return path, ranks.ends(ranks.start(2, "demo", *flags(), "--out", str(path)))


def test_two_processes_equal_one_with_two_micro_batches(one, two):
    """Bit for bit: their sums have two terms, whose order changes nothing, and a half is exact."""
    path, ended = two
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert len([row for row in rows(path) if row["kind"] == "step"]) == 20
    assert_same_search(path, one)


def test_the_first_process_speaks_for_all(two):
    path, ((_, out, error), (_, other_out, other_error)) = two
    assert "derived cell:" in out and error == "" and (other_out, other_error) == ("", "")
    assert events(path, "processes") == ["2 instead of 1, 4 of a batch's 8 images each"]
    assert len(events(path, "micro-batches")) == 1


def test_fault_04_a_signal_to_one_process_stops_all_at_the_same_step(one, tmp_path):
    """One checkpoint is left; one process goes on from it as two would have (fault 43)."""
    run = tmp_path / "run"
    processes = ranks.start(2, "demo", *flags(), "--out", str(run))
    ranks.wait_for_steps(run, 6, processes)
    processes[1].send_signal(signal.SIGTERM)
    (code, _, error), (other, _, silent) = ranks.ends(processes)
    assert (code, other) == (143, 143), (error, silent)
    assert error.count("\n") == 1 and f"msgdas search --resume {run}" in error and silent == ""
    stopped = len(ranks.steps(run))
    assert last(run).step == stopped < 20
    resume(run)
    assert events(run, "processes")[-1] == "1 instead of 2, 8 of a batch's 8 images each"
    assert_same_search(run, one)


def test_fault_42_a_killed_process_ends_the_others(one, tmp_path):
    """Two processes go on with a search of one (fault 43), one is killed, one process finishes."""
    run = tmp_path / "run"
    shutil.copytree(one, run)
    back_to(run, 3)
    processes = ranks.start(2, "--resume", str(run))
    ranks.wait_for_steps(run, 9, processes)
    processes[1].kill()
    (code, _, error), (killed, _, _) = ranks.ends(processes)
    assert (code, killed) == (12, -9), error
    assert error.count("\n") == 1 and "lost another process" in error and "--resume" in error
    assert 9 <= last(run).step < 20
    resume(run)
    assert_same_search(run, one)


# Images of the second process are not finite from its third step on the weights.
NOT_FINITE = """
from msgdas.engine.images.batches import Batches
whole = Batches.at
def at(self, step):
    batch = whole(self, step)
    if rank == 1 and self.stream == "w" and step == 2:
        batch.images_BCHW.fill_(float("nan"))
    return batch
Batches.at = at
"""


def test_fault_15_what_is_not_finite_on_one_process_stops_all(tmp_path):
    run = tmp_path / "run"
    (code, _, error), (other, _, silent) = ranks.ends(
        ranks.start(2, "demo", *flags(), "--out", str(run), code=NOT_FINITE)
    )
    assert (code, other) == (7, 7), (error, silent)
    assert error.count("\n") == 1 and "W step 3 is not finite" in error and silent == ""
    assert last(run).step == 2
    assert len(set(json.loads((run / "numerics-3.json").read_text())["images"])) == TINY["batch"]


# Memory of the second process runs out in its fourth forward pass.
NO_MEMORY = """
import torch
from msgdas.engine.supernet.supernet import SuperNet
forward, passes = SuperNet.forward, [0]
def short(self, *arguments):
    passes[0] += torch.is_grad_enabled()
    if rank == 1 and passes[0] == 4:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return forward(self, *arguments)
SuperNet.forward = short
"""


def test_all_step_down_where_the_memory_of_one_runs_out(tmp_path):
    """The step is taken once, with two micro-batches on each process; the draws stay those of one process."""
    run = tmp_path / "run"
    ended = ranks.ends(ranks.start(2, "demo", *flags(epochs=1), "--out", str(run), code=NO_MEMORY))
    assert [code for code, _, _ in ended] == [0, 0], ended
    (descent,) = events(run, "stepped down")
    assert "2 micro-batches" in descent and "process 1 ran out of memory" in descent
    assert [row["step"] for row in ranks.steps(run)] == [1, 2, 3, 4]
    assert last(run).state["learner"]["rung"]["accumulate"] == 4


def test_fault_43_a_batch_that_cannot_be_shared_out_is_an_error_of_one_line(tmp_path):
    (code, _, error), (other, _, silent) = ranks.ends(
        ranks.start(2, "demo", *flags(batch=9), "--out", str(tmp_path / "run"))
    )
    assert (code, other) == (2, 2) and silent == ""
    assert error.count("\n") == 1 and "batch 9, 2 processes" in error and "--batch 8" in error
    assert not (tmp_path / "run").exists()


def test_torchrun_starts_the_same_command(tmp_path):
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(ranks.free_port()),
        "-m", "msgdas.engine", "search", "demo", *flags(epochs=1, limit=8, warmup=0), "--out", str(run),
        "--budget", "6GiB", "--set", "policy=min", "--set", "k=2", "--set", "mode=union",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=ranks.DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("derived cell:") == 1
    # The plan is of one process's share of the batch, and made once.
    assert done.stdout.count("plan") == 1 and json.loads((run / "plan.json").read_text())["plan"]["batch"] == 4
    assert (RunFolder.open(run, from_json).config.batch, len(ranks.steps(run))) == (8, 1)
    with pytest.raises(RunFolderError, match="is not empty"):
        search(demo(**TINY), out=run)
