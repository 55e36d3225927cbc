"""What torchrun's environment says, how a batch is shared out, and what two processes tell each other."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from msgdas.engine.errors import ConfigError, EngineError, FollowedError, RanksError
from msgdas.engine.learning.rung import Rung
from msgdas.engine.run.dist import Ranks, share_of
from msgdas.engine.settings.place import Place
from msgdas.engine.settings.recipes import demo

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"} | {
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


def test_a_process_without_torchrun_is_alone():
    assert Place.of({}) == Place() and Place.of({"RANK": "3"}) == Place()
    assert Place.of(TORCHRUN) == Place(1, 2, 1, 2)


@pytest.mark.parametrize("change", [{"RANK": "2"}, {"WORLD_SIZE": "two"}, {"LOCAL_RANK": "5"}, {"RANK": "-1"}])
def test_an_environment_that_is_not_torchruns_is_refused(change):
    with pytest.raises(ConfigError, match=r"torchrun.*Next: torchrun"):
        Place.of(TORCHRUN | change)


def test_an_environment_without_a_meeting_place_is_refused():
    with pytest.raises(ConfigError, match="no MASTER_PORT"):
        Place.of({name: text for name, text in TORCHRUN.items() if name != "MASTER_PORT"})


def test_each_process_takes_its_part_of_a_batch():
    assert share_of(demo(batch=32), 1) == demo(batch=32)
    assert share_of(demo(batch=32, accumulate=8), 4) == demo(batch=8, accumulate=2)
    assert share_of(demo(batch=32, accumulate=1), 4) == demo(batch=8)


@pytest.mark.parametrize(("batch", "world", "next"), [(9, 2, "--batch 8"), (2, 2, "--batch 4"), (4, 8, "--batch 16")])
def test_fault_43_a_batch_that_cannot_be_shared_out_is_refused(batch, world, next):
    with pytest.raises(ConfigError, match=f"batch {batch}, {world} processes.*{next}"):
        share_of(demo(batch=batch), world)


def test_a_rung_is_shared_out_and_comes_back():
    whole = Rung(8, ("min",), 2)
    assert whole.share(4) == Rung(2, ("min",), 2) and whole.share(4).over(4) == whole
    assert Rung(1, ("min",), 2).share(2).over(2) == Rung(2, ("min",), 2)


def _talk(rank: int, port: int) -> None:
    """One of two processes: every kind of meeting, and what came of it."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    found: dict[str, Any] = {}
    with Ranks(Place(rank, 2, rank, 2), timeout_s=120) as ranks:
        rows = torch.tensor([[1.0, 1.0], [0.0, 0.0], [3.0, 3.0]]) * (rank + 1)
        whole, scalar = torch.full((2,), 10.0 * (rank + 1)), torch.tensor(float(rank), dtype=torch.float64)
        exchange = ranks.exchange([rows, None, whole, scalar], {0: torch.tensor([1.0, 0.0, 1.0]).view(3, 1)})
        found["bytes"] = exchange.bytes
        exchange.average()
        found["averages"] = rows.tolist(), whole.tolist(), scalar.item()
        found["numbers"] = ranks.every("a test", (rank, 7)), ranks.most("a test", rank), ranks.total("a test", (0.5,))
        found["shared"] = ranks.share("a test", lambda: {"rank": rank})
        for name, act in (("memory", _no_memory), ("failure", _fail), ("both", _fail), ("equal", None)):
            try:
                with ranks.together(name) as meeting:
                    meeting.equal = rank
                    if act is not None and (rank == 1 or name == "both"):
                        act()
            except (EngineError, RuntimeError) as error:
                found[name] = type(error).__name__, str(error)
        try:
            ranks.most(f"place {rank}", 0)
        except RanksError as error:
            found["places"] = str(error)
    print(repr(found))


def _no_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def _fail() -> None:
    raise ConfigError("no good")


@pytest.fixture(scope="module")
def answers() -> list[dict[str, Any]]:
    """What the two processes found, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__]
    processes = [
        subprocess.Popen([*command, str(rank), str(port)], stdout=subprocess.PIPE, text=True) for rank in range(2)
    ]
    said = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [ast.literal_eval(text) for text in said]


def test_sampled_rows_alone_travel_and_all_ranks_have_the_mean(answers):
    for found in answers:
        assert found["averages"] == ([[1.5, 1.5], [0.0, 0.0], [4.5, 4.5]], [15.0, 15.0], 0.5)
        assert found["bytes"] == (2 * 2 + 2) * 4 + 8
        assert found["numbers"] == ([0, 7, 1, 7], 1, [1.0])
        assert found["shared"] == {"rank": 0}


def test_every_rank_learns_what_became_of_the_others(answers):
    first, second = answers
    assert first["memory"] == ("PeerMemoryError", "process 1 ran out of memory")
    assert second["memory"] == ("OutOfMemoryError", "CUDA out of memory.")
    assert first["failure"] == (FollowedError.__name__, "process 1 stopped in failure")
    assert second["failure"] == ("ConfigError", "no good")


def test_of_two_that_fail_the_first_speaks(answers):
    assert [found["both"] for found in answers] == [("ConfigError", "no good"), ("FollowedError", "no good")]


def test_fault_44_ranks_that_differ_or_are_elsewhere_are_named(answers):
    for found in answers:
        name, text = found["equal"]
        assert name == "RanksError" and "process 1 unlike process 0" in text
        assert "process 1 not where process 0 is" in found["places"]


if __name__ == "__main__":
    _talk(int(sys.argv[1]), int(sys.argv[2]))
