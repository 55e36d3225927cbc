"""The budget while a search runs: a neighbour that takes memory, an allocator without any, the end of the ladder."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from msgdas.engine.cli import main
from msgdas.engine.learning import steps
from msgdas.engine.learning.rung import Rung
from msgdas.engine.memory import probe as probes
from msgdas.engine.memory.guard import Forecast
from msgdas.engine.run import checkpoint
from msgdas.engine.run.rundir import read_metrics
from msgdas.engine.search.searcher import resume, search
from msgdas.engine.settings.recipes import demo
from msgdas.profiles.errors import BudgetError
from msgdas.profiles.room import Room

SIZES = {
    "space": "nasbench201", "channels": 4, "layers": 3, "image": 28, "batch": 16, "epochs": 3, "warmup": 1,
    "limit": 48, "eval_images": 16, "checkpoint_every": 1, "keep": 100, "threads": 1, "policy": "all",
    "impl": "reference",
}  # fmt: skip
CHANGE = 5
# Nine steps; at the beginning of the fifth a neighbour takes 30 % of the memory of the only GPU.
NEIGHBOUR = """
import contextlib, mmap
from pathlib import Path
from msgdas.engine.settings.recipes import demo
from msgdas.engine.search.searcher import search
from msgdas.profiles.room import gpu_room
sizes, total = json.loads(sys.argv[1]), int(sys.argv[2])
readings = 0
with open(sys.argv[3], "r+b") as file, mmap.mmap(file.fileno(), 64) as live, gpu_room("GPU-x") as nvml:
    def read_room():
        global readings
        readings += 1
        # One at the start, one before the probe.
        if readings == 2 + int(sys.argv[5]):
            live[:8] = (total * 3 // 10).to_bytes(8, sys.byteorder)
        return nvml()
    with contextlib.redirect_stdout(sys.stderr):
        search(demo(**sizes), out=Path(sys.argv[4]), read_room=read_room)
print(json.dumps(readings))
"""
# In step 5 the process may take a little more than it has: torch's own allocator then raises.
CAPPED = """
import resource, sys
from pathlib import Path
from msgdas.engine.learning import steps
from msgdas.engine.cli import main
original = steps.Learner.weight_step
def capped(self, images, labels, moment):
    if moment.step == 4 and self.rung.accumulate == 1:
        lines = Path("/proc/self/status").read_text().splitlines()
        data = next(int(line.split()[1]) for line in lines if line.startswith("VmData:")) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (data + int(sys.argv[1]),) * 2)
    return original(self, images, labels, moment)
steps.Learner.weight_step = capped
sys.exit(main(sys.argv[2:]))
"""

# The probe, in whose process there is next to no memory for the step that it measures.
STARVED_PROBE = """
import resource
from pathlib import Path
from msgdas.engine.memory import probe
measure = probe.measure_dearest
def starved(*order):
    lines = Path("/proc/self/status").read_text().splitlines()
    data = next(int(line.split()[1]) for line in lines if line.startswith("VmData:")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (data + (1 << 20),) * 2)
    return measure(*order)
probe.measure_dearest = starved
probe.main()
"""


def words_of(sizes: dict) -> list[str]:
    return [word for name, value in sizes.items() for word in ("--set", f"{name}={value}")]


def rows_of(run: Path, kind: str) -> list[dict]:
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == kind]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def forecast_of(sizes: dict) -> Forecast:
    return Forecast(demo(**sizes), classes=10, impl="reference", cuda=False, graph=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The same search with all the memory it wants."""
    path = tmp_path_factory.mktemp("search") / "whole"
    search(demo(**SIZES), out=path)
    return path


def test_fault_21_a_probe_that_runs_out_of_memory_is_told_and_the_search_goes_on(whole, tmp_path, monkeypatch, capsys):
    run, real, starved = tmp_path / "run", subprocess.run, []

    def started(command, **options):
        if command[1:] != ["-m", probes.__name__]:
            return real(command, **options)
        starved.append(real([command[0], "-c", STARVED_PROBE], **options))
        return starved[-1]

    monkeypatch.setattr(subprocess, "run", started)
    assert main(["search", "demo", *words_of(SIZES | {"budget": "4GiB"}), "--out", str(run)]) == 0
    (child,) = starved
    assert child.returncode and "memory" in child.stderr.splitlines()[-1].lower()
    said = [line for line in capsys.readouterr().out.splitlines() if "the probe measured nothing: " in line]
    assert len(said) == 1 and "memory" in said[0].lower()
    kept = json.loads((run / "probe.json").read_text())
    assert kept["measured_bytes"] is None and kept["ratio"] == 1 and kept["predicted_bytes"] > 0
    assert not rows_of(run, "event") and rows_of(run, "step") == rows_of(whole, "step")


def test_fault_23_a_neighbour_takes_a_third_in_mid_run(whole, in_child, tmp_path):
    forecast = forecast_of(SIZES)
    first = Rung.of(forecast.config)
    total_bytes = int(1.25 * forecast.bytes(first))
    sizes = SIZES | {"budget": "90%"}
    live, run = tmp_path / "live", tmp_path / "run"
    live.write_bytes(bytes(64))
    script = f"gpu GPU-x {total_bytes} 9.0 X\nlive {live}"
    assert in_child(NEIGHBOUR, script, json.dumps(sizes), str(total_bytes), str(live), str(run), str(CHANGE)) >= 9
    probe = json.loads((run / "probe.json").read_text())
    assert probe["measured_bytes"] == pytest.approx(forecast.bytes(first), rel=0.005) and not probe["missed"]
    (event,) = rows_of(run, "event")
    assert event["what"] == "stepped down" and event["step"] == CHANGE and "2 micro-batches" in event["detail"]
    ours, theirs = rows_of(run, "step"), rows_of(whole, "step")
    assert [row["step"] for row in ours] == list(range(1, 10))
    assert ours[: CHANGE - 1] == theirs[: CHANGE - 1] and ours[CHANGE - 1] != theirs[CHANGE - 1]
    found = checkpoint.load(run, demo(**sizes)).state["learner"]
    rung = Rung.from_dict(found["rung"])
    assert rung == Rung(2, first.policies, first.k)
    left_bytes = total_bytes - total_bytes * 3 // 10
    assert forecast.bytes(rung) <= left_bytes < forecast.bytes(first)
    after = [row["peak_bytes"] for row in rows_of(run, "memory") if row["step"] > CHANGE]
    assert after and max(after) <= left_bytes


def test_fault_22_memory_that_runs_out_costs_no_step(tmp_path, monkeypatch):
    """torch's CPU allocator raises for real, in a process that may not grow; the same step goes on in two parts."""
    run, reference, whole = tmp_path / "run", tmp_path / "reference", tmp_path / "whole"
    # Large enough that code generated for new shapes does not count.
    sizes = SIZES | {"space": "darts", "channels": 8, "batch": 64, "limit": 192, "epochs": 2}
    search(demo(**sizes), out=whole)
    peak = max(row["peak_bytes"] for row in rows_of(whole, "memory") if row["phase"] == "weight")
    # Without these glibc keeps what it was given, and a process would not need to grow.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
    done = subprocess.run(
        [sys.executable, "-c", CAPPED, str(int(0.65 * peak)), "search", "demo", *words_of(sizes), "--out", str(run)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = rows_of(run, "event")
    assert events and {event["step"] for event in events} == {CHANGE}
    for event in events:
        assert "memory ran out" in event["detail"] and event["detail"] in done.stdout
    assert "you tried to allocate" in events[0]["detail"]
    ours = checkpoint.load(run, demo(**sizes)).state["learner"]
    rung = Rung.from_dict(ours["rung"])
    assert 2 <= rung.accumulate < 64 and rung.policies == ("all",) * 3

    original = steps.Learner.weight_step

    def by_hand(self, images, labels, moment):
        if moment.step == CHANGE - 1:
            self.stand_on(rung)
        return original(self, images, labels, moment)

    monkeypatch.setattr(steps.Learner, "weight_step", by_hand)
    search(demo(**sizes), out=reference)
    assert rows_of(run, "step") == rows_of(reference, "step") != rows_of(whole, "step")
    assert rows_of(run, "step")[: CHANGE - 1] == rows_of(whole, "step")[: CHANGE - 1]
    theirs = checkpoint.load(reference, demo(**sizes)).state["learner"]
    assert all(torch.equal(value, theirs["net"][name]) for name, value in ours["net"].items())
    assert all(torch.equal(value, theirs["sampler"][name]) for name, value in ours["sampler"].items())


def failing_once(learner_step, at: int, error: Exception):
    """The step, which fails once at its end, after it has changed all that it may."""
    left = [error]

    def take(self, images, labels, moment):
        if moment.step != at or not left:
            return learner_step(self, images, labels, moment)
        learner_step(self, images, labels, moment)
        raise left.pop()

    return take


def test_an_alpha_step_that_failed_at_its_end_is_undone(tmp_path, monkeypatch):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    sizes = SIZES | {"epochs": 2}
    monkeypatch.setattr(steps.Learner, "alpha_step", failing_once(steps.Learner.alpha_step, 4, error))
    search(demo(**sizes), out=tmp_path / "run")
    monkeypatch.undo()
    original = steps.Learner.alpha_step

    def by_hand(self, images, labels, moment):
        if moment.step == 4:
            self.stand_on(Rung(2, self.net.policies, self.sampler.k))
        return original(self, images, labels, moment)

    monkeypatch.setattr(steps.Learner, "alpha_step", by_hand)
    search(demo(**sizes), out=tmp_path / "reference")
    assert rows_of(tmp_path / "run", "step") == rows_of(tmp_path / "reference", "step")
    assert len(rows_of(tmp_path / "run", "event")) == 1


def test_another_error_is_not_taken_for_memory(tmp_path, monkeypatch):
    error = RuntimeError("shapes differ")
    monkeypatch.setattr(steps.Learner, "weight_step", failing_once(steps.Learner.weight_step, 1, error))
    with pytest.raises(RuntimeError, match="shapes differ"):
        search(demo(**SIZES), out=tmp_path / "run")


def test_a_resumed_search_stays_where_it_stood(tmp_path, monkeypatch):
    run = tmp_path / "run"
    patched = failing_once(steps.Learner.alpha_step, 4, torch.OutOfMemoryError("out of memory"))
    monkeypatch.setattr(steps.Learner, "alpha_step", patched)
    search(demo(**SIZES), out=run)
    expected = rows_of(run, "step")
    monkeypatch.undo()
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > 6:
            shutil.rmtree(folder)
    resume(run)
    assert rows_of(run, "step") == expected
    assert [row["what"] for row in rows_of(run, "event")] == ["stepped down", "resumed"]


def test_fault_23_where_nothing_fits_the_three_numbers_are_told_and_resume_goes_on(whole, tmp_path, capsys):
    forecast = forecast_of(SIZES)
    enough = Room(2 * forecast.bytes(Rung.of(forecast.config)), 2 * forecast.bytes(Rung.of(forecast.config)), "test")
    readings = 0

    def read_room() -> Room:
        nonlocal readings
        readings += 1
        return enough if readings <= 4 else Room(enough.total_bytes, 1000, "test")

    run = tmp_path / "run"
    with pytest.raises(BudgetError, match="not even K=1, policy min, 16 micro-batches fits") as caught:
        search(demo(**SIZES, budget="auto"), out=run, read_room=read_room)
    assert "asked" in str(caught.value) and "free" in str(caught.value) and "needed" in str(caught.value)
    needed, free = caught.value.needed_bytes, caught.value.free_bytes
    assert needed == pytest.approx(forecast.bytes(Rung(16, ("min",) * 3, 1)), rel=0.005) and needed > free
    assert checkpoint.load(run, demo(**SIZES, budget="auto")).step == 2
    resume(run, read_room=lambda: enough)
    assert rows_of(run, "step") == rows_of(whole, "step")


def test_a_budget_is_held_against_the_k_of_the_schedule(tmp_path, monkeypatch):
    """All that the first stage needs fits; the second is only entered one step down."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = SIZES | {"mode": "union", "k_schedule": "1,4,1", "k": 4}
    forecast = forecast_of(sizes)
    first = Rung.of(forecast.config)
    small_bytes, large_bytes = (forecast.bytes(dataclasses.replace(first, k=k)) for k in (1, 4))
    assert large_bytes > 1.2 * small_bytes
    budget_bytes = (small_bytes + large_bytes) // 2
    # The probe takes the dearest step of the whole search and corrects to no less than was predicted.
    search(demo(**sizes, budget=f"{budget_bytes}B"), out=tmp_path / "run")
    events = [(row["step"], row["what"]) for row in rows_of(tmp_path / "run", "event")]
    assert events == [(4, "K of the schedule"), (4, "stepped down"), (7, "K of the schedule")]
    assert [row["step"] for row in rows_of(tmp_path / "run", "step")] == list(range(1, 10))


@pytest.mark.parametrize(
    ("budget", "code", "words"),
    [("1TiB", 10, "asked 1024.00 GiB, free"), ("10", 9, "without a clear unit"), ("1KiB", 10, "needed")],
)
def test_a_budget_that_cannot_be_kept_is_one_line(tmp_path, capsys, budget, code, words):
    assert main(["search", "demo", *words_of(SIZES), "--budget", budget, "--out", str(tmp_path / "run")]) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_the_ladder_is_predicted_to_fall():
    forecast = forecast_of(SIZES)
    rung, sizes = Rung.of(forecast.config), []
    while rung is not None:
        sizes.append(forecast.bytes(rung))
        rung = rung.lower(16, 1)
    assert all(after <= 1.05 * before for before, after in itertools.pairwise(sizes))
    assert sizes[-1] < 0.2 * sizes[0]
