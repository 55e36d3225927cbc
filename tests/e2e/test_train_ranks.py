"""Trainings of two processes over gloo against trainings of one: the same numbers, and every way to end together."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from msgdas.engine.run import checkpoint
from msgdas.engine.settings.train_config import demo
from msgdas.engine.spaces.genotype_text import published
from msgdas.engine.training.trained import trained
from msgdas.engine.training.trainer import resume, train

sys.path.insert(0, str(Path(__file__).parent))
import ranks
from ranks import back_to, events, rows, tensors

# 12 steps, with everything that a step can do; 65 test images are one batch, and another of none.
TINY: dict[str, Any] = {
    "channels": 4, "layers": 3, "image": 16, "batch": 8, "epochs": 3, "limit": 32, "eval_images": 300,
    "drop_path": 0.3, "auxiliary": 0.4, "ema": 0.9, "cutout": 4, "threads": 1, "checkpoint_every": 1, "keep": 100,
    "label_smoothing": 0.1, "warmup": 1,
}  # fmt: skip
STEPS = 12


def start(run: Path, code: str = "", **changes: Any) -> list[Any]:
    words = [word for name, value in {**TINY, **changes}.items() for word in ("--set", f"{name}={value}")]
    return ranks.start(2, "DARTS_V2", "demo", *words, "--out", str(run), code=code, command="train")


def last(run: Path) -> checkpoint.Checkpoint:
    return trained(run)[1]


def assert_same_training(run: Path, other: Path) -> None:
    assert rows(run) == rows(other)
    ours, theirs = (tensors(last(path).state["student"]) for path in (run, other))
    assert ours.keys() == theirs.keys() and len(ours) > 100
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A process that is alone and cuts its batches into two micro-batches."""
    path = tmp_path_factory.mktemp("train-ranks") / "one"
    return train(demo(genotype=json.dumps(published()["DARTS_V2"]), accumulate=2, **TINY), out=path).path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str, str]]]:
    """Two processes with half a batch each, and how they ended."""
    path = tmp_path_factory.mktemp("train-ranks") / "two"
    return path, ranks.ends(start(path))


def test_two_processes_equal_one_with_two_micro_batches(one: Path, two: Any) -> None:
    """Bit for bit, as in a search: weights, momentum, average and running statistics too."""
    path, ended = two
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert len([row for row in rows(path) if row["kind"] == "step"]) == STEPS
    assert_same_training(path, one)


def test_the_first_process_speaks_for_all(two: Any) -> None:
    path, ((_, out, error), (_, other_out, other_error)) = two
    assert "accuracy after the last epoch" in out and error == "" and (other_out, other_error) == ("", "")
    assert events(path, "processes") == ["2 instead of 1, 4 of a batch's 8 images each"]
    assert len(events(path, "micro-batches")) == 1
    assert last(path).state["processes"] == 2


def test_fault_04_a_signal_to_one_process_stops_all_and_one_goes_on(one: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = start(run)
    ranks.wait_for_steps(run, 5, processes)
    processes[1].send_signal(signal.SIGTERM)
    (code, _, error), (other, _, silent) = ranks.ends(processes)
    assert (code, other) == (143, 143), (error, silent)
    assert error.count("\n") == 1 and f"msgdas train --resume {run}" in error and silent == ""
    assert last(run).step == len(ranks.steps(run)) < STEPS
    resume(run)
    assert events(run, "processes")[-1] == "1 instead of 2, 8 of a batch's 8 images each"
    assert_same_training(run, one)


def test_fault_42_a_killed_process_ends_the_others(one: Path, tmp_path: Path) -> None:
    """Two processes go on with a training of one (fault 43), one is killed, one process finishes."""
    run = tmp_path / "run"
    shutil.copytree(one, run)
    back_to(run, 3)
    processes = ranks.start(2, "--resume", str(run), command="train")
    ranks.wait_for_steps(run, 6, processes)
    processes[1].kill()
    (code, _, error), (killed, _, _) = ranks.ends(processes)
    assert (code, killed) == (12, -9), error
    assert error.count("\n") == 1 and "lost another process" in error and "msgdas train --resume" in error
    resume(run)
    assert_same_training(run, one)


# Images of the second process are not finite in the third step.
NOT_FINITE = """
from msgdas.engine.images.batches import Batches
whole = Batches.at
def at(self, step):
    batch = whole(self, step)
    if rank == 1 and step == 2:
        batch.images_BCHW.fill_(float("nan"))
    return batch
Batches.at = at
"""
# Memory of the second process runs out in its second step.
NO_MEMORY = """
import torch
from msgdas.engine.network.network import Network
forward, passes = Network.training_logits, [0]
def short(self, *arguments):
    passes[0] += 1
    if rank == 1 and passes[0] == 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return forward(self, *arguments)
Network.training_logits = short
"""


def test_fault_15_what_is_not_finite_on_one_process_stops_all(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (code, _, error), (other, _, silent) = ranks.ends(start(run, NOT_FINITE))
    assert (code, other) == (7, 7), (error, silent)
    assert error.count("\n") == 1 and "not finite" in error and "step 3" in error and silent == ""
    found = last(run)
    assert found.step == 2
    assert all(tensor.isfinite().all() for tensor in tensors(found.state["student"]).values())


def test_all_cut_finer_where_the_memory_of_one_runs_out(tmp_path: Path) -> None:
    """The step is taken once, in two micro-batches on each process, and the next command knows of them."""
    run = tmp_path / "run"
    ended = ranks.ends(start(run, NO_MEMORY, epochs=1))
    assert [code for code, _, _ in ended] == [0, 0], ended
    (descent,) = events(run, "stepped down")
    assert "2 in each process instead of 1" in descent and "process 1 ran out of memory" in descent
    assert [row["step"] for row in ranks.steps(run)] == [1, 2, 3, 4]
    assert last(run).state["student"]["micro_batches"] == 4


def test_a_budget_that_nothing_fits_is_an_error_of_one_line(tmp_path: Path) -> None:
    (code, _, error), (other, _, silent) = ranks.ends(start(tmp_path / "run", budget="1MiB"))
    assert (code, other) == (10, 10) and silent == "", (error, silent)
    assert error.count("\n") == 1 and "not even micro-batches of two images fit" in error
