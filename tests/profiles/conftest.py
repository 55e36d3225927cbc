"""A fake NVML that the real pynvml loads in a child process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
# A GPU of the tester's own must not show through, nor may torch ask the fake.
HIDDEN = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PYTORCH_NVML_BASED_CUDA_CHECK")

InChild = Callable[..., Any]


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
    library = folder / "libnvidia-ml.so.1"
    command = [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(HERE / "fake_nvml.c")]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="session")
def native_sampler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sampler's library, built by its own CMakeLists.txt, or by the compiler alone where there is no CMake."""
    folder, source = tmp_path_factory.mktemp("sampler"), HERE.parents[1] / "profiles" / "native"
    cmake, compiler = shutil.which("cmake"), shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("needs a C++ compiler to build the sampler")
    library = folder / "_sampler.so"
    if cmake:
        (folder / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(test LANGUAGES NONE)\n"
            f"add_subdirectory({source.as_posix()} native)\n"
        )
        subprocess.run([cmake, "-DCMAKE_BUILD_TYPE=Release", "-S", folder, "-B", folder], check=True, stdout=sys.stderr)
        subprocess.run([cmake, "--build", folder], check=True, stdout=sys.stderr)
        return folder / "native" / "_sampler.so"
    command = [
        compiler,
        "-O2",
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-pthread",
        "-o",
        library,
        source / "sampler.cpp",
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return library


@pytest.fixture
def in_child(fake_nvml: Path, tmp_path: Path) -> InChild:
    """Runs Python code beside the fake NVML and returns the JSON that it prints.

    The code finds `json`, `sys` and `asdict` imported, and the arguments in `sys.argv[1:]`. Without a script there is
    no NVML at all.
    """

    def run(code: str, script: str | None = "", *arguments: str) -> Any:
        environment = {name: value for name, value in os.environ.items() if name not in HIDDEN}
        if script is not None:
            (tmp_path / "nvml.txt").write_text(script)
            environment |= {"LD_LIBRARY_PATH": str(fake_nvml), "FAKE_NVML_SCRIPT": str(tmp_path / "nvml.txt")}
        code = "import json, sys\nfrom dataclasses import asdict\n" + code
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
