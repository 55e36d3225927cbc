"""`msgdas latency`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    latency = commands.add_parser(
        "latency", help="measure a space's operations on this machine", allow_abbrev=False,
        description="Measure every operation in every place of the derived network, and random networks that a "
        "predictor is fitted to; the file serves a search as device_table.",
    )  # fmt: skip
    latency.add_argument("target", nargs="?", metavar="RUN|GENOTYPE", help="a network to predict and measure too")
    latency.add_argument("--space", default="darts", help="search space where no target is given (default: darts)")
    for name in ("channels", "layers", "image", "classes"):
        latency.add_argument(f"--{name}", type=int, help=f"{name} of the derived network (default: as show)")
    latency.add_argument("--stem", choices=("cifar", "imagenet"), help="stem of the derived network")
    latency.add_argument("--networks", type=int, default=40, help="random networks to fit to, 0 for none (default: 40)")
    latency.add_argument("--repeats", type=int, default=15, help="rounds (default: 15)")
    latency.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    latency.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    latency.add_argument("--out", type=Path, metavar="FILE", help="where the table is kept")
    latency.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> str:
    from ..latency.report import latency

    return latency(
        arguments.target, arguments.space, channels=arguments.channels, layers=arguments.layers,
        image=arguments.image, classes=arguments.classes, stem=arguments.stem, networks=arguments.networks,
        repeats=arguments.repeats, threads=arguments.threads, device=arguments.device, out=arguments.out,
        as_json=arguments.json,
    )  # fmt: skip
