"""`msgdas doctor`."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="what to paste in a bug report", allow_abbrev=False)
    doctor.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> str:
    from ..doctor import doctor

    return doctor(as_json=arguments.json)
