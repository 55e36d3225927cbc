"""What counts as memory that ran out, and what the machine's memory is read from."""

from __future__ import annotations

import pytest
import torch
from msgdas.engine.supernet.exhausted import is_out_of_memory
from msgdas.profiles import room
from msgdas.profiles.room import host_room

ERRORS = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "Python": MemoryError("std::bad_alloc"),
    "CPU": RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    "driver": RuntimeError("CUDA error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "oneDNN": RuntimeError("could not create a primitive"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_memory_that_ran_out(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), None])
def test_other_errors(error):
    assert not is_out_of_memory(error)


def test_an_error_that_followed_from_it_counts():
    """A capture that memory ran out in ends with an error of its own."""
    with pytest.raises(RuntimeError) as caught:
        try:
            raise torch.OutOfMemoryError("out of memory")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    assert is_out_of_memory(caught.value)


def test_this_machine_has_some_memory():
    found = host_room()()
    assert 0 < found.free_bytes <= found.total_bytes


@pytest.mark.parametrize(
    ("line", "root", "limit", "used", "stat"),
    [
        ("0::/jobs/search", "", *room.NAMES_2),
        (
            "4:cpu,memory:/jobs/search",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_a_control_group_that_is_tighter_counts(tmp_path, monkeypatch, line, root, limit, used, stat):
    """That of the process, or one above it; file pages that the system takes back first count as free."""
    groups = tmp_path / "cgroup" / root
    (groups / "jobs" / "search").mkdir(parents=True)
    (tmp_path / "self").write_text(f"9:pids:/\n{line}\n")
    monkeypatch.setattr(room, "CGROUP", tmp_path / "self")
    monkeypatch.setattr(room, "CGROUP_MOUNT", tmp_path / "cgroup")
    (groups / "jobs" / "search" / limit).write_text("max\n")
    (groups / "jobs" / "search" / used).write_text("5\n")
    assert host_room()().source == "system memory"
    (groups / "jobs" / limit).write_text("4096000\n")
    (groups / "jobs" / used).write_text("4000000\n")
    assert host_room()() == room.Room(4096000, 96000, "control group")
    (groups / "jobs" / "memory.stat").write_text(f"anon 1\n{stat} 4000\n")
    assert host_room()() == room.Room(4096000, 100000, "control group")
    (groups / "jobs" / "search" / limit).write_text("2048000\n")
    (groups / "jobs" / "search" / used).write_text("2040000\n")
    assert host_room()() == room.Room(2048000, 8000, "control group")
