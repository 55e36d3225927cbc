"""What the benchmarks' command lines share; nothing here imports torch."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..engine.cli import Parser, in_one_line, share_processors
from ..engine.settings.method import METHODS, method_named

PROGRAM = "python -m msgdas.bench"

# What whole numbers mean in every benchmark that has them.
SIZES: Mapping[str, str] = {
    "channels": "C of the first cell", "layers": "cells", "image": "side of the images in pixels",
    "batch": "images per step or batch", "rounds": "times that everything is measured, in turn",
    "threads": "CPU threads",
}  # fmt: skip

Main = Callable[[Sequence[str]], int]


def answer(main: Main, argv: Sequence[str] | None = None) -> int:
    """The exit code of a command's `main`; its errors become one line and a code of engine/cli.py."""
    words = list(sys.argv[1:] if argv is None else argv)
    share_processors()
    return in_one_line(PROGRAM, lambda: main([word for word in words if word != "--debug"]), debug="--debug" in words)


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """The options of all benchmarks: --json, --out, --debug.

    Args:
        name: of the subcommand.
        doc: a module's docstring; what follows the colon of its first line begins the help.
    """
    text = doc.partition(": ")[2]
    made = Parser(prog=f"{PROGRAM} {name}", description=text[:1].upper() + text[1:], allow_abbrev=False)
    made.add_argument("--json", action="store_true", help="print one JSON object per row instead of a table")
    made.add_argument("--out", type=Path, metavar="FILE", help="add the rows to this JSON Lines file")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def add_methods(made: argparse.ArgumentParser, default: str) -> None:
    """--methods and --space."""
    made.add_argument("--methods", default=default, metavar="A,B", help=f"of {', '.join(METHODS)} (default: {default})")
    made.add_argument("--space", default="darts", help="search space (default: darts)")


def add_sizes(made: argparse.ArgumentParser, **defaults: int) -> None:
    """Of the options in SIZES those that are named, each with its default; a number below 1 is refused."""
    for name, default in defaults.items():
        made.add_argument(f"--{name}", type=_positive, default=default, help=f"{SIZES[name]} (default: {default})")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, allowed 1 or more")
    return int(text)


def methods_listed(text: str) -> tuple[str, ...]:
    """The methods of a list as `darts,msg`; `all` stands for every one. Raises ConfigError for an unknown name."""
    names = list(METHODS) if text == "all" else [name.strip() for name in text.split(",")]
    return tuple(dict.fromkeys(method_named(name).name for name in names))


def again(name: str, argv: Sequence[str]) -> str:
    """The command that was given, without where its rows go."""
    words, skip = [], False
    for word in argv:
        if not skip and word != "--json" and word.partition("=")[0] != "--out":
            words.append(word)
        skip = word == "--out"
    return f"{PROGRAM} {name} {shlex.join(words)}".strip()
