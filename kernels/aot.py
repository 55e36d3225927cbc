"""Compile every launch that ships for every GPU, with no driver, and hold the result to `budgets.json`.

python -m msgdas.kernels.aot [--arch sm_90 ...] [--cells darts-16 ...] [--kernels stage_kernel ...] [--update] [--json]

Exit code 1 if a kernel uses stack or exceeds its budget; one line for each breach.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import functools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import triton
from triton.compiler import ASTSource

from . import budgets
from .catalogue import CELLS
from .machine_code import Facts, facts_of
from .recording import TARGETS, Launch, launch_table

PROCESSES = 2
# In budgets: the most that any form of a kernel may use, and the least it shall have.
AT_MOST = ("registers", "shared_bytes", "instructions", "per_tap", "per_normalised_tap")
AT_LEAST = ("wide_share", "matrix")
# Compilers of other versions differ a little; a breach is more than this above the budget.
TOLERANCE = 1.1


@dataclass(frozen=True, slots=True)
class Result:
    """One compiled form: which, and its facts, or the compiler's first complaint."""

    kernel: str
    arch: str
    cell: str
    dtype: str
    facts: Facts | None
    error: str | None


@functools.cache
def _table(arch: str, cells: tuple[str, ...]) -> list[Launch]:
    return launch_table(arch, cells)


def compile_one(arch: str, cells: tuple[str, ...], number: int) -> Result:
    """Compile entry `number` of the launch table."""
    launch = _table(arch, cells)[number]
    places = {name: (place,) for place, name in enumerate(launch.signature)}
    source = ASTSource(
        fn=launch.function,
        signature=launch.signature,
        constexprs={places[name]: value for name, value in launch.constants.items()},
        attrs=launch.hints,
    )
    who = (launch.kernel, arch, launch.cell, launch.dtype)
    try:
        compiled = triton.compile(source, target=TARGETS[arch], options=launch.options)
    except (triton.CompilationError, triton.runtime.errors.PTXASError, RuntimeError) as error:
        return Result(*who, None, str(error).strip().splitlines()[-1])
    return Result(*who, facts_of(compiled, launch.constants, launch.options["num_warps"]), None)


def _start_worker(cache: str) -> None:
    triton.knobs.cache.dir = cache
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    # A worker waits for ever for work from a parent that was killed.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def compile_all(archs: Sequence[str], cells: tuple[str, ...], kernels: Sequence[str] = ()) -> list[Result]:
    """Compile the launch table in two processes; `kernels`: only these, if any are named."""
    jobs = [
        (arch, cells, number)
        for arch in archs
        for number, launch in enumerate(_table(arch, cells))
        if not kernels or launch.kernel in kernels
    ]
    with (
        tempfile.TemporaryDirectory(prefix="msgdas-aot-") as cache,
        concurrent.futures.ProcessPoolExecutor(
            PROCESSES, multiprocessing.get_context("spawn"), _start_worker, (cache,)
        ) as pool,
    ):
        futures = [pool.submit(compile_one, *job) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def summarise(results: Iterable[Result]) -> dict[str, dict[str, dict[str, Any]]]:
    """kernel -> arch -> the most or least of each figure over its forms.

    Wide loads and matrix instructions count for bf16 maps only: fp32 products are exact, not on tensor cores.
    """
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        facts = result.facts
        if facts is None:
            continue
        own = summary.setdefault(result.kernel, {}).setdefault(result.arch, {"forms": 0, "spill_bytes": 0})
        own["forms"] += 1
        own["spill_bytes"] = max(own["spill_bytes"], facts.spill_bytes)
        if result.dtype == "float64":
            continue
        for name in AT_MOST:
            value = getattr(facts, name)
            if value is not None:
                own[name] = max(own.get(name, 0), round(value, 2))
        if result.dtype == "bfloat16":
            share = facts.wide_loads / max(facts.loads, 1)
            for name, value in (("wide_share", round(share, 2)), ("matrix", facts.matrix)):
                own[name] = min(own.get(name, value), value)
    return summary


def breaches(results: Sequence[Result], allowed_by: dict[str, Any]) -> list[str]:
    """One line for everything that is not as it must be."""
    lines = []
    for result in results:
        form = f"{result.kernel} on {result.arch} ({result.cell})"
        if result.facts is None:
            lines.append(f"{form}: does not compile: {result.error}")
        elif result.facts.spill_bytes > 0:
            lines.append(f"{form}: spill_bytes {result.facts.spill_bytes}, allowed 0")
        lines += [f"{form}: {line}" for line in _above_limits(result, allowed_by["limits"])]
    for kernel, archs in summarise(results).items():
        for arch, found in archs.items():
            budget = allowed_by["kernels"].get(kernel, {}).get(arch)
            if budget is None:
                lines.append(f"{kernel} on {arch}: no budget; run with --update")
                continue
            for name in AT_MOST:
                allowed = budget.get(name, 0) * TOLERANCE
                if found.get(name, 0) > allowed:
                    lines.append(f"{kernel} on {arch}: {name} {found[name]}, allowed {allowed:g}")
            for name in AT_LEAST:
                allowed = budget.get(name, 0) / TOLERANCE
                if name in found and found[name] < allowed:
                    lines.append(f"{kernel} on {arch}: {name} {found[name]}, at least {allowed:g}")
    return lines


def _above_limits(result: Result, limits: dict[str, Any]) -> list[str]:
    """Figures that a target names, form by form; fp64 is for tests only."""
    if result.facts is None or result.dtype == "float64":
        return []
    lines = []
    own = dict(limits.get(result.kernel, {}).get(result.arch, {}))
    own |= own.pop("cells", {}).get(result.cell, {})
    for name, most in own.items():
        value = getattr(result.facts, name)
        if value is not None and round(value, 2) > most:
            lines.append(f"{name} {value:.2f}, allowed {most:g}")
    return lines


def update_budgets(summary: dict[str, dict[str, dict[str, Any]]], *, whole: bool) -> None:
    """Take the summary as the new budgets; a part of the table only ever loosens them."""
    kept = budgets.read()
    for kernel, archs in summary.items():
        for arch, found in archs.items():
            own = {name: found[name] for name in (*AT_MOST, *AT_LEAST) if name in found}
            old = {} if whole else kept["kernels"].get(kernel, {}).get(arch, {})
            for name, value in old.items():
                own[name] = (max if name in AT_MOST else min)(own.get(name, value), value)
            kept["kernels"].setdefault(kernel, {})[arch] = own
    kept["made"] = {"date": datetime.date.today().isoformat(), "triton": triton.__version__}
    budgets.write(kept)


def _print_table(summary: dict[str, dict[str, dict[str, Any]]]) -> None:
    columns = ("forms", "registers", "spill_bytes", "shared_bytes", "instructions", "wide_share", "matrix")
    heads = ("forms", "regs", "stack", "shared", "instr", "128-bit", "matrix", "per tap", "normalised")
    print(f"{'kernel':22}{'arch':>8}" + "".join(f"{head:>11}" for head in heads))
    for kernel, archs in summary.items():
        for arch, found in archs.items():
            cells = [found.get(name, "") for name in (*columns, "per_tap", "per_normalised_tap")]
            print(f"{kernel:22}{arch:>8}" + "".join(f"{cell!s:>11}" for cell in cells))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m msgdas.kernels.aot", description=__doc__.split("\n")[0])
    parser.add_argument("--arch", nargs="+", choices=list(TARGETS), default=list(TARGETS), help="default: all")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS), help="default: all")
    parser.add_argument("--kernels", nargs="+", default=[], help="only these kernels")
    parser.add_argument("--update", action="store_true", help="write what was found to budgets.json")
    parser.add_argument("--json", action="store_true", help="every form's facts as JSON Lines")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print, compare."""
    arguments = _parser().parse_args(argv)
    cells = tuple(arguments.cells)
    results = compile_all(arguments.arch, cells, arguments.kernels)
    summary = summarise(results)
    if arguments.json:
        for result in results:
            print(json.dumps(asdict(result)))
    else:
        _print_table(summary)
    if arguments.update:
        update_budgets(summary, whole=cells == tuple(CELLS))
    lines = breaches(results, budgets.read())
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    if triton.knobs.runtime.interpret:
        # The mode is fixed when Triton is imported: a process that interprets cannot compile.
        plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        sys.exit(subprocess.run([sys.executable, "-m", "msgdas.kernels.aot", *sys.argv[1:]], env=plain).returncode)
    sys.exit(main())
