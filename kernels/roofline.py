"""`python -m msgdas.kernels.roofline`: how long each launch should take on a GPU. Predictions, nothing is timed.

A launch takes at least the longest of three times: its compulsory bytes over the memory's bandwidth, its FLOPs over
the peak of what computes them, and the instructions of its tap loops (`budgets.json`) over the issue rate. The
dearest sample is assumed (every branch a 5x5 sep_conv), caches are ignored, and a launch's own latency is left out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

from . import budgets

# NVIDIA H100 SXM5 (data sheet): 3.35 TB/s, 989 TFLOP/s dense bf16; issue rate 132 multiprocessors x 4 schedulers x
# 32 lanes x 1.755 GHz.
BANDWIDTH, TENSOR_FLOPS, ISSUE_RATE = 3.35e12, 989e12, 132 * 4 * 32 * 1.755e9
TAPS = 25
# Whose instructions for one tap of one value a launch is charged, the dearest form's on sm_90.
TAP_LOOPS = {
    "stage, first": ("stage_kernel", "per_tap"),
    "stage, last": ("stage_kernel", "per_normalised_tap"),
    "inner taps backward": ("inner_kernel", "per_tap"),
    "pointwise weights": ("point_weights_kernel", "per_normalised_tap"),
    "depthwise weights": ("tap_weights_kernel", "per_normalised_tap"),
    "gather": ("gather_kernel", "per_tap"),
}
SHAPES = ((64, 16, 32), (64, 32, 16), (64, 64, 8), (128, 48, 28), (128, 96, 14), (128, 192, 7))


@dataclass(frozen=True, slots=True)
class Prediction:
    """One launch on one shape; times in microseconds.

    Attributes:
        bound: which of the three times is the longest.
    """

    kernel: str
    batch: int
    channels: int
    side: int
    memory_us: float
    product_us: float
    issue_us: float

    @property
    def bound(self) -> str:
        times = {"bytes": self.memory_us, "products": self.product_us, "taps": self.issue_us}
        return max(times, key=lambda name: times[name])

    @property
    def predicted_us(self) -> float:
        return max(self.memory_us, self.product_us, self.issue_us)


# kernel: (maps read or written by all branches together, as J * a + b; 1x1 products and tap loops of a branch).
def costs(branches: int) -> dict[str, tuple[int, int, int]]:
    """(maps moved, products of [P, C] with [C, C], loops over all taps) of each launch of `branches` branches."""
    j = branches
    return {
        "stage, first": (2 * j, j, j),
        "stage, last": (2 * j, j, j),
        "combine": (j + 1, 0, 0),
        "combine backward, sums": (j + 1, 0, 0),
        "point backward": (2 * j + 1, j, 0),
        "inner taps backward": (3 * j, 0, j),
        "pointwise weights": (2 * j + 1, j, j),
        "depthwise weights": (2 * j, 0, j),
        "gather": (j + 4, 0, j),
    }


def predictions(branches: int = 4, bytes_per_value: int = 2) -> list[Prediction]:
    """Every launch on every shape of the two published settings (CIFAR at batch 64, ImageNet at batch 128)."""
    found = []
    kernels = budgets.read()["kernels"]
    per_tap = {name: kernels[kernel]["sm_90"][figure] for name, (kernel, figure) in TAP_LOOPS.items()}
    for batch, channels, side in SHAPES:
        values = batch * side * side * channels
        for kernel, (maps, products, loops) in costs(branches).items():
            found.append(
                Prediction(
                    kernel,
                    batch,
                    channels,
                    side,
                    1e6 * maps * values * bytes_per_value / BANDWIDTH,
                    1e6 * products * 2 * values * channels / TENSOR_FLOPS,
                    1e6 * loops * values * TAPS * per_tap.get(kernel, 0.0) / ISSUE_RATE,
                )
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m msgdas.kernels.roofline", description=__doc__)
    parser.add_argument("--branches", type=int, default=4, help="branches of a launch")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    arguments = parser.parse_args()
    rows = predictions(arguments.branches)
    if arguments.json:
        for row in rows:
            print(json.dumps({**asdict(row), "predicted_us": row.predicted_us, "bound": row.bound}))
        return
    print(f"PREDICTION for an H100 SXM5, bf16, {arguments.branches} branches a launch, all 5x5; microseconds")
    print(f"{'launch':24} {'batch':>5} {'C':>4} {'side':>4} {'bytes':>7} {'products':>8} {'taps':>7} {'bound by':>9}")
    for row in rows:
        print(
            f"{row.kernel:24} {row.batch:5} {row.channels:4} {row.side:4} {row.memory_us:7.1f} {row.product_us:8.2f}"
            f" {row.issue_us:7.1f} {row.bound:>9}"
        )


if __name__ == "__main__":
    main()
