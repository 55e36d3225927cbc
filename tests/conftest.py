"""Fixtures shared by all tests, a fake NVML that the real pynvml loads in a child process, and Triton's mode."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Workers of pytest-xdist share the processors: a thread each, before torch starts its own.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import HealthCheck, settings

# A busy machine is no fault of what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Triton decides once, when it is first imported, whether it interprets kernels; many modules import it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent
# A GPU of the tester's own must not show through, nor may torch ask the fake.
HIDDEN = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PYTORCH_NVML_BASED_CUDA_CHECK")

InChild = Callable[..., Any]
Beside = Callable[..., subprocess.CompletedProcess[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also compile and count every kernel in every form")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measurements that tests keep are not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def full_tables(request: pytest.FixtureRequest) -> None:
    """Skips the test unless `--full` was given; it takes many minutes."""
    if not request.config.getoption("--full"):
        pytest.skip("many minutes: pytest --full")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets beside the repository; the test is skipped where it is missing."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data folder {folder}")
    return folder


@pytest.fixture(scope="session")
def compiler() -> str:
    """The C compiler's name; the test is skipped where there is none."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        pytest.skip("needs a C compiler to build the fake NVML")
    return found


@pytest.fixture(scope="session")
def fake_nvml(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libnvidia-ml.so.1 built from fake_nvml.c."""
    folder = tmp_path_factory.mktemp("fake_nvml")
    library, source = folder / "libnvidia-ml.so.1", ROOT / "tests" / "profiles" / "fake_nvml.c"
    command = [
        compiler,
        "-O1",
        "-Wall",
        "-Werror",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(source),
    ]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def beside_nvml(fake_nvml: Path, tmp_path: Path) -> Beside:
    """Runs a command beside a fake NVML that answers from a script; without a script there is no NVML at all."""

    def run(command: list[str], script: str | None, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name not in HIDDEN} | variables
        if script is not None:
            (tmp_path / "nvml.txt").write_text(script)
            environment |= {"LD_LIBRARY_PATH": str(fake_nvml), "FAKE_NVML_SCRIPT": str(tmp_path / "nvml.txt")}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def in_child(beside_nvml: Beside) -> InChild:
    """Runs Python code beside the fake NVML and returns the JSON that it prints.

    The code finds `json`, `sys` and `asdict` imported, and the arguments in `sys.argv[1:]`. Without a script there is
    no NVML at all.
    """

    def run(code: str, script: str | None = "", *arguments: str) -> Any:
        code = "import json, sys\nfrom dataclasses import asdict\n" + code
        done = beside_nvml([sys.executable, "-c", code, *arguments], script)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
