"""`msgdas report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import RunFolderError


def add(commands: Any) -> None:
    report = commands.add_parser(
        "report", help="write the page about a run anew", allow_abbrev=False,
        description="Write one page about a search or a training, that can be mailed as it is, and print its path.",
    )  # fmt: skip
    report.add_argument("run", type=Path, metavar="RUN", help="the run folder of a search or a training")
    report.add_argument("--out", type=Path, metavar="FILE", help="the page (default: RUN/report.html)")


def run(arguments: argparse.Namespace) -> str:
    from ..report.report import write_report

    try:
        return str(write_report(arguments.run, arguments.out))
    except OSError as error:
        raise RunFolderError(
            f"cannot write the page about {arguments.run}", got=error.strerror, allowed="a file in a writable folder",
            next=f"msgdas report {arguments.run} --out FILE",
        ) from None  # fmt: skip
