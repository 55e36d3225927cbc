"""`msgdas eval`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("eval", help="judge a trained network on the test images", allow_abbrev=False)
    command.add_argument("run", type=Path, metavar="RUN", help="a training's run folder")
    command.add_argument("--data", metavar="STR", help="another data set with the same number of classes")
    command.add_argument("--limit", type=int, default=0, metavar="INT", help="test images that are used, 0 for all")
    command.add_argument("--device", metavar="STR", help="auto, cpu or cuda")
    command.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> str:
    from ..training.judging import judge

    return judge(
        arguments.run, data=arguments.data, limit=max(0, arguments.limit), device=arguments.device,
        as_json=arguments.json,
    )  # fmt: skip
