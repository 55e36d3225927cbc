"""`msgdas show`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..spaces.quantities import LIMITS


def add(commands: Any) -> None:
    show = commands.add_parser("show", help="draw and count the cells of a run or a genotype file", allow_abbrev=False)
    show.add_argument(
        "target", metavar="RUN|GENOTYPE", help="a run folder, a genotype file, FILE:NAME, or a name as DARTS_V2"
    )
    for name in ("channels", "layers", "image", "classes"):
        show.add_argument(f"--{name}", type=int, help=f"{name} of the derived network")
    show.add_argument("--stem", choices=("cifar", "imagenet"), help="stem of the derived network")
    for key, example in (("max-macs", "600M"), ("max-params", "5M"), ("target-latency", "80ms")):
        show.add_argument(f"--{key}", default="", metavar=example, help="derive a run's alpha again within this limit")
    show.add_argument("--device-table", default="", metavar="FILE", help="of msgdas latency, for --target-latency")
    show.add_argument("--out", type=Path, metavar="DIR", help="where the pictures go")
    show.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> str:
    from ..report.show import show

    limits = {key: getattr(arguments, key) for key in LIMITS if getattr(arguments, key)}
    return show(
        arguments.target, channels=arguments.channels, layers=arguments.layers, image=arguments.image,
        classes=arguments.classes, stem=arguments.stem, limits=limits, device_table=arguments.device_table,
        out=arguments.out, as_json=arguments.json,
    )  # fmt: skip
