"""`python -m msgdas.bench COMMAND`: what every search method costs and finds, side by side in one super-net."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

from ..engine.errors import ConfigError
from . import command

# command: (module, what it does); a module is imported when its command is given.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "memory": ("memory", "peak memory of a search step per image, every method and policy; under two minutes"),
    "speed": ("speed", "time of a search step, all variants in turn in one process; some minutes"),
    "quality": (
        "quality",
        "what searches on NAS-Bench-201 find, judged by its table; hours, goes on where it was",
    ),
    "ranking": ("ranking", "what the losses of a super-net say of that table's cells, before alpha learns; minutes"),
    "table": ("table_search", "alpha learned on that table in place of a super-net; seconds"),
    "chance": ("nasbench", "what chance and single cells score in that table; seconds"),
    "ablations": ("ablations", "one part of the method changed at a time, judged as quality does; hours"),
    "collapse": ("collapse", "skip-connects over time on spaces where DARTS collapses; an hour"),
    "kernels": ("kernels", "time of the C++ kernels; traffic and predictions of the Triton kernels; two minutes"),
    "loaders": ("loaders", "CPU time of an image: the loaders against ImageFolder with PIL; a minute"),
    "train": ("train", "a training step of a derived network against plain eager NCHW; a minute"),
    "recording": ("recording", "what the memory timeline costs the step that it is taken of; half a minute"),
    "gpu": ("gpu", "the kernels' gates and steps on a CUDA device, as `make gpu` runs them; minutes"),
    "latency": ("latency", "latencies of random cells against their prediction; half a minute"),
    "page": ("page", "write docs/benchmarks.md and its pictures from the committed results"),
}


def usage() -> str:
    lines = "".join(f"  {name:10} {what}\n" for name, (_, what) in COMMANDS.items())
    return (
        f"usage: {command.PROGRAM} COMMAND [OPTIONS]\n\n{__doc__.partition(': ')[2]}\n\n{lines}\n"
        f"{command.PROGRAM} COMMAND --help lists a command's options.\n"
    )


def dispatch(argv: Sequence[str]) -> int:
    """Run the command that the first word names.

    Raises:
        ConfigError: for another word, or none.
    """
    name, *rest = argv or [""]
    if name in ("-h", "--help"):
        print(usage(), end="")
        return 0
    if name not in COMMANDS:
        raise ConfigError(
            "unknown benchmark" if name else "no benchmark was named", got=name or None,
            allowed=", ".join(COMMANDS), next=f"{command.PROGRAM} --help",
        )  # fmt: skip
    module = importlib.import_module(f".{COMMANDS[name][0]}", __package__)
    return int(module.main(rest))


if __name__ == "__main__":
    sys.exit(command.answer(dispatch))
