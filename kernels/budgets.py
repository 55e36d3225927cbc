"""`budgets.json`: what the kernels may use.

limits: per kernel and architecture, set by hand. traffic: the most bytes moved over the least, set by hand. kernels:
per kernel and architecture, what was found when `python -m msgdas.kernels.aot --update` last ran.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("budgets.json")


def read() -> dict[str, Any]:
    """All of it."""
    return json.loads(PATH.read_text())


def write(budgets: dict[str, Any]) -> None:
    """Replace it, kernels in the order of their names."""
    budgets["kernels"] = dict(sorted(budgets["kernels"].items()))
    PATH.write_text(json.dumps(budgets, indent=1) + "\n")
