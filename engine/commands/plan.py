"""`msgdas plan`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ..settings.config import FIELDS, choices
from .configuration import add_configuration, config_of, given


def add(commands: Any) -> None:
    plan = commands.add_parser(
        "plan", help="which K, batch and policy fit a device", allow_abbrev=False,
        description="Predict memory and time for a device, which need not be here; k, batch, policy, mode and dtype "
        "stay as they are given, the plan decides the others.",
    )  # fmt: skip
    add_configuration(plan)
    plan.add_argument("--dtype", default=argparse.SUPPRESS, metavar="{" + ",".join(choices("dtype")) + "}",
                      help=FIELDS["dtype"].metadata["help"])  # fmt: skip
    plan.add_argument("--k-schedule", default=argparse.SUPPRESS, metavar="{grow,shrink,LIST}",
                      help=FIELDS["k_schedule"].metadata["help"])  # fmt: skip
    plan.add_argument("--gpu", metavar="NAME", help="as rtx-4090, or auto, or cpu (default: what is here)")
    plan.add_argument(
        "--budget", default="auto", metavar="SIZE", help="10GiB, 80%% or auto (default), all that is free"
    )
    plan.add_argument(
        "--methods", default="", metavar="LIST", help="methods in the table, or all (default: msg,gdas,darts)"
    )
    plan.add_argument("--markdown", action="store_true", help="print the table of peaks alone, as Markdown")
    plan.add_argument("--out", type=Path, metavar="DIR", help="for plan.json and the chart (default: runs/plan)")
    plan.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> str:
    config = config_of(arguments)
    # Processes may be forked only where nothing has used torch yet, see `plan_search`.
    workers = 1 if "torch" in sys.modules else os.cpu_count() or 1
    from ..memory.plan import plan

    return plan(
        config, pins=given(arguments)[1], gpu=arguments.gpu, budget=arguments.budget, methods=arguments.methods,
        out=arguments.out, form="json" if arguments.json else "markdown" if arguments.markdown else "text",
        workers=workers,
    )  # fmt: skip
