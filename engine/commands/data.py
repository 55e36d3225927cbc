"""`msgdas data check`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import ConfigError


def add(commands: Any) -> None:
    data = commands.add_parser(
        "data", help="examine every image of a folder and list the good ones", allow_abbrev=False,
        description="Decode every image of a tree of class folders, or of DIR/train and DIR/val, name what is bad or "
        "odd, and write the good ones of the training part to a file list, which data_list takes. Started again, it "
        "goes on.",
    )  # fmt: skip
    data.add_argument("action", choices=("check",), metavar="check", help="the one thing to do with data")
    data.add_argument("folder", type=Path, metavar="DIR", help="the tree, as in imagefolder:DIR")
    data.add_argument("--out", type=Path, metavar="LIST", help="the file list (default: NAME-OF-DIR.list here)")
    data.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one a processor)")
    data.add_argument("--json", action="store_true", help="print JSON, with all paths")


def run(arguments: argparse.Namespace) -> str:
    if arguments.workers < 0:
        raise ConfigError("--workers is out of range", got=arguments.workers, allowed="1 or more", next="--workers 2")
    from ..images.datacheck import check

    report = check(arguments.folder, out=arguments.out, workers=arguments.workers)
    return report.to_json() if arguments.json else str(report)
