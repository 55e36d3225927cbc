"""Signals in every loop, two processes on one folder, readers that leave, odd places and small shared memory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from msgdas.engine.cli import main
from msgdas.engine.search import searcher
from msgdas.engine.training import trainer

from .jobs import JOBS, SEARCH, Job, flags, one_line, rows

LARGER = {"image": 64, "epochs": 1, "warmup": 0, "loader": "torch", "workers": 2}


def terminated(function):
    """The function, with a SIGTERM to this process before it."""

    def take(*arguments, **keywords):
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **keywords)

    return take


def assert_stops_and_goes_on(job: Job, run: Path, words: list[str], patch, capsys, other: Path) -> None:
    assert main(words) == 143
    assert f"msgdas {job.verb} --resume {run}" in one_line(capsys.readouterr().err)
    patch.undo()
    assert job.resume(run) == 0
    job.assert_same(run, other)


def test_fault_02_a_signal_while_a_network_is_judged(job: Job, whole, tmp_path, monkeypatch, capsys):
    """The step is done and saved; its epoch is judged again."""
    where = searcher if job.verb == "search" else trainer
    name = "evaluate" if job.verb == "search" else "score"
    monkeypatch.setattr(where, name, terminated(getattr(where, name)))
    run = tmp_path / "run"
    assert_stops_and_goes_on(job, run, job.words(run), monkeypatch, capsys, whole)


def test_fault_02_a_signal_while_cells_compete(tmp_path, monkeypatch, capsys):
    """The end of a random search: its cells are judged one after the other."""
    job, run = JOBS["search"], tmp_path / "run"
    words = ["search", "demo", *flags(SEARCH | {"k": 1, "epochs": 1, "warmup": 0}), "--method", "random"]
    words += ["--set", "candidates=3"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(searcher, "best_of", terminated(searcher.best_of))
    assert main([*words, "--out", str(run)]) == 143
    assert "--resume" in one_line(capsys.readouterr().err)
    assert not (run / "genotype.json").exists()
    monkeypatch.undo()
    assert job.resume(run) == 0
    assert rows(run) == rows(tmp_path / "whole")
    assert (run / "genotype.json").read_text() == (tmp_path / "whole" / "genotype.json").read_text()


def test_fault_02_a_signal_while_the_prediction_is_probed(runs, tmp_path, monkeypatch, capsys):
    """One step is taken and saved."""
    job, run = JOBS["search"], tmp_path / "run"
    words = job.words(run, "--set", "budget=auto")
    monkeypatch.setattr(searcher, "probed", terminated(searcher.probed))
    assert main(words) == 143
    assert "--resume" in one_line(capsys.readouterr().err)
    assert job.last(run).step == 1
    monkeypatch.undo()
    assert job.resume(run) == 0
    assert rows(run) == rows(runs["search"])


def test_fault_02_a_signal_while_profiling_leaves_no_file(tmp_path):
    out = tmp_path / "out"
    code = "import os, signal\nfrom msgdas.engine.memory import profiling\n" + (
        "profiling._written = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    process = JOBS["search"].process(["profile", "demo", *flags(SEARCH), "--out", str(out)], code)
    said, error = process.communicate(timeout=120)
    assert (process.returncode, said, error) == (-signal.SIGTERM, "", "")
    assert not out.exists()


TWICE = """
import os, signal
from msgdas.engine.run import checkpoint
real = checkpoint.torch.save
def save(state, file):
    if ".tmp-0000000003" in file.name:
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    real(state, file)
checkpoint.torch.save = save
"""


def test_fault_03_a_second_signal_ends_a_run_in_mid_save(job: Job, whole, tmp_path):
    run = tmp_path / "run"
    process = job.process(job.words(run), TWICE)
    _, error = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGTERM and error == ""
    assert job.last(run).step == 2
    assert job.resume(run) == 0
    job.assert_same(run, whole)


# Without torch: it starts at once.
HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.truncate(0)
file.write("process 4242 on elsewhere")
file.flush()
print(flush=True)
time.sleep(60)
"""


def test_fault_14_two_processes_on_one_run_folder(job: Job, whole, tmp_path, capsys):
    shutil.copytree(whole, run := tmp_path / "run")
    before = (run / "metrics.jsonl").read_bytes()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run / "LOCK")], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        assert job.resume(run) == 4
        assert "got process 4242 on elsewhere" in one_line(capsys.readouterr().err)
    finally:
        holder.kill()
        holder.communicate()
    assert main(job.words(run)) == 4
    assert "is not empty" in one_line(capsys.readouterr().err)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_fault_39_a_machine_with_little_shared_memory(tmp_path):
    """Images are read by threads, so nothing of theirs goes through /dev/shm."""
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for number in range(24):
            Image.effect_noise((80, 80), 60).convert("RGB").save(tmp_path / "tree" / name / f"{number}.jpg")
    run = tmp_path / "run"
    words = JOBS["search"].words(run, "--data", f"imagefolder:{tmp_path / 'tree'}", *flags(LARGER))
    code = (
        "import ctypes, subprocess, sys\n"
        "if ctypes.CDLL(None).unshare(0x20000): sys.exit(77)\n"
        "mount = 'mount --make-rprivate / && mount -t tmpfs -o size=64k none /dev/shm'\n"
        "if subprocess.run(mount, shell=True, capture_output=True).returncode: sys.exit(77)\n"
    )
    process = JOBS["search"].process(words, code)
    _, error = process.communicate(timeout=120)
    if process.returncode == 77:
        pytest.skip("needs the right to mount a file system")
    assert process.returncode == 0, error
    assert len([row for row in rows(run) if row["kind"] == "step"]) == 3


def test_fault_46_odd_names_locale_and_time_zone(runs, tmp_path):
    """A path with spaces and bytes that are no UTF-8, in the C locale, at the other end of the world."""
    job = JOBS["search"]
    run = tmp_path / os.fsdecode(b"a run \xff\xfe of \xc3\xa9t\xc3\xa9")
    odd = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Kiritimati"}
    process = job.process(job.words(run), env=os.environ | odd, errors="surrogateescape")
    said, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "derived cell" in said and "Traceback" not in error
    job.assert_same(run, runs["search"])
    show = job.process(["show", str(run)])
    said, error = show.communicate(timeout=120)
    assert (show.returncode, error) == (0, "") and "skip_connect" in said


def test_fault_49_a_reader_of_a_search_that_leaves(runs, tmp_path):
    job, run = JOBS["search"], tmp_path / "run"
    with job.process(job.words(run)) as process:
        assert process.stdout.readline().startswith("demo")
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (0, "")
    job.assert_same(run, runs["search"])
