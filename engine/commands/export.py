"""`msgdas export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser(
        "export", help="write a trained network as files that others load", allow_abbrev=False,
        description="Write the network of a training's newest checkpoint; each file is compared with it first.",
    )  # fmt: skip
    command.add_argument("run", type=Path, metavar="RUN", help="a training's run folder")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder of the files (default: RUN/export)")
    command.add_argument(
        "--format", default="all", metavar="LIST",
        help="all, or some of safetensors,torch-export,onnx,python,timm,card",
    )  # fmt: skip
    command.add_argument("--name", default="", metavar="NAME", help="of the files and in timm (default: msgdas_RUN)")


def run(arguments: argparse.Namespace) -> str:
    from ..export.export import export

    return export(arguments.run, out=arguments.out, formats=arguments.format, name=arguments.name)
