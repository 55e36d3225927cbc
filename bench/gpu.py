"""`python -m msgdas.bench gpu`: all that needs a GPU in one go, the kernels' gates on the device, then timings.

No timing is taken if a gate is red. Without a GPU it says so and leaves with exit code 8.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..engine.errors import NoDeviceError
from ..engine.report.figures import MIB
from . import command
from .gate import Gate
from .results import FOLDER, Row, behind, provenance, row, show_and_keep, warning
from .step import Step, build_step

GATES = ("tests/kernels", "tests/engine/test_fused_cell.py", "tests/bench/test_fused_step.py")
SIZES: dict[str, dict[str, Any]] = {
    "cifar": {"channels": 16, "layers": 8, "batch": 64, "image": 32},
    "imagenet": {"channels": 48, "layers": 8, "batch": 64, "image": 224, "classes": 1000, "stem": "imagenet"},
}
EAGER: dict[str, dict[str, Any]] = {
    "DARTS, eager, NCHW, all gradients": {"method": "darts", "policy": "autograd", "layout": "nchw"},
    "DARTS, eager, channels_last, needed gradients": {"method": "darts", "policy": "autograd", "gradients": "lazy"},
    "K=2, eager, channels_last, needed gradients": {"policy": "autograd", "gradients": "lazy"},
}
FUSED: dict[str, dict[str, Any]] = {
    f"K={k}, kernels, {policy}, {dtype}": {"k": k, "policy": policy, "impl": "triton", "dtype": dtype}
    for k, policy, dtype in (
        (1, "min", "bfloat16"), (2, "min", "bfloat16"), (2, "bn", "bfloat16"), (2, "min", "float32"),
        (4, "min", "bfloat16"), (8, "min", "bfloat16"),
    )
}  # fmt: skip


def times_ms(take: Callable[[], Any], seconds: float) -> list[float]:
    """Milliseconds of single steps, the device waited for, after five that are not counted."""
    for _ in range(5):
        take()
    torch.cuda.synchronize()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 5 or (time.perf_counter() < end and len(found) < 200):
        begin = time.perf_counter()
        take()
        torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - begin))
    return found


def measured(take: Callable[[], Any], seconds: float) -> dict[str, list[float]]:
    """Times of a step, and its peaks of allocated and reserved memory."""
    torch.cuda.reset_peak_memory_stats()
    found = times_ms(take, seconds)
    return {
        "step_ms": found, "peak_bytes": [torch.cuda.max_memory_allocated()],
        "reserved_bytes": [torch.cuda.max_memory_reserved()],
    }  # fmt: skip


def graphed(step: Step) -> Callable[[], Any]:
    """The step as two CUDA graphs, as a search runs it."""
    from ..engine.learning.graph import StepGraphs
    from ..engine.learning.passes import Feed
    from ..engine.learning.steps import Moment

    learner = step.learner
    graphs: StepGraphs[Feed] = StepGraphs(step.labels_B.device)

    def take() -> None:
        moment = Moment(step.number, step.tau, step.config.lr, drop_rate=0.0, guided=False)
        alpha = learner.feed(step.images_BCHW, step.labels_B, moment, 2 * step.number)
        graphs.run("alpha", alpha, lambda feed: learner.alpha_update(feed, dropped=False))
        weight = learner.feed(step.images_BCHW, step.labels_B, moment, 2 * step.number + 1)
        graphs.run("weight", weight, lambda feed: learner.weight_update(feed, guided=False, dropped=False))
        step.number += 1

    return take


def kernel_gate() -> Gate:
    """The test suite's kernel tests on the device, in a process of their own."""
    run = subprocess.run(
        [Path(sys.executable).with_name("pytest"), "-q", "-x", *GATES], cwd=FOLDER.parent.parent, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    last = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else run.stderr.strip()[-200:]
    return Gate(run.returncode == 0, {}, f"{' '.join(GATES)}: {last}")


def variants() -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """(name, options of `build_step`, how the step is run: eager, compile or graph)."""
    yield from ((name, options, "eager") for name, options in EAGER.items())
    yield "K=2, torch.compile", {"policy": "autograd", "gradients": "lazy"}, "compile"
    yield from ((name, options, "eager") for name, options in FUSED.items())
    yield from ((f"{name}, CUDA graph", options, "graph") for name, options in FUSED.items())


def timings(gate: Gate, seconds: float, facts: Mapping[str, Any]) -> Iterator[Row]:
    """One row for each size and variant; one that does not fit or does not compile is named on stderr."""
    for which, size in SIZES.items():
        for name, options, how in variants():
            try:
                step = build_step(device="cuda", **size, **options)
                take: Callable[[], Any] = graphed(step) if how == "graph" else step.step
                if how == "compile":
                    step.net.compile(dynamic=False)
                figures = measured(take, seconds)
                del step, take
            except (torch.OutOfMemoryError, RuntimeError) as error:
                print(f"left out: {which}, {name}: {str(error).strip().splitlines()[0][:200]}", file=sys.stderr)
            else:
                yield row("gpu", f"{which}: {name}", {**size, **options, "run": how}, figures, gate, behind(facts))
            torch.cuda.empty_cache()


def line(one: Row) -> str:
    """A row as people read it."""
    step, peak = one["figures"]["step_ms"], one["figures"]["peak_bytes"]["median"]
    images = 2e3 * one["config"]["batch"] / step["median"]
    return (
        f"{one['name']:60} {step['median']:9.2f} ms ({step['min']:.2f} to {step['max']:.2f}) {images:10,.0f} images/s "
        f"{peak / MIB:10,.0f} MiB{warning(one, '  ')}"
    )


def table(rows: Sequence[Row]) -> str:
    return "\n".join(map(line, rows))


def main(argv: Sequence[str]) -> int:
    made = command.parser("gpu", __doc__ or "")
    made.add_argument("--seconds", type=float, default=2.0, help="time of each variant (default: 2)")
    made.set_defaults(out=FOLDER / "gpu.jsonl")
    arguments = made.parse_args(argv)
    if not torch.cuda.is_available():
        raise NoDeviceError(
            "no CUDA device is here, nothing was timed", got="torch sees none", allowed="a CUDA device",
            next="make test, which proves the kernels by interpreter and compilers",
        )  # fmt: skip
    gate = kernel_gate()
    gate.require("the GPU")
    print(f"gates: {gate.reason}", file=sys.stderr)
    rows = timings(gate, arguments.seconds, provenance(command.again("gpu", argv)))
    show_and_keep(rows, line, as_json=arguments.json, out=arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(command.answer(main))
