"""Every byte that the kernels move, counted exactly by running them in Triton's interpreter.

python -m msgdas.kernels.ledger [--cells NAME ...] [--json]

Bytes are those of the lanes that are not masked out. The least that a launch must move, once each, are the different
bytes that it reads and the different bytes that it writes. What goes beyond is split in two: `again`, moved more
than once by one program, which its L1 cache serves (the taps of a convolution); and `shared`, read by several
programs, which the L2 cache serves (weights, statistics, rows between two tiles). No cache is simulated and nothing
is timed.

An access outside the tensors that a launch was given, an element that two programs write, or that one writes and
another reads, and an atomic operation are errors.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from . import budgets, interpreter, launch
from .catalogue import DARTS_CODES, NAS_BENCH_CODES, REDUCTION_CODES, Cell, launch_all

SECTOR_BITS, SECTOR_BYTES = 5, 32
Program = tuple[int, ...]

# Small cells in which every operation occurs, with the block sizes that ship.
CELLS = {
    cell.name: cell
    for cell in (
        Cell("darts-16", DARTS_CODES, 16, 16, torch.bfloat16, batch=1, drop=True),
        Cell("darts-16-reduction", REDUCTION_CODES, 16, 16, torch.bfloat16, batch=2, stride=2),
        Cell("darts-48", DARTS_CODES, 48, 7, torch.bfloat16, batch=2, drop=True),
        Cell("nas-bench-16", NAS_BENCH_CODES, 16, 16, torch.bfloat16, batch=1, planes=True, drop=True),
    )
}


class AccessError(Exception):
    """A kernel touched memory that it must not touch."""


@dataclass(slots=True)
class Traffic:
    """Of all launches of one kernel, in bytes where nothing else is said.

    Attributes:
        least: different bytes read plus different bytes written, of each launch.
        again: moved more than once by one program.
        shared: read by more than one program.
        sectors: 32-byte sectors that the accesses touch, each access by itself.
        flops: of matrix products.
    """

    launches: int = 0
    programs: int = 0
    loaded: int = 0
    stored: int = 0
    least: int = 0
    again: int = 0
    shared: int = 0
    sectors: int = 0
    flops: int = 0

    @property
    def moved(self) -> int:
        return self.loaded + self.stored

    @property
    def ratio(self) -> float:
        """Bytes moved over the least."""
        return self.moved / max(self.least, 1)

    @property
    def l1_share(self) -> float:
        """Of the bytes moved, those that a program had moved before."""
        return self.again / max(self.moved, 1)


class _Touched:
    """Addresses by program of one direction of a launch; all elements of one size in bytes apart."""

    def __init__(self) -> None:
        self.now: dict[int, list[np.ndarray]] = {}
        self.programs: list[tuple[int, int, np.ndarray]] = []

    def add(self, addresses: np.ndarray, size: int) -> None:
        self.now.setdefault(size, []).append(addresses)

    def close(self, program: int) -> int:
        """End a program; the different bytes that it touched."""
        total = 0
        for size, parts in self.now.items():
            different = np.unique(np.concatenate(parts))
            self.programs.append((program, size, different))
            total += size * len(different)
        self.now = {}
        return total

    def different_bytes(self) -> int:
        by_size: dict[int, list[np.ndarray]] = {}
        for _, size, addresses in self.programs:
            by_size.setdefault(size, []).append(addresses)
        return sum(size * len(np.unique(np.concatenate(parts))) for size, parts in by_size.items())


class Ledger:
    """Traffic by kernel; an observer for `interpreter.watched`."""

    def __init__(self) -> None:
        self.kernels: dict[str, Traffic] = {}
        self._name = ""
        self._starts = self._ends = np.zeros(0, np.uint64)
        self._program: Program | None = None
        self._loads, self._stores = _Touched(), _Touched()

    def begin(self, kernel: str, arguments: list[Any]) -> None:
        self._name = kernel
        self.kernels.setdefault(kernel, Traffic()).launches += 1
        spans = sorted(_span(argument) for argument in arguments if isinstance(argument, Tensor) and argument.numel())
        merged: list[tuple[int, int]] = []
        for start, end in spans:
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        self._starts = np.array([start for start, _ in merged], np.uint64)
        self._ends = np.array([end for _, end in merged], np.uint64)
        self._program, self._loads, self._stores = None, _Touched(), _Touched()

    def access(self, kind: str, addresses: np.ndarray, size_bytes: int, program: Program) -> None:
        if kind == "atomic":
            raise AccessError(f"{self._name}: an atomic operation; sums of floats would depend on the order")
        if program != self._program:
            self._close_program()
            self._program = program
        if addresses.size == 0:
            return
        self._check(kind, addresses, size_bytes, program)
        traffic = self.kernels[self._name]
        different = np.unique(addresses)
        traffic.sectors += SECTOR_BYTES * len(np.unique(different >> np.uint64(SECTOR_BITS)))
        if kind == "load":
            traffic.loaded += addresses.size * size_bytes
            self._loads.add(different, size_bytes)
        else:
            if len(different) < addresses.size:
                raise AccessError(f"{self._name}: one store writes an element twice in program {program}")
            traffic.stored += addresses.size * size_bytes
            self._stores.add(different, size_bytes)

    def product(self, flops: int) -> None:
        self.kernels[self._name].flops += flops

    def end(self) -> None:
        self._close_program()
        traffic = self.kernels[self._name]
        least = self._loads.different_bytes() + self._stores.different_bytes()
        own = sum(size * len(found) for side in (self._loads, self._stores) for _, size, found in side.programs)
        traffic.least += least
        traffic.shared += own - least
        traffic.again = traffic.moved - traffic.least - traffic.shared
        self._check_races()

    def _close_program(self) -> None:
        if self._program is None:
            return
        traffic = self.kernels[self._name]
        self._loads.close(traffic.programs)
        self._stores.close(traffic.programs)
        traffic.programs += 1
        self._program = None

    def _check(self, kind: str, addresses: np.ndarray, size_bytes: int, program: Program) -> None:
        place = np.searchsorted(self._starts, addresses, side="right")
        inside = place > 0
        inside[inside] = addresses[inside] + np.uint64(size_bytes) <= self._ends[place[inside] - 1]
        if not inside.all():
            lanes = f"{int((~inside).sum())} of {addresses.size} lanes"
            raise AccessError(f"{self._name}: {kind} outside the launch's tensors, {lanes}, in program {program}")

    def _check_races(self) -> None:
        if not self._stores.programs:
            return
        written = np.concatenate([addresses for _, _, addresses in self._stores.programs])
        owners = np.concatenate([np.full(len(found), number) for number, _, found in self._stores.programs])
        order = np.argsort(written, kind="stable")
        written, owners = written[order], owners[order]
        twice = int((written[1:] == written[:-1]).sum())
        if twice:
            raise AccessError(f"{self._name}: {twice} elements are written by more than one program")
        for number, _, addresses in self._loads.programs:
            place = np.minimum(np.searchsorted(written, addresses), len(written) - 1)
            foreign = int(((written[place] == addresses) & (owners[place] != number)).sum())
            if foreign:
                raise AccessError(f"{self._name}: {foreign} elements are read by a program while another writes them")


def _span(tensor: Tensor) -> tuple[int, int]:
    """First address of a view and the first behind its last element."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


@contextlib.contextmanager
def count() -> Iterator[Ledger]:
    """Count what the launches inside move, with the block sizes that ship; needs Triton's interpreter.

    Raises:
        AccessError: from the launch at fault; an access out of bounds is not carried out.
    """
    ledger = Ledger()
    with launch.as_shipped(), interpreter.watched(ledger):
        yield ledger


def breaches(kernels: dict[str, Traffic], most: dict[str, float]) -> list[str]:
    """One line for each kernel that moves more than `most` times the least."""
    return [
        f"{name}: moves {kernels[name].ratio:.3f} times the least, allowed {ratio:g}"
        for name, ratio in most.items()
        if name in kernels and kernels[name].ratio > ratio
    ]


def count_cell(name: str) -> dict[str, Traffic]:
    """Every kernel on one of `CELLS`."""
    interpreter.mend()
    with count() as ledger:
        launch_all(CELLS[name], "cpu")
    return ledger.kernels


def _print_table(name: str, kernels: dict[str, Traffic]) -> None:
    heads = ("launches", "programs", "moved", "least", "ratio", "L1 again", "L2 shared", "sectors", "MFLOP")
    print(f"{name:22}" + "".join(f"{head:>11}" for head in heads))
    for kernel, traffic in kernels.items():
        cells = (
            traffic.launches, traffic.programs, traffic.moved, traffic.least, f"{traffic.ratio:.3f}",
            f"{100 * traffic.l1_share:.1f} %", f"{100 * traffic.shared / max(traffic.moved, 1):.1f} %",
            f"{traffic.sectors / max(traffic.moved, 1):.2f}", f"{traffic.flops / 1e6:.1f}",
        )  # fmt: skip
        print(f"{kernel:22}" + "".join(f"{cell!s:>11}" for cell in cells))


def main(argv: Sequence[str] | None = None) -> int:
    """Count, print, compare with the bounds."""
    parser = argparse.ArgumentParser(prog="python -m msgdas.kernels.ledger", description=__doc__.split("\n")[0])
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS), help="default: all")
    parser.add_argument("--json", action="store_true", help="JSON Lines")
    arguments = parser.parse_args(argv)
    lines = []
    for name in arguments.cells:
        kernels = count_cell(name)
        if arguments.json:
            for kernel, traffic in kernels.items():
                found = {"moved": traffic.moved, "ratio": traffic.ratio, "l1_share": traffic.l1_share}
                print(json.dumps({"cell": name, "kernel": kernel, **asdict(traffic), **found}))
        else:
            _print_table(name, kernels)
        lines += [f"{name}: {line}" for line in breaches(kernels, budgets.read()["traffic"])]
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    if not triton.knobs.runtime.interpret:
        # The mode is fixed when Triton is imported.
        interpreting = {**os.environ, "TRITON_INTERPRET": "1"}
        command = [sys.executable, "-m", "msgdas.kernels.ledger", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=interpreting).returncode)
    sys.exit(main())
