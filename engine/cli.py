"""The command line: parse, call one function, print; errors become one line and an exit code.

Nothing here imports torch at module level, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from ..profiles.errors import BudgetError, ProfileError
from .config import FIELDS, SearchConfig, choices, parse_value, read_toml
from .errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EngineError,
    GateError,
    GenotypeError,
    InterruptedSearchError,
    NoDeviceError,
    NumericsError,
    RunFolderError,
)  # fmt: skip
from .recipes import RECIPES, demo, recipe_named

EXIT_CODES: dict[type[EngineError | ProfileError], int] = {
    ConfigError: 2,
    DataError: 3,
    RunFolderError: 4,
    CheckpointError: 5,
    GenotypeError: 6,
    NumericsError: 7,
    NoDeviceError: 8,
    ProfileError: 9,
    BudgetError: 10,
    GateError: 11,
}
# As shells say it: 128 + number of the signal (SIGTERM 143, Ctrl-C 130).
SIGNAL_EXIT = 128


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line with the next command."""

    def error(self, message: str) -> NoReturn:
        unknown = next((word for word in message.split() if word.startswith("--")), "")
        near = difflib.get_close_matches(unknown.split("=")[0], self.options(), n=1)
        raise ConfigError(message, next=f"perhaps {near[0]}" if near else f"{self.prog} --help")

    def options(self) -> list[str]:
        """All option strings, those of subcommands included: argparse reports theirs on the parent."""
        found: list[str] = []
        for action in self._actions:
            found += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    found += command.options()
        return found


def parser() -> argparse.ArgumentParser:
    """The whole surface of the command line."""
    top = Parser(prog="msgdas", description="Memory-first differentiable architecture search.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"msgdas {version('msgdas')}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    _add_search(commands)
    _add_plan(commands)
    _add_show(commands)
    _add_profile(commands)
    doctor = commands.add_parser("doctor", help="what to paste in a bug report", allow_abbrev=False)
    doctor.add_argument("--json", action="store_true", help="print JSON")
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


def _add_search(commands: Any) -> None:
    search = commands.add_parser(
        "search", help="search for a cell", allow_abbrev=False,
        description="Search for a cell. Values: a recipe's, those of --config over them, flags over both.",
    )  # fmt: skip
    _add_configuration(search)
    search.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run folder")
    search.add_argument("--out", type=Path, metavar="RUN", help="the new run folder (default: runs/RECIPE-DATE)")
    search.add_argument("--keys", action="store_true", help="list all configuration keys and leave")
    search.add_argument(
        "--budget", default=argparse.SUPPRESS, metavar="SIZE",
        help="plan for 10GiB, 80%% or auto (all that is free), then search and keep to it",
    )  # fmt: skip


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan", help="which K, batch and policy fit a device", allow_abbrev=False,
        description="Predict memory and time for a device, which need not be here; k, batch, policy, mode and dtype "
        "stay as they are given, the plan decides the others.",
    )  # fmt: skip
    _add_configuration(plan)
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


def _add_configuration(command: Any) -> None:
    """Recipe, file, keys and flags of a search's configuration."""
    command.add_argument("recipe", nargs="?", help=f"one of {', '.join(RECIPES)} (default: demo)")
    command.add_argument("--config", type=Path, metavar="FILE.toml", help="a TOML file of configuration keys")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key that --keys lists")
    for name, field in FIELDS.items():
        if field.metadata["flag"]:
            if field.default is True:
                command.add_argument(
                    f"--no-{name}", dest=name, action="store_const", const="false", default=argparse.SUPPRESS,
                    help="do not " + field.metadata["help"],
                )  # fmt: skip
                continue
            allowed = choices(name)
            command.add_argument(
                f"--{name.replace('_', '-')}", default=argparse.SUPPRESS,
                metavar="{" + ",".join(allowed) + "}" if allowed else type(field.default).__name__.upper(),
                help=field.metadata["help"].replace("%", "%%"),
            )  # fmt: skip


def _add_show(commands: Any) -> None:
    show = commands.add_parser("show", help="draw and count the cells of a run or a genotype file", allow_abbrev=False)
    show.add_argument("target", metavar="RUN|GENOTYPE", help="a run folder, a genotype file, or FILE:NAME")
    for name in ("channels", "layers", "image", "classes"):
        show.add_argument(f"--{name}", type=int, help=f"{name} of the derived network")
    show.add_argument("--stem", choices=("cifar", "imagenet"), help="stem of the derived network")
    show.add_argument("--out", type=Path, metavar="DIR", help="where the pictures go")
    show.add_argument("--json", action="store_true", help="print JSON")


def _add_profile(commands: Any) -> None:
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


def config_of(arguments: argparse.Namespace) -> SearchConfig:
    """Recipe, TOML file, flags and --set, in this order.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    recipe, overrides = _given(arguments)
    return recipe_named(recipe)(**overrides)


def _given(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The recipe's name, and the keys that the user gave."""
    overrides: dict[str, Any] = read_toml(arguments.config) if arguments.config else {}
    recipe = overrides.pop("recipe", "demo")
    if not isinstance(recipe, str):
        raise ConfigError(
            "recipe has the wrong type", got=repr(recipe), allowed=", ".join(RECIPES), next="msgdas search demo"
        )
    given = vars(arguments)
    for name in FIELDS:
        if name in given and name != "recipe":
            overrides[name] = parse_value(name, given[name])
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError("--set takes KEY=VALUE", got=text, allowed="KEY=VALUE", next="msgdas search --keys")
        overrides[name.strip()] = parse_value(name.strip(), value.strip())
    return arguments.recipe or recipe, overrides


def keys() -> str:
    """All configuration keys with the demo's values, as a TOML file that --config takes."""
    lines = []
    for name, value in dataclasses.asdict(demo()).items():
        text = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
        lines.append(f"# {FIELDS[name].metadata['help']}\n{name} = {text}")
    return "\n".join(lines)


def _search(arguments: argparse.Namespace) -> str:
    if arguments.keys:
        return keys()
    if arguments.resume:
        given = vars(arguments)
        extra = [name for name in FIELDS if name in given and name != "recipe"]
        extra += [name for name in ("recipe", "config", "out", "set") if given[name]]
        if extra:
            raise ConfigError(
                "--resume goes on with the run folder's own configuration", got=", ".join(extra),
                allowed="--resume RUN alone", next=f"msgdas search --resume {arguments.resume}",
            )  # fmt: skip
        from .result import summary
        from .searcher import resume

        return summary(resume(arguments.resume))
    config = config_of(arguments)
    if "budget" not in vars(arguments):
        from .result import summary
        from .searcher import search

        return summary(search(config, out=arguments.out))
    from .plan import plan_here
    from .plan_text import as_dict, brief
    from .result import summary
    from .searcher import search

    made = plan_here(config, arguments.budget, pins=_given(arguments)[1])
    print(brief(made), flush=True)
    return summary(search(made.config, out=arguments.out, plan=as_dict(made)))


def _plan(arguments: argparse.Namespace) -> str:
    config = config_of(arguments)
    # Processes may be forked only where nothing has used torch yet, see `plan_search`.
    workers = 1 if "torch" in sys.modules else os.cpu_count() or 1
    from .plan import plan

    return plan(
        config, pins=_given(arguments)[1], gpu=arguments.gpu, budget=arguments.budget, methods=arguments.methods,
        out=arguments.out, form="json" if arguments.json else "markdown" if arguments.markdown else "text",
        workers=workers,
    )  # fmt: skip


def _show(arguments: argparse.Namespace) -> str:
    from .show import show

    return show(
        arguments.target, channels=arguments.channels, layers=arguments.layers, image=arguments.image,
        classes=arguments.classes, stem=arguments.stem, out=arguments.out, as_json=arguments.json,
    )  # fmt: skip


def _profile(arguments: argparse.Namespace) -> str:
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
    from . import profiling
    from .rundir import default_path

    folder = arguments.out or default_path("profile")
    if arguments.run is not None:
        profiled = profiling.profile_run(arguments.run, arguments.steps, folder)
    elif arguments.pid is not None:
        profiled = profiling.profile_process(arguments.pid, arguments.seconds, folder)
    else:
        profiled = profiling.profile_steps(config_of(arguments), arguments.steps, folder)
    return json.dumps(profiled.timeline) if arguments.json else profiling.text_of(profiled)


def _doctor(arguments: argparse.Namespace) -> str:
    from .doctor import doctor

    return doctor(as_json=arguments.json)


COMMANDS = {"search": _search, "plan": _plan, "show": _show, "profile": _profile, "doctor": _doctor}


def share_processors() -> None:
    """Let OpenMP's threads sleep soon at a barrier, unless the user has said otherwise.

    By default they spin for milliseconds, which stalls every step beside one other busy process; on a quiet machine it
    makes no difference. torch's libgomp reads this when it loads.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def in_one_line(program: str, act: Callable[[], int], *, debug: bool) -> int:
    """What `act` returns; an error becomes one line on stderr and its exit code.

    Args:
        program: begins the line.
        debug: let errors through, with their traceback.
    """
    try:
        return act()
    except (EngineError, ProfileError) as error:
        if debug:
            raise
        print(f"{program}: {error}", file=sys.stderr)
        if isinstance(error, InterruptedSearchError):
            return SIGNAL_EXIT + error.signum
        return EXIT_CODES[type(error)]
    except BrokenPipeError:
        # The reader left (`msgdas show ... | head`): no traceback, and nothing more to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SIGNAL_EXIT + signal.SIGPIPE
    except KeyboardInterrupt:
        print(f"{program}: stopped by Ctrl-C", file=sys.stderr)
        return SIGNAL_EXIT + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, or that of EXIT_CODES, or 128 + a signal's number."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    share_processors()

    def act() -> int:
        parsed = parser().parse_args(words)
        print(COMMANDS[parsed.command](parsed), flush=True)
        return 0

    return in_one_line("msgdas", act, debug="--debug" in words)


def run() -> NoReturn:
    """The console script."""
    sys.exit(main())
