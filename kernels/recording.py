"""The launch table: every compiled form of every kernel that ships, found by launching on tensors without data.

Triton itself derives the signature, the constants and the divisibility of a launch; it is told of a driver that
stands for the wanted GPU, and its cache hook takes down what it would compile. Nothing is compiled or run. This
needs a process in which Triton does not interpret.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from .catalogue import CELLS, launch_all

TARGETS = {
    **{f"sm_{number}": GPUTarget("cuda", number, 32) for number in (80, 86, 89, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")


@dataclass(frozen=True)
class Launch:
    """One form of a kernel.

    Attributes:
        kernel: its name.
        cell: the first cell of the catalogue that launches it.
        function: the `triton.jit` function.
        signature: type of every argument, `constexpr` for constants.
        constants: values of the constants, by name.
        hints: divisibility of the arguments, as Triton's compiler takes it.
        options: num_warps and its like, where they are set.
    """

    kernel: str
    cell: str
    function: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    hints: dict[Any, Any]
    options: dict[str, Any]

    @property
    def dtype(self) -> str:
        """Of the cell's maps."""
        return str(CELLS[self.cell].dtype).removeprefix("torch.")


class _AbsentGPU(DriverBase):  # type: ignore[misc]
    """Enough of a driver for Triton to specialise a launch."""

    def __init__(self, target: GPUTarget) -> None:
        super().__init__()
        self.target = target

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("there is no GPU to time anything on")

    def get_current_device(self) -> str:
        # Kernels keep one specialiser for each device.
        return str(self.target.arch)

    def get_current_stream(self, device: str) -> int:
        return 0


@contextlib.contextmanager
def _recording(target: GPUTarget, hook: Callable[..., bool]) -> Iterator[None]:
    before, triton.knobs.runtime.jit_cache_hook = triton.knobs.runtime.jit_cache_hook, hook
    driver.set_active(_AbsentGPU(target))
    try:
        yield
    finally:
        triton.knobs.runtime.jit_cache_hook = before


def launch_table(arch: str, cells: Iterable[str] = tuple(CELLS)) -> list[Launch]:
    """All different launches of the catalogue's cells on one architecture, in order."""
    assert not triton.knobs.runtime.interpret, "the interpreter specialises nothing"
    found: dict[tuple[str, str], Launch] = {}
    cell = ""

    def take_down(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        names = list(compile["signature"])
        options = json.loads(compile["specialization_data"])["options"]
        found.setdefault(
            (fn.name, key),
            Launch(
                fn.name.rpartition(".")[2], cell, fn.jit_function, dict(compile["signature"]),
                {names[place]: value for (place,), value in compile["constants"].items()},
                {place: hints for place, hints in compile["configs"][0].items() if hints},
                {name: options[name] for name in OPTIONS if options.get(name) is not None},
            ),
        )  # fmt: skip
        return True

    with _recording(TARGETS[arch], take_down):
        for cell in cells:
            launch_all(CELLS[cell], "meta")
    return list(found.values())
