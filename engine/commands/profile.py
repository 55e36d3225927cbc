"""`msgdas profile`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..settings.recipes import RECIPES
from .configuration import config_of


def add(commands: Any) -> None:
    profile = commands.add_parser(
        "profile", help="record the memory timeline of steps or of a process", allow_abbrev=False,
        description="Record steps of a recipe on noise (default: demo), a running search (--run) or a process (--pid).",
    )  # fmt: skip
    profile.add_argument("recipe", nargs="?", help=f"one of {', '.join(RECIPES)}")
    profile.add_argument("--config", type=Path, metavar="FILE.toml", help="a TOML file of configuration keys")
    profile.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any configuration key")
    profile.add_argument("--run", type=Path, metavar="RUN", help="the run folder of a search that is running")
    profile.add_argument("--pid", type=int, help="a process: the GPU that it computes on, else its resident memory")
    profile.add_argument("--steps", type=int, default=2, help="steps to record, alpha and weights each (default: 2)")
    profile.add_argument("--seconds", type=float, default=10, help="how long to record a --pid (default: 10)")
    profile.add_argument("--out", type=Path, metavar="DIR", help="where timeline.json and the pictures go")
    profile.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> str:
    given = vars(arguments)
    targets = [name for name in ("recipe", "run", "pid") if given[name] is not None]
    if len(targets) > 1 or (targets and targets != ["recipe"] and (arguments.config or arguments.set)):
        raise ConfigError(
            "one thing is profiled at a time", got=", ".join(targets), allowed="a recipe, --run RUN or --pid PID",
            next="msgdas profile demo",
        )  # fmt: skip
    if not 1 <= arguments.steps <= 10_000 or not 0 < arguments.seconds <= 86_400:
        raise ConfigError(
            "a recording has a length", got=f"--steps {arguments.steps} --seconds {arguments.seconds:g}",
            allowed="1 to 10000 steps, up to 86400 seconds", next="msgdas profile demo --steps 2",
        )  # fmt: skip
    from ..memory import profiling
    from ..run.rundir import default_path

    folder = arguments.out or default_path("profile")
    if arguments.run is not None:
        profiled = profiling.profile_run(arguments.run, arguments.steps, folder)
    elif arguments.pid is not None:
        profiled = profiling.profile_process(arguments.pid, arguments.seconds, folder)
    else:
        profiled = profiling.profile_steps(config_of(arguments), arguments.steps, folder)
    return json.dumps(profiled.timeline) if arguments.json else profiling.text_of(profiled)
