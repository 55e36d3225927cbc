"""`python -m msgdas.bench.speed`: time of a search step against dense DARTS as its authors' code runs it.

All variants take turns in one process, so that a noisy machine slows them alike; medians are compared. What
the speed-up is made of is printed apart: layout, gradients that are thrown away, sparsity, and the engine.
No figure is printed if the engine's gradients differ from autograd's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch

from ..engine.environment import environment
from .step import Step, build_step

DENSE_NCHW = "dense, NCHW, all gradients (as published)"
VARIANTS: dict[str, dict[str, Any]] = {
    DENSE_NCHW: {"method": "darts", "policy": "autograd", "layout": "nchw"},
    "dense, channels_last, all gradients": {"method": "darts", "policy": "autograd"},
    "dense, channels_last, needed gradients": {"method": "darts", "policy": "autograd", "gradients": "lazy"},
    "K=2, channels_last, needed gradients": {"policy": "autograd", "gradients": "lazy"},
    "K=2, plain PyTorch, all": {"policy": "all", "impl": "reference"},
    "K=2, plain PyTorch, min": {"policy": "min", "impl": "reference"},
    "K=2, C++, all": {"policy": "all", "impl": "native"},
    "K=2, C++, bn": {"policy": "bn", "impl": "native"},
    "K=2, C++, nodes": {"policy": "nodes", "impl": "native"},
    "K=2, C++, min": {"policy": "min", "impl": "native"},
    "K=2 sub-graphs, C++, min": {"policy": "min", "mode": "subgraphs", "impl": "native"},
    "K=1, C++, min": {"k": 1, "policy": "min", "impl": "native"},
    "K=4, C++, min": {"k": 4, "policy": "min", "impl": "native"},
    "K=8, C++, min": {"k": 8, "policy": "min", "impl": "native"},
}
# (what it is, slower variant, quicker variant)
SHARES = (
    ("layout", DENSE_NCHW, "dense, channels_last, all gradients"),
    ("lazy gradients", "dense, channels_last, all gradients", "dense, channels_last, needed gradients"),
    ("sparsity, 2 of 8", "dense, channels_last, needed gradients", "K=2, channels_last, needed gradients"),
    ("engine, all", "K=2, channels_last, needed gradients", "K=2, plain PyTorch, all"),
    ("engine, min", "K=2, channels_last, needed gradients", "K=2, plain PyTorch, min"),
    ("C++ kernels, all", "K=2, plain PyTorch, all", "K=2, C++, all"),
    ("C++ kernels, min", "K=2, plain PyTorch, min", "K=2, C++, min"),
)
TWO_THREADS = ("K=2, C++, all", "K=2, C++, min")
TOLERANCE = 1e-10


def gradient_error() -> float:
    """Largest relative difference of a weight's gradient between the engine and plain autograd, fp64, small net."""
    grads = []
    for policy, impl in (("autograd", "reference"), ("min", "native")):
        step = build_step(
            channels=4, layers=3, batch=2, image=16, policy=policy, dtype="float64", gradients="lazy", impl=impl
        )
        step.forward().backward()
        grads.append([p.grad for p in step.net.parameters()])
    worst = 0.0
    for theirs, ours in zip(*grads, strict=True):
        if theirs is not None and ours is not None:
            worst = max(worst, ((ours - theirs).norm() / theirs.norm().clamp_min(1e-12)).item())
    return worst


def times_ms(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each variant's step, one of each per round, after one warm-up."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step.step()
            if number:
                found[name].append(1e3 * (time.perf_counter() - begin))
    return found


def two_threads(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """How much faster two threads are than one, medians of alternating steps."""
    found = {}
    for name in TWO_THREADS:
        times: dict[int, list[float]] = {1: [], 2: []}
        for number in range(rounds + 1):
            for threads in times:
                torch.set_num_threads(threads)
                begin = time.perf_counter()
                steps[name].step()
                if number:
                    times[threads].append(time.perf_counter() - begin)
        found[name] = statistics.median(times[1]) / statistics.median(times[2])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m msgdas.bench.speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    error = gradient_error()
    if error > TOLERANCE:
        raise SystemExit(f"no figures: gradients differ from autograd's by {error:.1e} (allowed {TOLERANCE})")
    steps = {name: build_step(batch=arguments.batch, **options) for name, options in VARIANTS.items()}
    found = times_ms(steps, arguments.rounds)
    median = {name: statistics.median(values) for name, values in found.items()}
    base = median[DENSE_NCHW]
    threads = two_threads(steps, arguments.rounds)
    if arguments.json:
        machine = environment()
        for name, values in found.items():
            row = {"row": name, "ms": values, "speedup": base / median[name], "threads": arguments.threads}
            print(json.dumps({**row, "batch": arguments.batch, "environment": machine}))
        for name, factor in threads.items():
            print(json.dumps({"row": f"two threads against one: {name}", "speedup": factor, "environment": machine}))
        return
    print(f"DARTS cell, C=16, 8 layers, 32x32, batch {arguments.batch}, {arguments.threads} thread(s), fp32")
    print(f"{'step (alpha + weights)':44} {'median ms':>10} {'min':>8} {'max':>8} {'faster':>8}")
    for name, values in found.items():
        print(f"{name:44} {median[name]:10.0f} {min(values):8.0f} {max(values):8.0f} {base / median[name]:7.2f}x")
    print("\nof which")
    for name, slow, quick in SHARES:
        print(f"{name:44} {median[slow] / median[quick]:.2f}x")
    for name, factor in threads.items():
        print(f"{'two threads against one: ' + name:44} {factor:.2f}x")


if __name__ == "__main__":
    main()
