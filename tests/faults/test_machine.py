"""A machine that runs out: disk, memory, a GPU that fails, numbers that are not finite."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from msgdas.engine.cli import main

from .jobs import JOBS, STEPS, Job, mounted, one_line, rows

DISK_BYTES, PAGE_BYTES = 4 << 20, 4096


@pytest.fixture
def disk(tmp_path):
    """A disk of a few MiB."""
    with mounted(tmp_path / "disk", f"size={DISK_BYTES}") as place:
        yield place


def fill(ballast: Path) -> None:
    """Take all that is left of a disk."""
    with open(ballast, "ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1 << 6, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def assert_room_is_told(text: str, saved: Path) -> None:
    """Bytes needed are those of a state that was saved, to a hundredth of a MiB; bytes free are not enough."""
    found = re.findall(r"; ([\d.]+) MiB needed, ([\d.]+) MiB free", text)
    needed_mib = (saved / "state.pt").stat().st_size / 2**20
    assert found and all(abs(float(needed) - needed_mib) < 0.02 for needed, _ in found)
    assert all(float(free) < needed_mib for _, free in found)


def test_fault_12_a_full_disk_in_mid_run_costs_checkpoints_and_no_step(job: Job, whole, disk, monkeypatch, capsys):
    """Checkpoints of two steps have no room, which is said each time; the work goes on."""
    run, ballast = disk / "run", disk / "ballast"
    job.at_step(monkeypatch, 2, lambda: fill(ballast))
    job.at_step(monkeypatch, 4, ballast.unlink)
    assert main(job.words(run)) == 0
    said = capsys.readouterr()
    assert said.out.count("warning: no checkpoint at step") == 2 and "No space left" in said.out
    assert_room_is_told(said.out, job.last(run).path)
    assert job.last(run).step == STEPS and rows(run)
    assert (run / "genotype.json").read_text() == (whole / "genotype.json").read_text()


def test_fault_12_a_disk_that_stays_full_is_one_line_and_resume_goes_on(job: Job, whole, disk, monkeypatch, capsys):
    run, ballast = disk / "run", disk / "ballast"
    job.at_step(monkeypatch, 4, lambda: fill(ballast))
    assert main(job.words(run)) == 4
    error = capsys.readouterr().err.splitlines()
    assert f"cannot save the checkpoint of step {STEPS}" in one_line(error[-1] + "\n") and "No space" in error[-1]
    assert_room_is_told(error[-1], job.last(run).path)
    assert not any("Traceback" in line for line in error)
    assert job.last(run).step == 3
    monkeypatch.undo()
    ballast.unlink()
    assert job.resume(run) == 0
    job.assert_same(run, whole)


def test_fault_13_rows_that_have_no_room_are_lost_with_one_warning(job: Job, whole, disk, monkeypatch, capsys):
    run, ballast = disk / "run", disk / "ballast"

    def full() -> None:
        fill(ballast)
        # The rows' last page takes no more either.
        with open(run / "metrics.jsonl", "ab") as file:
            file.write(b"\n" * (-file.tell() % PAGE_BYTES))

    job.at_step(monkeypatch, 3, full)
    job.at_step(monkeypatch, 5, ballast.unlink)
    assert main(job.words(run)) == 0
    assert capsys.readouterr().err.count("the work goes on") == 1
    kept = [row["step"] for row in rows(run) if row["kind"] == "step"]
    assert kept[:2] == [1, 2] and kept[-2:] == [5, 6] and 3 not in kept
    assert all(row in rows(whole) for row in rows(run))


def test_fault_14_a_place_that_takes_no_files(job: Job, whole, tmp_path, capsys):
    with mounted(tmp_path / "read-only", "ro") as place:
        assert main(job.words(place / "run")) == 4
    assert "cannot write to the run folder" in one_line(capsys.readouterr().err)


def test_fault_15_a_training_stops_before_what_is_not_finite(runs, tmp_path, monkeypatch, capsys):
    job, run = JOBS["train"], tmp_path / "run"
    original = job.owner.passes

    def poisoned(self, images, labels, number, epoch):
        return original(self, images * float("nan") if number == 3 else images, labels, number, epoch)

    monkeypatch.setattr(job.owner, "passes", poisoned)
    assert main(job.words(run)) == 7
    error = one_line(capsys.readouterr().err)
    assert "not finite" in error and "step 4" in error
    assert job.last(run).step == 3
    monkeypatch.undo()
    assert job.resume(run) == 0
    job.assert_same(run, runs["train"])


def raises(error: Exception):
    def act() -> None:
        raise error

    return act


def test_fault_22_memory_that_never_suffices_ends_in_one_line(job: Job, tmp_path, monkeypatch, capsys):
    """A search has tried every setting of its ladder first, a training every number of micro-batches."""
    run = tmp_path / "run"
    job.at_step(monkeypatch, 1, raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")))
    assert main(job.words(run)) == 10
    error = one_line(capsys.readouterr().err)
    if job.verb == "search":
        assert "not even K=1" in error and all(word in error for word in ("asked", "free", "needed"))
    else:
        assert "memory ran out in micro-batches of 2 images" in error and "fewer channels" in error
    assert not [row for row in rows(run) if row["kind"] == "step"]


def test_fault_28_a_gpu_that_failed_is_one_line_and_the_last_checkpoint_stays(
    job: Job, whole, tmp_path, monkeypatch, capsys
):
    """The error is CUDA's; that nothing more is asked of the GPU can be seen on one only."""
    run, calls = tmp_path / "run", []
    job.at_step(
        monkeypatch, 3, raises(RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel"))
    )
    job.at_step(monkeypatch, 3, lambda: calls.append(3))
    assert main(job.words(run)) == 9
    error = one_line(capsys.readouterr().err)
    assert "illegal memory access" in error and "start the process anew" in error
    assert calls == [3] and job.last(run).step == 2
    monkeypatch.undo()
    assert job.resume(run) == 0
    job.assert_same(run, whole)


def test_fault_45_every_operation_is_a_deterministic_one(job: Job, whole, tmp_path):
    torch.use_deterministic_algorithms(True)
    try:
        assert main(job.words(tmp_path / "run")) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(rows(tmp_path / "run")) == STEPS + 2
    job.assert_same(tmp_path / "run", whole)
