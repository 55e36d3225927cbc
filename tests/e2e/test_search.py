"""Searches from the command line, whole: files, resume from every step, signals in every loop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from msgdas.engine.cli import main
from msgdas.engine.learning import steps
from msgdas.engine.run import checkpoint
from msgdas.engine.run.rundir import read_metrics
from msgdas.engine.search.searcher import resume, search
from msgdas.engine.settings.recipes import demo

TINY = {
    "channels": 4, "layers": 3, "image": 28, "batch": 8, "epochs": 3, "warmup": 1, "limit": 24, "eval_images": 16,
    "checkpoint_every": 1, "keep": 100, "threads": 1, "teacher_start": 0.0,
}  # fmt: skip
FLAGS = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]


def without_times(run: Path) -> list[dict]:
    """The rows without what two identical searches may differ in: times, and whether they were resumed."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] != "event"]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def final_state(run: Path) -> dict:
    found = checkpoint.load(run, demo(**TINY))
    assert found is not None
    return found.state["learner"]


def flat(state, prefix=""):
    if isinstance(state, dict):
        for key, value in state.items():
            yield from flat(value, f"{prefix}.{key}")
    elif isinstance(state, (list, tuple)):
        for key, value in enumerate(state):
            yield from flat(value, f"{prefix}.{key}")
    else:
        yield prefix, state


def assert_same(run: Path, other: Path) -> None:
    assert without_times(run) == without_times(other)
    assert (run / "genotype.json").read_text() == (other / "genotype.json").read_text()
    ours, theirs = dict(flat(final_state(run))), dict(flat(final_state(other)))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        same = torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
        assert same, name


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted search with a checkpoint after each of its nine steps."""
    path = tmp_path_factory.mktemp("search") / "whole"
    search(demo(**TINY), out=path)
    return path


def test_a_search_leaves_everything_behind(whole):
    names = {path.name for path in whole.iterdir()}
    assert {
        "config.json", "environment.json", "metrics.jsonl", "genotype.json", "report.html", "cells.svg", "cells.png",
        "checkpoints", "tb",
    } <= names  # fmt: skip
    rows = read_metrics(whole / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, 10))
    assert [row["alpha_loss"] is None for row in rows if row["kind"] == "step"] == [True] * 3 + [False] * 6
    assert len([row for row in rows if row["kind"] == "epoch"]) == 3
    assert {row["phase"] for row in rows if row["kind"] == "memory"} == {"alpha", "weight"}
    page = (whole / "report.html").read_text()
    assert "<svg" in page and "reconstructs" in page


@pytest.mark.parametrize("step", range(1, 9))
def test_resume_from_every_step_is_bit_for_bit(whole, tmp_path, step):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    for name in ("genotype.json", "report.html"):
        (run / name).unlink()
    resume(run)
    assert_same(run, whole)


def test_k_follows_its_schedule_through_a_resume(tmp_path):
    config = demo(**TINY, k_schedule="1,4,2")
    search(config, out=tmp_path / "whole")
    events = [row for row in read_metrics(tmp_path / "whole" / "metrics.jsonl") if row["kind"] == "event"]
    assert [(row["step"], row["detail"]) for row in events] == [(4, "K=4 instead of 1"), (7, "K=2 instead of 4")]
    for step in (3, 5):
        run = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole", run)
        for folder in (run / "checkpoints").iterdir():
            if int(folder.name.removeprefix("step-")) > step:
                shutil.rmtree(folder)
        resume(run)
        assert without_times(run) == without_times(tmp_path / "whole")


def test_another_seed_differs(whole, tmp_path):
    search(demo(**TINY, seed=1), out=tmp_path / "run")
    assert without_times(tmp_path / "run") != without_times(whole)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["warm-up", "alpha", "evaluation"])
def test_fault_02_a_signal_in_any_loop_saves_and_resume_goes_on(whole, tmp_path, signum, moment):
    """The search is stopped for real, in a process of its own, once its metrics show that the loop runs."""
    run = tmp_path / "run"
    arguments = [sys.executable, "-c", "from msgdas.engine.cli import run; run()", "search", "demo", *FLAGS]
    process = subprocess.Popen(
        [*arguments, "--out", str(run)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wanted = {"warm-up": 1, "alpha": 5, "evaluation": 3}[moment]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        rows = [row for row in read_metrics(run / "metrics.jsonl") if row.get("kind") == "step"]
        if len(rows) >= wanted:
            process.send_signal(signum)
            break
        time.sleep(0.005)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 128 + signum, error
    assert error.count("\n") == 1 and f"msgdas search --resume {run}" in error
    assert main(["search", "--resume", str(run)]) == 0
    events = [row for row in read_metrics(run / "metrics.jsonl") if row.get("kind") == "event"]
    assert [row["what"] for row in events] == ["resumed"]
    assert_same(run, whole)


def test_fault_01_kill_9_and_resume(whole, tmp_path):
    run = tmp_path / "run"
    program = "import sys; from msgdas.engine.cli import run; run()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "search", "demo", *FLAGS, "--out", str(run)], stdout=subprocess.DEVNULL
    )
    while process.poll() is None and len(read_metrics(run / "metrics.jsonl")) < 5:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert main(["search", "--resume", str(run)]) == 0
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "step"] == list(range(1, 10))
    assert (run / "genotype.json").read_text() == (whole / "genotype.json").read_text()


def test_a_finished_search_resumes_to_itself(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    assert main(["search", "--resume", str(run)]) == 0
    assert_same(run, whole)


def test_fault_15_nan_stops_before_the_step_and_keeps_the_checkpoint(tmp_path, monkeypatch, capsys):
    original = steps.Learner.weight_step

    def poisoned(self, images, labels, moment):
        return original(self, images * float("nan") if moment.step == 4 else images, labels, moment)

    monkeypatch.setattr(steps.Learner, "weight_step", poisoned)
    run = tmp_path / "run"
    assert main(["search", "demo", *FLAGS, "--out", str(run)]) == 7
    error = capsys.readouterr().err
    assert "W step 5 is not finite" in error
    dump = json.loads((run / "numerics-5.json").read_text())
    assert dump["step"] == 5 and len(dump["images"]) == 8
    assert checkpoint.load(run, demo(**TINY)).step == 4
    monkeypatch.undo()
    assert main(["search", "--resume", str(run)]) == 0


def test_bad_resumes(whole, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for folder in (run / "checkpoints").iterdir():
        os.truncate(folder / "state.pt", 100)
    assert main(["search", "--resume", str(run)]) == 5
    assert "no checkpoint" in capsys.readouterr().err
    assert main(["search", "demo", "--out", str(run)]) == 4
    assert "not empty" in capsys.readouterr().err
    assert (run / "genotype.json").exists()


def test_fault_12_full_disk_at_a_checkpoint_does_not_end_a_search(tmp_path, monkeypatch, capsys):
    original = checkpoint.save

    def full(run, step, state, config):
        if step == 5:
            raise OSError(28, "No space left on device")
        return original(run, step, state, config)

    monkeypatch.setattr(checkpoint, "save", full)
    assert main(["search", "demo", *FLAGS, "--out", str(tmp_path / "run")]) == 0
    assert "no checkpoint at step 5" in capsys.readouterr().out


def test_fault_36_other_images_are_refused_on_resume(tmp_path, capsys):
    from PIL import Image

    tree = tmp_path / "tree"
    for name in ("cat", "dog"):
        (tree / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (30, 30), (number * 12, 50, 60)).save(tree / name / f"{number}.png")
    run = tmp_path / "run"
    words = ["search", "demo", *FLAGS, "--data", f"imagefolder:{tree}", "--limit", "16", "--out", str(run)]
    assert main(words) == 0
    (tree / "dog" / "19.png").unlink()
    assert main(["search", "--resume", str(run)]) == 5
    assert "other images" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {"space": "nasbench201", "image": 16},
        {"method": "gdas"},
        {"method": "darts"},
        {"mode": "union", "teacher": "supernet", "gate": "recompute", "policy": "all"},
        {"assign": "shuffle", "teacher": "ema", "relaxation": "soft", "execution": "co-resident", "policy": "bn"},
        {"gate": "score", "dbi": "dropout", "policy": "nodes"},
        {"gate": "restricted", "policy": "autograd", "dtype": "float64"},
    ],
)
def test_every_setting_searches(tmp_path, options):
    small = {**TINY, "epochs": 2, "checkpoint_every": 0}
    result = search(demo(**{**small, **options}), out=tmp_path / "run")
    assert result.genotype.kinds == (("cell",) if options.get("space") else ("normal", "reduce"))
    assert result.peak_bytes > 0
