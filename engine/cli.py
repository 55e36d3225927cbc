"""The command line: parse, call one function, print; errors become one line and an exit code.

Nothing here imports torch at module level, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from ..profiles.errors import BudgetError, ProfileError, one_line
from .commands import compare, data, doctor, eval, export, latency, plan, profile, report, search, show, train
from .errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EngineError,
    FollowedError,
    GateError,
    GenotypeError,
    InterruptedSearchError,
    NoDeviceError,
    NumericsError,
    RanksError,
    RunFolderError,
)  # fmt: skip
from .settings.place import Place

COMMANDS: dict[str, Any] = {
    "search": search,
    "train": train,
    "eval": eval,
    "export": export,
    "plan": plan,
    "show": show,
    "report": report,
    "compare": compare,
    "latency": latency,
    "profile": profile,
    "doctor": doctor,
    "data": data,
}
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
    RanksError: 12,
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
    for module in COMMANDS.values():
        module.add(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


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
        if isinstance(error, FollowedError):
            return SIGNAL_EXIT + error.signum if error.signum else EXIT_CODES[error.of]
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
    except Exception as error:
        code, text = used_up(error)
        if debug or not code:
            raise
        print(f"{program}: {text}", file=sys.stderr)
        return code


def used_up(error: BaseException) -> tuple[int, str]:
    """Exit code and line of an error by which another library says that disk, memory, GPU or compiler failed, or
    (0, "")."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        next = "free some, then the same command, or --resume RUN where it had begun a run folder"
        return EXIT_CODES[RunFolderError], one_line("no room on the disk", got=error, next=next)
    from .supernet.exhausted import DOUBTFUL_TEXTS, is_out_of_memory

    got = str(error).partition("\n")[0] or type(error).__name__
    if is_out_of_memory(error) and not any(words in got for words in DOUBTFUL_TEXTS):
        return EXIT_CODES[BudgetError], one_line("memory ran out", got=got, next="a smaller --batch, or --budget auto")
    if got.startswith("CUDA error:"):
        next = "start the process anew: no call on this GPU can succeed in it; --resume RUN has the last checkpoint"
        return EXIT_CODES[ProfileError], one_line("the GPU failed", got=got, next=next)
    from ..kernels.backend import build_failure

    reason = build_failure(error)
    if reason is None:
        return 0, ""
    return EXIT_CODES[ConfigError], one_line(
        'impl = "triton" cannot run', got=reason, allowed="impl reference, which is plain PyTorch",
        next="the same command with --impl reference, and another --out",
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, or that of EXIT_CODES, or 128 + a signal's number."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    share_processors()

    def act() -> int:
        parsed = parser().parse_args(words)
        text = COMMANDS[parsed.command].run(parsed)
        if Place.of(os.environ).rank == 0:
            print(text, flush=True)
        return 0

    return in_one_line("msgdas", act, debug="--debug" in words)


def run() -> NoReturn:
    """The console script.

    One of many processes leaves without the interpreter's own end: threads of gloo that are met there abort the process
    now and then, and its exit code would be SIGABRT's.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may have bytes that the stream's encoding does not.
        sys.stdout.reconfigure(errors="backslashreplace")
    code = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
