"""`python -m msgdas.bench speed`: time of a search step, alpha and weights, against DARTS as its authors' code runs it.

All variants take turns in one process, so that a noisy machine slows them alike; medians are compared. What the
speed-up of K=2 is made of is printed apart: layout, gradients that are thrown away, sparsity, the engine and its
kernels. A step holds both optimizers, and neither evaluation nor input; the first round is not counted. Nothing is
timed where a method's gradients differ from plain autograd's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ..engine.errors import ConfigError
from ..engine.settings.method import METHODS
from . import command
from .gate import gates_of
from .results import Row, append, provenance, row
from .step import Step, build_step
from .variants import AUTOGRAD, BASE, Variant, of_methods, sampled, size_of, sweep, title

DEFAULT = ("darts", "pc-darts", "gdas", "msg")
LAYOUT, LAZY = "darts, channels_last, all gradients", "darts, channels_last, needed gradients"
DENSE = (
    Variant(LAYOUT, "darts", {"policy": "autograd", "gradients": "all"}),
    Variant(LAZY, "darts", {"policy": "autograd", "gradients": "lazy"}),
)
PLAIN = {policy: sampled(2, policy, impl="reference") for policy in ("all", "min")}
QUICK = {policy: sampled(2, policy) for policy in ("all", "min")}
SPARSE = sampled(2, AUTOGRAD).name
# (what it is, slower variant, quicker variant)
SHARES = (
    ("layout", BASE, LAYOUT),
    ("lazy gradients", LAYOUT, LAZY),
    ("sparsity, 2 operations of all", LAZY, SPARSE),
    *((f"engine, {policy}", SPARSE, PLAIN[policy].name) for policy in PLAIN),
    *((f"C++ kernels, {policy}", PLAIN[policy].name, QUICK[policy].name) for policy in PLAIN),
)
TWO_THREADS = tuple(one.name for one in QUICK.values())


def variants(methods: Sequence[str], space: str) -> Iterator[Variant]:
    """The lines of the table."""
    own = [
        *sweep(space), *(sampled(2, policy) for policy in ("nodes", "all")), *PLAIN.values(),
        sampled(2, "min", mode="subgraphs"),
    ]  # fmt: skip
    for one in of_methods(methods, own):
        yield one
        if one.name == BASE:
            yield from DENSE


def times_ms(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each variant's step, one of each per round, after one warm-up."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step.step()
            if number:
                found[name].append(1e3 * (time.perf_counter() - begin))
    return found


def two_threads(step: Step, rounds: int) -> list[float]:
    """How many times faster two threads are than one, in each round; their number is left as it was."""
    before = torch.get_num_threads()
    times: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds + 1):
        for threads in times:
            torch.set_num_threads(threads)
            begin = time.perf_counter()
            step.step()
            if number:
                times[threads].append(time.perf_counter() - begin)
    torch.set_num_threads(before)
    return [one / two for one, two in zip(times[1], times[2], strict=True)]


def steps_of(lines: Sequence[Variant], size: Mapping[str, Any]) -> dict[str, Step]:
    """A search for each line that can run here; the others are named on stderr."""
    steps = {}
    for line in lines:
        try:
            steps[line.name] = build_step(method=line.method, **size, **line.options)
        except ConfigError as error:
            print(f"left out: {line.name}: {error}", file=sys.stderr)
    return steps


def rows(lines: Sequence[Variant], size: Mapping[str, Any], rounds: int, shown: str) -> list[Row]:
    """A row for each line, all gates first; then how much two threads are faster, where there are two.

    Raises:
        GateError: for a method whose gradients are wrong; nothing is measured then.
    """
    gates = gates_of(lines, size["space"])
    steps = steps_of(lines, size)
    facts = provenance(shown, threads=torch.get_num_threads())
    by_name = {line.name: line for line in lines}
    found = []
    for name, values in times_ms(steps, rounds).items():
        line = by_name[name]
        config = {**size, "method": line.method, **line.options}
        found.append(row("speed", name, config, {"step_ms": values}, gates[line.key], facts))
    if len(os.sched_getaffinity(0)) > 1:
        for name in (name for name in TWO_THREADS if name in steps):
            line = by_name[name]
            figures = {"times_faster": two_threads(steps[name], rounds)}
            config = {**size, "method": line.method, **line.options, "threads": [1, 2]}
            found.append(row("speed", f"two threads against one: {name}", config, figures, gates[line.key], facts))
    return found


def table(found: Sequence[Row], size: Mapping[str, Any], threads: int) -> str:
    """What people read: times, shares of the speed-up, threads."""
    steps = {one["name"]: one["figures"]["step_ms"] for one in found if "step_ms" in one["figures"]}
    base = steps.get(BASE)
    lines = [
        f"{title(size)}, batch {size['batch']}, {threads} thread(s)",
        f"{'step (alpha and weights)':44} {'median ms':>10} {'min':>8} {'max':>8} {'images/s':>9} {'faster':>8}",
    ]
    for name, step in steps.items():
        faster = "" if base is None else f"{base['median'] / step['median']:.2f}x"
        lines.append(
            f"{name:44} {step['median']:10.0f} {step['min']:8.0f} {step['max']:8.0f} "
            f"{2e3 * size['batch'] / step['median']:9.1f} {faster:>8}"
        )
    lines.append("\nof which")
    lines += [f"{name:44} {factor:.2f}x" for name, factor in shares(found).items()]
    lines += [
        f"{one['name']:44} {one['figures']['times_faster']['median']:.2f}x" for one in found
        if "times_faster" in one["figures"]
    ]  # fmt: skip
    return "\n".join(lines)


def shares(found: Sequence[Row]) -> dict[str, float]:
    """Ratio of medians for each of SHARES whose two variants were timed."""
    medians = {one["name"]: one["figures"]["step_ms"]["median"] for one in found if "step_ms" in one["figures"]}
    return {
        name: medians[slow] / medians[quick] for name, slow, quick in SHARES if slow in medians and quick in medians
    }


def main(argv: Sequence[str]) -> int:
    made = command.parser("speed", __doc__ or "")
    command.add_methods(made, ",".join(name for name in DEFAULT if name in METHODS))
    command.add_sizes(made, batch=16, rounds=5, threads=1)
    made.add_argument("--only", default="", metavar="TEXT", help="lines whose name holds this text")
    arguments = made.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    size = {**size_of(arguments.space), "batch": arguments.batch}
    methods = command.methods_listed(arguments.methods)
    lines = [one for one in variants(methods, arguments.space) if arguments.only in one.name]
    found = rows(lines, size, arguments.rounds, command.again("speed", argv))
    print("\n".join(map(json.dumps, found)) if arguments.json else table(found, size, arguments.threads))
    if arguments.out is not None:
        append(arguments.out, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(command.answer(main))
