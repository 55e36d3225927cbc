"""`msgdas search`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..settings.config import KEYS, SearchConfig
from ..settings.recipes import demo
from .configuration import add_configuration, config_of, given, refuse_beside_resume


def add(commands: Any) -> None:
    search = commands.add_parser(
        "search", help="search for a cell", allow_abbrev=False,
        description="Search for a cell. Values: a recipe's, those of --config over them, flags over both.",
    )  # fmt: skip
    add_configuration(search)
    search.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run folder")
    search.add_argument("--out", type=Path, metavar="RUN", help="the new run folder (default: runs/RECIPE-DATE)")
    search.add_argument("--keys", action="store_true", help="list all configuration keys and leave")
    search.add_argument(
        "--budget", default=argparse.SUPPRESS, metavar="SIZE",
        help="plan for 10GiB, 80%% or auto (all that is free), then search and keep to it",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> str:
    if arguments.keys:
        return KEYS.listing(demo())
    if arguments.resume:
        refuse_beside_resume(arguments)
        from ..run.result import summary
        from ..search.searcher import resume

        return summary(resume(arguments.resume))
    config = config_of(arguments)
    from ..run.result import summary
    from ..search.searcher import search

    if "budget" not in vars(arguments):
        return summary(search(config, out=arguments.out))
    from ..memory.plan import plan_here
    from ..memory.plan_text import as_dict, brief

    def plan(mine: SearchConfig) -> tuple[SearchConfig, dict[str, Any]]:
        made = plan_here(mine, arguments.budget, pins=given(arguments)[1])
        print(brief(made), flush=True)
        return made.config, as_dict(made)

    return summary(search(config, out=arguments.out, plan=plan))
