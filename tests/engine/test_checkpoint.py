"""Checkpoints under attack: kills, flipped bits, full disks, hostile files, other configurations."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from msgdas.engine.errors import CheckpointError
from msgdas.engine.run import checkpoint
from msgdas.engine.run.checkpoint_files import digest_of
from msgdas.engine.settings.recipes import demo

CONFIG = demo()


def state(value: float):
    return {"x": torch.full((100,), value), "plain": {"none": None, "list": [1, 2.5, "three"]}}


@pytest.fixture
def run(tmp_path):
    for step in (5, 10):
        checkpoint.save(tmp_path, step, state(step), CONFIG)
    return tmp_path


def newest(run):
    return run / "checkpoints" / "step-0000000010"


def test_round_trip(run):
    found = checkpoint.load(run, CONFIG)
    assert found.step == 10 and not found.warnings
    assert torch.equal(found.state["x"], torch.full((100,), 10.0))
    assert found.state["plain"] == state(0)["plain"]


def test_keeps_the_newest_by_number_not_by_name(tmp_path):
    for step in (2, 10, 9):
        checkpoint.save(tmp_path, step, state(step), demo(keep=2))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-0000000009", "step-0000000010"]


def test_none_where_nothing_was_saved(tmp_path):
    assert checkpoint.load(tmp_path, CONFIG) is None


def expect_fallback(run, reason):
    found = checkpoint.load(run, CONFIG)
    assert found.step == 5
    (warning,) = found.warnings
    assert "step-0000000010" in warning and reason in warning


def test_fault_05_truncated(run):
    path = newest(run) / "state.pt"
    os.truncate(path, path.stat().st_size // 2)
    expect_fallback(run, "size or SHA-256")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.95])
def test_fault_06_flipped_bit(run, place):
    path = newest(run) / "state.pt"
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(bytes(data))
    expect_fallback(run, "SHA-256")


def test_fault_07_empty_or_without_manifest(run):
    (newest(run) / "state.pt").write_bytes(b"")
    expect_fallback(run, "size")
    (newest(run) / "manifest.json").unlink()
    expect_fallback(run, "manifest.json cannot be read")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "1"}', "\x00"])
def test_fault_07_manifest_that_is_none(run, text):
    (newest(run) / "manifest.json").write_text(text)
    expect_fallback(run, "manifest.json")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("through_torch", [True, False])
def test_fault_08_hostile_pickle_is_refused_and_not_run(run, tmp_path, through_torch):
    trace = tmp_path / "executed"
    path = newest(run) / "state.pt"
    if through_torch:
        torch.save({"x": Bomb(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(trace), protocol=2))
    manifest = json.loads((newest(run) / "manifest.json").read_text())
    manifest |= {"bytes": path.stat().st_size, "sha256": digest_of(path)}
    (newest(run) / "manifest.json").write_text(json.dumps(manifest))
    expect_fallback(run, "was not run")
    assert not trace.exists()


def test_fault_09_other_configuration(run):
    with pytest.raises(CheckpointError, match=r"another configuration.*k 2 instead of 3.*seed 0 instead of 1"):
        checkpoint.load(run, demo(k=3, seed=1))
    assert checkpoint.load(run, demo(keep=7)).step == 10


def test_fault_10_newer_format(run):
    path = newest(run) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99, "version": "9.9"}))
    with pytest.raises(CheckpointError, match=r"newer format.*msgdas 9\.9"):
        checkpoint.load(run, CONFIG)


def test_fault_05_never_silently_from_scratch(run):
    for folder in (run / "checkpoints").iterdir():
        (folder / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* can be read.*step-0000000010.*step-0000000005"):
        checkpoint.load(run, CONFIG)


SAVER = """
    import sys, torch
    from pathlib import Path
    from msgdas.engine.run import checkpoint
    from msgdas.engine.settings.recipes import demo
    step = 100
    while True:
        step += 1
        checkpoint.save(Path(sys.argv[1]), step, {"x": torch.randn(1_000_000)}, demo())
        print(step, flush=True)
"""


def test_fault_01_kill_9_while_saving(tmp_path):
    for delay in (0.02, 0.05):
        saver = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVER), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert saver.stdout is not None
        saver.stdout.readline()
        time.sleep(delay)
        os.kill(saver.pid, signal.SIGKILL)
        done = [int(line) for line in saver.communicate()[0].split()]
        found = checkpoint.load(tmp_path, CONFIG)
        assert found.step >= max(done, default=101) and not found.warnings
    checkpoint.clean(tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


def test_fault_12_full_disk_keeps_the_previous_one(run):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(OSError):
            checkpoint.save(run, 15, state(15), CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert checkpoint.load(run, CONFIG).step == 10
    assert not list((run / "checkpoints").glob(".tmp-*"))
