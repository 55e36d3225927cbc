"""`msgdas profile`: steps of its own, a search that runs, a process, and whoever is not there."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from msgdas.engine.cli import main
from msgdas.engine.run.rundir import RunFolder, read_metrics
from msgdas.engine.settings.recipes import demo

SMALL = [
    "--set",
    "channels=4",
    "--set",
    "layers=3",
    "--set",
    "batch=8",
    "--set",
    "threads=1",
    "--set",
    "impl=reference",
]
# Takes 64 MiB after a while, gives them back, and waits for its end.
PROCESS = """
import sys, time
print("up", flush=True)
sys.stdin.readline()
kept = b"x" * (64 << 20)
time.sleep(0.3)
del kept
time.sleep(60)
"""
ON_GPU = """
from pathlib import Path
from msgdas.engine.memory.profiling import profile_process
found = profile_process(int(sys.argv[1]), 0.4, Path(sys.argv[2])).timeline
print(json.dumps([found["source"], found["peak_bytes"]]))
"""


def test_steps_of_a_recipe(tmp_path, capsys):
    assert main(["profile", "demo", *SMALL, "--steps", "2", "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "samples/s achieved, largest gap" in text and "peak of live tensors" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"timeline.json", "timeline.svg", "timeline.png"}
    found = json.loads((tmp_path / "out" / "timeline.json").read_text())
    names = [name for name, _, _ in found["phases"]]
    assert names.count("alpha draw") == names.count("W draw") == 2 and names.count("optimizer") == 4
    for name, phase in found["by_phase"].items():
        assert f"  {name}" in text and phase["largest_gap_ms"] > 0


def test_json_is_the_timeline(tmp_path, capsys):
    assert main(["profile", *SMALL, "--steps", "1", "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "timeline.json").read_text())


def test_a_process_is_seen_until_it_ends(tmp_path, capsys):
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def poke() -> None:
        time.sleep(0.5)
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(1)
        process.kill()
        process.communicate()

    process.stdout.readline()
    poker = threading.Thread(target=poke)
    poker.start()
    words = ["--pid", str(process.pid), "--seconds", "60", "--out", str(tmp_path), "--json"]
    assert main(["profile", *words]) == 0
    poker.join()
    found = json.loads(capsys.readouterr().out)
    assert found["source"] == f"process {process.pid}"
    assert found["peak_bytes"] - found["bytes"][0] > 60 << 20
    assert found["times_ms"][-1] < 50_000


def test_a_process_that_computes_on_a_gpu_is_seen_there(in_child, tmp_path):
    own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        script = f"gpu GPU-a {1 << 40} 9.0 X\ngpu GPU-b {1 << 40} 9.0 X\nat 1 0 7000000\nproc 1 {own.pid} 7000000"
        assert in_child(ON_GPU, script, str(own.pid), str(tmp_path)) == ["NVML GPU-b", 7000000]
    finally:
        own.kill()
        own.wait()


def test_a_running_search_is_seen_step_by_step(tmp_path, capsys):
    run = tmp_path / "run"
    words = [*SMALL, "--set", "epochs=200", "--set", "limit=64", "--set", "eval_images=8"]
    search = subprocess.Popen(
        [sys.executable, "-c", "import sys; from msgdas.engine.cli import main; sys.exit(main())", "search", "demo",
         *words, "--out", str(run)], stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not any(row["kind"] == "step" for row in read_metrics(run / "metrics.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert main(["profile", "--run", str(run), "--steps", "3", "--out", str(tmp_path / "out"), "--json"]) == 0
    finally:
        search.kill()
        search.wait()
    found = json.loads(capsys.readouterr().out)
    names = [name for name, _, _ in found["phases"]]
    assert found["source"] == f"process {search.pid}"
    assert 3 <= len(names) <= 4 and all(name.startswith("step ") for name in names)
    assert main(["profile", "--run", str(run), "--out", str(tmp_path / "out")]) == 9
    assert "no search runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--pid", "999999999"], 9, "no process 999999999"),
        (["--run", "nowhere"], 4, "no run folder"),
        (["demo", "--pid", "1"], 2, "one thing"),
        (["--pid", "1", "--set", "k=2"], 2, "one thing"),
        (["--steps", "0"], 2, "length"),
        (["--set", "k=99"], 2, "got 99; allowed 1 to 8"),
        (["unknown"], 2, "unknown recipe"),
    ],
)
def test_what_cannot_be_profiled_is_one_line(tmp_path, monkeypatch, capsys, words, code, told):
    monkeypatch.chdir(tmp_path)
    assert main(["profile", *words]) == code
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["profile", *SMALL, "--steps", "1", "--out", str(tmp_path / "file" / "out")]) == 9
    assert "cannot write into" in capsys.readouterr().err


def test_a_lock_of_another_machine_is_not_attached_to(tmp_path, capsys):
    run = RunFolder.create(tmp_path / "run", demo(), {})
    (run.path / "LOCK").write_text("process 1 on elsewhere\n")
    assert main(["profile", "--run", str(run.path), "--out", str(Path(tmp_path) / "out")]) == 9
    assert "elsewhere" in capsys.readouterr().err
