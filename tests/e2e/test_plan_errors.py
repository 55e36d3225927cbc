"""Bad devices and budgets through the command line, in a process beside a fake driver: one line and a way out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

GIB_BYTES = 1 << 30
CODES = Path(__file__).resolve().parents[2] / "docs" / "runs.md"
CLI = "from msgdas.engine.cli import run; run()"
SMALL = ["--space=nasbench201", "--channels=4", "--layers=3", "--image=16", "--batch=8", "--device=cpu"]
NEIGHBOUR = f"at 0 0 {20 * GIB_BYTES}\nproc 0 4242 {20 * GIB_BYTES}"
ONE = f"gpu GPU-aa {24 * GIB_BYTES} 8.9 NVIDIA GeForce RTX 4090\n"
TWO = ONE + f"gpu GPU-bb {80 * GIB_BYTES} 9.0 NVIDIA H100 80GB HBM3\n"
MIG = f"gpu GPU-cc {40 * GIB_BYTES} 8.0 NVIDIA A100-SXM4-40GB\nmig 0\n"
PART = f"instance 0 0 MIG-11 {5 * GIB_BYTES} {GIB_BYTES} 7 0 NVIDIA A100-SXM4-40GB MIG 1g.5gb\n"
HERE = ["plan", "--gpu", "auto"]


@pytest.fixture
def msgdas(beside_nvml, tmp_path, monkeypatch):
    """Runs the command line in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(script: str | None, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return beside_nvml([sys.executable, "-c", CLI, *words], script, **variables)

    return run


def check(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == "" and done.stderr.startswith("msgdas: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(part in done.stderr for part in said), done.stderr
    assert re.search(r"\. Next: \S", done.stderr), done.stderr
    assert f"\n| {code} |" in CODES.read_text()
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, ("libnvidia-ml.so.1 is missing", "--gpu rtx-4090", "--budget 24GiB")),
        ("init 18", ("different versions", "restart: the driver was updated")),
        ("init 4", ("no permission", "container")),
        (ONE + "fail 0 15", ("GPU 0 of NVML was left out", "fallen off the bus", "restart")),
        (MIG, ("MIG is on and has no instances", "nvidia-smi mig -cgi 0 -C")),
    ],
    ids=["missing", "mismatch", "permission", "lost", "bare MIG"],
)
def test_fault_26_a_gpu_that_cannot_be_asked(msgdas, script, said):
    check(msgdas(script, *HERE), 9, *said)


def test_a_gpu_that_is_hidden(msgdas):
    done = msgdas(TWO, *HERE, CUDA_VISIBLE_DEVICES="GPU-zz")
    check(done, 9, "no single GPU is 'GPU-zz'", "set CUDA_VISIBLE_DEVICES to one of GPU-aa, GPU-bb")


@pytest.mark.parametrize(
    ("script", "budget", "said"),
    [
        (ONE + NEIGHBOUR, "80%", ("others hold 20.00 GiB", "free 4.00 GiB")),
        (ONE, "25GiB", ("above the device's 24.00 GiB", "asked 25.00 GiB, free 24.00 GiB")),
        (TWO + "fail 0 15", "100GiB", ("above the device's 80.00 GiB",)),
        (MIG + PART, "10GiB", ("above the device's 5.00 GiB", "free 4.00 GiB")),
    ],
    ids=["taken", "too large", "beside a lost GPU", "MIG"],
)
def test_fault_24_a_budget_that_the_gpu_does_not_have(msgdas, script, budget, said):
    check(msgdas(script, *HERE, "--budget", budget), 10, *said, "--budget auto")


def test_fault_24_a_budget_below_what_the_smallest_step_takes(msgdas):
    check(
        msgdas(ONE, *HERE, *SMALL, "--methods", "msg", "--budget", "600MiB"), 10,
        "not even K=1", "asked 600.00 MiB, free 570.00 MiB, needed ", "--budget",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["plan", "--gpu", "rtx-4091"], 9, ("got 'rtx-4091'", "try rtx-4090")),
        (["plan", "--gpu", "RTX 3090 super"], 9, ("try rtx-3090,",)),
        (["plan", "--budget", "10G"], 9, ("without a clear unit", "write 10GiB (1024 based) or 10GB (1000 based)")),
        (["plan", "--budget", "10 parsecs"], 9, ("without a clear unit", "GiB, GB", "--budget auto")),
        (["search", "--budget", "10"], 9, ("without a clear unit", "write 10GiB")),
        (["search", "--budget", "120%"], 9, ("at most 100%", "--budget 80%")),
        (["search", *SMALL, "--budget", "900TiB"], 10, ("above the device's", "asked 921600.00 GiB", "--budget auto")),
        (["search", "--device", "cuda", "--budget", "1GiB"], 2, ("no CUDA device", "--device cpu")),
    ],
)
def test_a_request_that_cannot_be_met_whatever_nvml_says(msgdas, words, code, said):
    check(msgdas("init 18", *words), code, *said)


def test_fault_26_without_a_gpu_the_plan_is_for_the_processor_and_says_why(msgdas, tmp_path):
    words = [*SMALL, "--methods", "msg", "--k", "1", "--policy", "min", "--out", str(tmp_path / "plan")]
    done = msgdas("init 18", "plan", *words)
    assert done.returncode == 0, done.stderr
    assert "no GPU here (NVML: the loaded driver and its library are of different versions)" in done.stdout
    assert "--gpu NAME plans for another device" in done.stdout


def test_doctor_says_it_too(msgdas):
    done = msgdas("init 18", "doctor")
    assert done.returncode == 0 and "different versions" in done.stdout and "Traceback" not in done.stderr
