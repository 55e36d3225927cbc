"""Checkpoints that were cut, changed, replaced or forged, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from msgdas.engine.cli import main
from msgdas.engine.run import checkpoint, checkpoint_files
from msgdas.engine.run.checkpoint_files import digest_of
from msgdas.engine.settings.recipes import demo

from .jobs import JOBS, Job, back_to, one_line

# At each place of a save a child of a small process kills itself, so that nothing of Python's own end runs.
PLACES = ("torch.save", "json.dump", "os.replace 1", "os.replace 2", "shutil.rmtree")
SAVER = """
    import os, shutil, signal, sys
    from pathlib import Path
    from msgdas.engine.run import checkpoint
    from msgdas.engine.settings.recipes import demo

    def save(run, value):
        checkpoint.save(run, 10, {"value": value, "rest": "x" * 100_000}, demo(keep=1))

    for number, place in enumerate(sys.argv[2:]):
        run = Path(sys.argv[1]) / str(number)
        run.mkdir()
        save(run, "old")
        child = os.fork()
        if not child:
            (module, name), left = place.split()[0].split("."), [int((place.split() + ["1"])[1])]
            module = getattr(checkpoint, module)
            real = getattr(module, name)
            def kill(*arguments, **keywords):
                left[0] -= 1
                if left[0]:
                    return real(*arguments, **keywords)
                if name == "save":
                    arguments[1].write(b"half")
                    arguments[1].flush()
                os.kill(os.getpid(), signal.SIGKILL)
            setattr(module, name, kill)
            save(run, "new")
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, place
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A folder with a run per place; each had one checkpoint, and was killed while another of its step was written."""
    root = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, "-c", textwrap.dedent(SAVER), str(root), *PLACES], check=True)
    return root


@pytest.mark.parametrize("place", PLACES)
def test_fault_01_kill_9_while_a_checkpoint_is_replaced(killed, place):
    run = killed / str(PLACES.index(place))
    assert len(list((run / "checkpoints").iterdir())) == 2
    checkpoint.clean(run)
    found = checkpoint.load(run, demo(keep=1))
    assert found.state["value"] == ("new" if place == "shutil.rmtree" else "old") and not found.warnings
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["step-0000000010"]


KILLED_IN_STEP_4 = """
import os, signal
from msgdas.engine.run import checkpoint
real = os.fsync
def fsync(descriptor):
    if ".tmp-0000000004" in os.readlink(f"/proc/self/fd/{descriptor}"):
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = fsync
"""


def test_fault_01_a_training_killed_while_saving_goes_on(runs, tmp_path):
    job, run = JOBS["train"], tmp_path / "run"
    process = job.process(job.words(run), KILLED_IN_STEP_4)
    process.communicate(timeout=120)
    assert process.returncode == -9
    assert (run / "checkpoints" / ".tmp-0000000004").is_dir() and job.last(run).step == 3
    assert job.resume(run) == 0
    job.assert_same(run, runs["train"])
    assert not list((run / "checkpoints").glob(".*"))


def assert_passed_over(job: Job, whole: Path, newest: Path, capsys) -> None:
    """The damaged checkpoint of step 5 is named, and the run ends as one that nothing happened to."""
    run = newest.parents[1]
    assert job.resume(run) == 0
    said = capsys.readouterr()
    assert f"warning: checkpoint {newest} is passed over" in said.err
    assert "resumed after step 4 of 6" in said.out
    job.assert_same(run, whole)


def test_fault_05_resume_passes_a_truncated_checkpoint_over(job: Job, whole, tmp_path, capsys):
    newest = back_to(whole, tmp_path / "run", 5)
    os.truncate(newest / "state.pt", (newest / "state.pt").stat().st_size // 2)
    assert_passed_over(job, whole, newest, capsys)


def test_fault_06_resume_passes_a_flipped_bit_over(job: Job, whole, tmp_path, capsys):
    newest = back_to(whole, tmp_path / "run", 5)
    data = bytearray((newest / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "state.pt").write_bytes(data)
    assert_passed_over(job, whole, newest, capsys)


def test_fault_07_resume_passes_a_checkpoint_without_a_manifest_over(job: Job, whole, tmp_path, capsys):
    newest = back_to(whole, tmp_path / "run", 5)
    (newest / "manifest.json").unlink()
    assert_passed_over(job, whole, newest, capsys)


def test_fault_07_show_lists_what_is_damaged_and_no_other(runs, tmp_path, capsys):
    for name, whole in runs.items():
        assert main(["show", str(whole), "--out", str(tmp_path / name)]) == 0
        assert "checkpoint step-" not in capsys.readouterr().out
        run = back_to(whole, tmp_path / name / "run", 6).parents[1]
        folders = {step: run / "checkpoints" / f"step-{step:010d}" for step in range(1, 7)}
        (folders[2] / "manifest.json").unlink()
        (folders[3] / "manifest.json").write_text("")
        os.truncate(folders[4] / "state.pt", 100)
        data = bytearray((folders[5] / "state.pt").read_bytes())
        data[len(data) // 2] ^= 1
        (folders[5] / "state.pt").write_bytes(data)
        (folders[6] / "state.pt").unlink()
        (run / "checkpoints" / ".tmp-0000000007").mkdir()
        assert main(["show", str(run)]) == 0
        text = capsys.readouterr().out
        said = [line for line in text.splitlines() if line.startswith("checkpoint ")]
        assert [line.split()[1] for line in said] == [f"step-{step:010d}" for step in (7, 6, 5, 4, 3, 2)]
        whys = ("half written", "state.pt cannot", "SHA-256 differ", "size or", "manifest.json cannot", "manifest.json")
        assert all(why in line for why, line in zip(whys, said, strict=True))
        assert main(["show", str(run), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["damaged_checkpoints"] == said


def test_fault_07_a_large_state_is_not_read_to_be_shown(runs, tmp_path, monkeypatch):
    newest = back_to(runs["train"], tmp_path / "run", 1)
    monkeypatch.setattr(checkpoint_files, "MAX_DIGESTED_BYTES", (newest / "state.pt").stat().st_size - 1)
    monkeypatch.setattr(checkpoint_files, "digest_of", lambda path: "read")
    assert checkpoint_files.damaged(tmp_path / "run") == []
    os.truncate(newest / "state.pt", (newest / "state.pt").stat().st_size - 1)
    monkeypatch.setattr(checkpoint_files, "MAX_DIGESTED_BYTES", 0)
    (said,) = checkpoint_files.damaged(tmp_path / "run")
    assert "size or" in said


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_fault_08_no_command_runs_what_a_checkpoint_holds(runs, tmp_path, capsys):
    trace = tmp_path / "executed"
    for name, path in runs.items():
        newest = back_to(path, tmp_path / name, 1)
        torch.save({"x": Bomb(trace)}, newest / "state.pt")
        manifest = json.loads((newest / "manifest.json").read_text())
        manifest |= {
            "bytes": (newest / "state.pt").stat().st_size,
            "sha256": digest_of(newest / "state.pt"),
        }
        (newest / "manifest.json").write_text(json.dumps(manifest))
    run = str(tmp_path / "train")
    for words in (
        ["search", "--resume", str(tmp_path / "search")],
        ["train", "--resume", run],
        ["eval", run],
        ["export", run, "--out", str(tmp_path / "out")],
    ):
        assert main(words) == 5, words
        assert "was not run" in one_line(capsys.readouterr().err)
    assert not trace.exists()


def test_fault_11_resume_with_another_setting_is_refused(job: Job, whole, tmp_path, capsys):
    back_to(whole, run := tmp_path / "run", 3)
    assert main([job.verb, "--resume", str(run), "--batch", "4"]) == 2
    assert "--resume RUN alone" in one_line(capsys.readouterr().err)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"batch": 4, "lr": 0.5}))
    assert job.resume(run) == 5
    error = one_line(capsys.readouterr().err)
    assert f"batch {config['batch']} instead of 4" in error and "instead of 0.5" in error


def test_fault_36_a_training_refuses_other_images(tmp_path, capsys):
    from PIL import Image

    tree, run = tmp_path / "tree", tmp_path / "run"
    for part, count in (("train", 9), ("val", 2)):
        for name in ("cat", "dog"):
            (tree / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (30, 30), (number * 12, 50, 60)).save(tree / part / name / f"{number}.png")
    words = JOBS["train"].words(run, "--data", f"imagefolder:{tree}", "--limit", "0", "--epochs", "1")
    assert main(words) == 0
    (tree / "train" / "dog" / "8.png").unlink()
    assert JOBS["train"].resume(run) == 5
    assert "other images" in one_line(capsys.readouterr().err)
