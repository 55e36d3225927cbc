"""`python -m msgdas.bench.memory`: peak live memory of a search step, per sample, for methods and policies.

The figure is the slope of the peak between two batches, so that what does not grow with the batch (gradients
of the sampled weights) stands apart. Counted by profiles/tracker.py in a step with optimizer state present.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any

from ..engine.environment import environment
from ..profiles.tracker import LiveBytes
from .step import build_step

MIB = 1 << 20
CIFAR: dict[str, Any] = {"channels": 16, "layers": 8, "image": 32, "classes": 10, "stem": "cifar"}
IMAGENET: dict[str, Any] = {"channels": 48, "layers": 8, "image": 224, "classes": 1000, "stem": "imagenet"}
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("DARTS, plain autograd, all gradients", {"method": "darts", "policy": "autograd"}),
    *((f"K={k} union, min", {"k": k, "policy": "min"}) for k in (1, 2, 4, 8)),
    *((f"K={k} sub-graphs, min", {"k": k, "mode": "subgraphs", "policy": "min"}) for k in (2, 4)),
    *((f"K=2 union, {policy}", {"k": 2, "policy": policy}) for policy in ("nodes", "bn", "all")),
    ("K=2 union, plain autograd", {"k": 2, "policy": "autograd", "gradients": "lazy"}),
]


@dataclass(frozen=True, slots=True)
class Slope:
    """Peak bytes of a step as fixed_bytes + batch * per_sample_bytes, from two batches."""

    per_sample_bytes: float
    fixed_bytes: float


def peak_bytes(**step_options: Any) -> int:
    """The peak of live bytes of one whole step above what lives between steps (weights and optimizer state)."""
    step = build_step(**step_options)
    step.step()
    step.learner.weight_optimizer.zero_grad()
    step.learner.alpha_optimizer.zero_grad()
    with LiveBytes() as tracker:
        step.step()
    return tracker.peak_bytes


def slope(batches: tuple[int, int], **step_options: Any) -> Slope:
    """The line through the peaks at two batches."""
    low, high = batches
    low_bytes, high_bytes = peak_bytes(batch=low, **step_options), peak_bytes(batch=high, **step_options)
    per_sample = (high_bytes - low_bytes) / (high - low)
    return Slope(per_sample, low_bytes - low * per_sample)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m msgdas.bench.memory", description=__doc__)
    parser.add_argument("--imagenet", action="store_true", help="224 px, C=48, 1000 classes instead of 32 px, C=16, 10")
    parser.add_argument("--batches", type=int, nargs=2, default=(8, 16), metavar=("LOW", "HIGH"))
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds this text")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    arguments = parser.parse_args()
    size = IMAGENET if arguments.imagenet else CIFAR
    if not arguments.json:
        print(f"{'peak of a step':40} {'MiB/sample':>10} {'fixed MiB':>10}", flush=True)
    machine = environment() if arguments.json else {}
    for name, options in ROWS:
        if arguments.only not in name:
            continue
        found = slope(tuple(arguments.batches), **size, **options)
        if arguments.json:
            print(json.dumps({"row": name, **size, **options, **asdict(found), "environment": machine}), flush=True)
        else:
            print(f"{name:40} {found.per_sample_bytes / MIB:10.2f} {found.fixed_bytes / MIB:10.1f}", flush=True)


if __name__ == "__main__":
    main()
