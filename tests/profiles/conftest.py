"""The memory sampler's library, built for the tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


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
