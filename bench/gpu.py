"""`python -m msgdas.bench.gpu`: everything that needs a GPU, in one go: the gates of the kernels, then timings.

Writes one JSON Lines file with provenance. No timing is taken if a gate is red. Without a GPU it says so and
leaves with exit code 8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..engine.environment import environment
from .step import Step, build_step

NO_GPU = 8
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


def measured(step: Step, take: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Median and spread of a step's time, images a second, and peak memory."""
    torch.cuda.reset_peak_memory_stats()
    found = times_ms(take, seconds)
    median = statistics.median(found)
    return {
        "median_ms": median, "min_ms": min(found), "max_ms": max(found), "runs": len(found),
        "images_per_s": 2e3 * len(step.labels_B) / median, "peak_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": torch.cuda.max_memory_reserved(),
    }  # fmt: skip


def graphed(step: Step) -> Callable[[], Any]:
    """The step as two CUDA graphs, as a search runs it."""
    from ..engine.graph import StepGraphs
    from ..engine.passes import Feed
    from ..engine.steps import Moment

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


def gates() -> dict[str, Any]:
    """The test suite's kernel tests on the device, in a process of their own."""
    root = Path(__file__).resolve().parent.parent
    begin = time.perf_counter()
    run = subprocess.run(
        [Path(sys.executable).with_name("pytest"), "-q", "-x", *GATES],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    last = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else run.stderr.strip()[-200:]
    return {"row": "gates", "passed": run.returncode == 0, "summary": last, "seconds": time.perf_counter() - begin}


def timings(size: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    """One row for each variant; one that does not fit or does not compile says so."""
    rows = []
    variants = [(name, options, "") for name, options in EAGER.items()]
    variants.append(("K=2, torch.compile", {"policy": "autograd", "gradients": "lazy"}, "compile"))
    variants += [(name, options, "") for name, options in FUSED.items()]
    variants += [(f"{name}, CUDA graph", options, "graph") for name, options in FUSED.items()]
    for name, options, how in variants:
        row: dict[str, Any] = {"row": name, **size, **options}
        try:
            step = build_step(device="cuda", **size, **options)
            take: Callable[[], Any] = graphed(step) if how == "graph" else step.step
            if how == "compile":
                step.net.forward = torch.compile(step.net.forward, dynamic=False)  # type: ignore[method-assign]
            row |= measured(step, take, seconds)
            del step, take
        except (torch.OutOfMemoryError, RuntimeError) as error:
            row["failed"] = str(error).strip().splitlines()[0][:200]
        torch.cuda.empty_cache()
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m msgdas.bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder of the JSON Lines file")
    parser.add_argument("--seconds", type=float, default=2.0, help="time of each variant")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: the kernels are proven here by interpreter and compiler (make test); nothing was timed")
        return NO_GPU
    rows = [gates()]
    print(f"gates: {rows[0]['summary']}")
    if rows[0]["passed"]:
        for which, size in SIZES.items():
            for row in timings(size, arguments.seconds):
                rows.append({"size": which, **row})
                shown = f"{row['median_ms']:.1f} ms" if "median_ms" in row else row["failed"]
                print(f"{which:9} {row['row']:50} {shown}", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name().lower().replace(" ", "-")
    path = arguments.out / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}.jsonl"
    machine = environment()
    path.write_text("".join(json.dumps({**row, "environment": machine}) + "\n" for row in rows))
    print(f"results {path}")
    return 0 if rows[0]["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
