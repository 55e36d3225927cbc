"""Triton is there and cannot build a kernel: before a search it is plain PyTorch, in a step it is one line."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from msgdas.engine.cli import main
from msgdas.engine.errors import ConfigError
from msgdas.engine.settings.recipes import demo
from msgdas.engine.supernet.implementation import resolve
from msgdas.kernels import backend, gumbel_topk
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from .jobs import JOBS, one_line, rows

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SOURCE = "y = tl.load(x)"
needs_interpreter = pytest.mark.skipif(not backend.interpreting(), reason="kernels are compiled here")


def in_triton(error: Exception) -> Callable[[], None]:
    """Raises it from a function of Triton's."""
    scope: dict[str, Any] = {"__name__": "triton.runtime.build", "error": error}
    exec("def build():\n    raise error", scope)
    return scope["build"]


def raised(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


FAILURES = {
    "source": (raised(CompilationError(SOURCE, ast.parse(SOURCE).body[0], "x is no pointer")), "x is no pointer"),
    "shared memory": (raised(OutOfResources(300_000, 232_448, "shared memory")), "shared memory"),
    "assembler": (raised(PTXASError("ptxas died")), "ptxas died"),
    "no compiler": (in_triton(RuntimeError("Failed to find C compiler. Set CC.\nmore")), "Failed to find C compiler"),
    "compiler": (in_triton(subprocess.CalledProcessError(1, ["gcc"])), "gcc"),
    "folder": (in_triton(PermissionError(13, "Permission denied", "/cache")), "Permission denied"),
}


class Kernel:
    """In place of a kernel: fails where it is launched, or before."""

    def __init__(self, fail: Callable[[], None]) -> None:
        self.fail = fail

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments, **options: self.fail()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with a GPU, as far as it is asked."""
    monkeypatch.setattr(backend, "interpreting", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    backend._why_not_built.cache_clear()
    yield
    backend._why_not_built.cache_clear()


@pytest.mark.parametrize(("fail", "said"), FAILURES.values(), ids=FAILURES)
def test_fault_29_auto_is_plain_pytorch_where_triton_builds_nothing(gpu, monkeypatch, fail, said):
    monkeypatch.setattr(backend, "build_one", lambda device: fail())
    impl, reason = resolve(demo(impl="auto"), CUDA)
    assert impl == "reference" and reason is not None and "\n" not in reason
    assert reason.startswith("cells run in plain PyTorch: Triton cannot build a kernel here") and said in reason
    with pytest.raises(ConfigError, match=r"Triton cannot build a kernel here.*Next: --impl auto"):
        resolve(demo(impl="triton"), CUDA)
    with pytest.raises(ConfigError, match=r"Triton cannot build a kernel here.*Next: --set dtype=float32"):
        resolve(demo(impl="auto", dtype="bfloat16"), CUDA)


def test_fault_29_a_small_kernel_is_built_once(gpu, monkeypatch):
    asked: list[torch.device] = []
    monkeypatch.setattr(backend, "build_one", asked.append)
    assert [resolve(demo(impl="auto"), CUDA) for _ in range(3)] == [("triton", None)] * 3
    assert asked == [CUDA]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
)  # fmt: skip
def test_fault_29_what_cuda_says_is_no_fault_of_the_compiler(gpu, monkeypatch, error):
    assert backend.build_failure(ValueError("no kernel")) is None
    fail = in_triton(error)
    monkeypatch.setattr(backend, "build_one", lambda device: fail())
    with pytest.raises(type(error)):
        resolve(demo(impl="auto"), CUDA)


@needs_interpreter
def test_fault_29_the_small_kernel_is_one_of_the_searchs(monkeypatch):
    launches: list[object] = []
    real = gumbel_topk.draw_kernel
    monkeypatch.setattr(gumbel_topk, "draw_kernel", Counted(real, launches))
    backend.build_one(CPU)
    assert launches == [(1,)]


class Counted:
    """A kernel whose grids are written down."""

    def __init__(self, kernel: Any, launches: list[object]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: object) -> Any:
        self.launches.append(grid)
        return self.kernel[grid]


@needs_interpreter
@pytest.mark.parametrize(("fail", "said"), FAILURES.values(), ids=FAILURES)
def test_fault_29_a_kernel_that_cannot_be_built_in_a_step_is_one_line(tmp_path, monkeypatch, capsys, fail, said):
    run, job = tmp_path / "run", JOBS["search"]
    monkeypatch.setattr(gumbel_topk, "draw_kernel", Kernel(fail))
    assert main([*job.words(run), "--impl", "triton"]) == 2
    error = one_line(capsys.readouterr().err)
    assert said in error and "Next: the same command with --impl reference" in error
    assert not rows(run)
    assert main([*job.words(tmp_path / "plain"), "--impl", "reference"]) == 0


def test_fault_29_an_error_of_ours_is_none_of_tritons(tmp_path, monkeypatch):
    """It comes through with its traceback."""
    job = JOBS["search"]
    job.at_step(monkeypatch, 1, raised(ValueError("a fault in msgdas")))
    with pytest.raises(ValueError, match="a fault in msgdas"):
        main(job.words(tmp_path / "run"))
