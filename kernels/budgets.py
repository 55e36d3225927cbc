"""`budgets.json`: what the kernels may use. `python -m msgdas.kernels.budgets` prints it as the docs show it.

limits: per kernel and architecture, set by hand; `cells` has those of cells that miss them. traffic: the most bytes
moved over the least, set by hand. kernels: per kernel and architecture, what was found when `python -m
msgdas.kernels.aot --update` last ran. made: when, and with which Triton.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("budgets.json")
COLUMNS = {
    "registers": "registers", "shared_bytes": "shared bytes", "instructions": "instructions", "wide_share": "128-bit",
    "matrix": "matrix", "per_tap": "per tap", "per_normalised_tap": "with BatchNorm",
}  # fmt: skip


def read() -> dict[str, Any]:
    """All of it."""
    return json.loads(PATH.read_text())


def write(budgets: dict[str, Any]) -> None:
    """Replace it, kernels in the order of their names."""
    budgets["kernels"] = dict(sorted(budgets["kernels"].items()))
    PATH.write_text(json.dumps(budgets, indent=1) + "\n")


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print one architecture's budgets, or one figure on all architectures, as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m msgdas.kernels.budgets", description=main.__doc__)
    parser.add_argument("--arch", default="sm_90", help="default: sm_90")
    parser.add_argument("--figure", choices=list(COLUMNS), help="this figure on all architectures instead")
    arguments = parser.parse_args(argv)
    kernels = read()["kernels"]
    if arguments.figure is None:
        heads, pick = list(COLUMNS.values()), [(arguments.arch, name) for name in COLUMNS]
    else:
        heads = list(dict.fromkeys(arch for archs in kernels.values() for arch in archs))
        pick = [(arch, arguments.figure) for arch in heads]
    print(_row(["kernel", *heads]))
    print("|---" * (len(heads) + 1) + "|")
    for kernel, archs in kernels.items():
        print(_row([kernel.removesuffix("_kernel"), *(archs.get(arch, {}).get(name, "") for arch, name in pick)]))


if __name__ == "__main__":
    main()
