"""`msgdas show`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..spaces.quantities import LIMITS

if TYPE_CHECKING:
    from ..report.cost import MeasuredCost
    from ..spaces.costs import NetworkSize
    from ..spaces.genotype import Genotype

# Images of a training step where the user names none: a DARTS network of CIFAR's size then takes under 1 GiB (ours).
BATCH = 8


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
    show.add_argument("--measure", action="store_true", help="latency and peak memory too, measured on this machine")
    show.add_argument("--batch", type=int, metavar="N", help=f"images of the measured training step (default: {BATCH})")
    show.add_argument("--out", type=Path, metavar="DIR", help="where the pictures go")
    show.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> str:
    from ..report.show import show

    if arguments.batch is not None and not arguments.measure:
        raise ConfigError("--batch is of what is measured", got="no --measure", next="add --measure to --batch")
    limits = {key: getattr(arguments, key) for key in LIMITS if getattr(arguments, key)}
    batch = BATCH if arguments.batch is None else arguments.batch

    def measured(genotype: Genotype, size: NetworkSize) -> MeasuredCost:
        from ..training.cost import measure_network

        return measure_network(genotype, size, batch)

    return show(
        arguments.target, channels=arguments.channels, layers=arguments.layers, image=arguments.image,
        classes=arguments.classes, stem=arguments.stem, limits=limits, device_table=arguments.device_table,
        out=arguments.out, as_json=arguments.json, measured=measured if arguments.measure else None,
    )  # fmt: skip
