"""`msgdas compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    compare = commands.add_parser(
        "compare", help="put runs side by side", allow_abbrev=False,
        description="Print a table of searches and trainings, and write one page with their curves and cells.",
    )  # fmt: skip
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, two or more")
    compare.add_argument("--out", type=Path, metavar="FILE", help="the page (default: compare.html)")
    compare.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> str:
    from ..report.compare import compare

    return compare(arguments.runs, out=arguments.out, as_json=arguments.json)
