"""Numbers with units as users write them: 600M multiply-accumulates, 5.5M parameters, 80ms."""

from __future__ import annotations

import math
import re
from typing import Literal

from ..errors import ConfigError

Resource = Literal["params", "macs", "latency"]
# The configuration's key of each resource's limit.
LIMITS: dict[str, Resource] = {"max_params": "params", "max_macs": "macs", "target_latency": "latency"}
# A latency is in milliseconds, the others are counts.
UNITS: dict[Resource, dict[str, float]] = {
    "params": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9},
    "macs": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    "latency": {"us": 1e-3, "ms": 1, "s": 1e3},
}
EXAMPLES: dict[Resource, str] = {"params": "5M", "macs": "600M", "latency": "80ms"}
_TEXT = re.compile(r"(\d{1,15}(?:\.\d{0,15})?(?:e\d{1,2})?)\s*([A-Za-z]*)", re.ASCII)


def parse_quantity(name: str, resource: Resource, text: str) -> float:
    """The number in `text`, a count or milliseconds.

    Args:
        name: of the key that holds it.
        resource: whose units apply: k, M and G for counts, T too for MACs; us, ms or s for a latency.

    Raises:
        ConfigError: where the text is no number above 0 with such a unit.
    """
    units, example = UNITS[resource], EXAMPLES[resource]
    found = _TEXT.fullmatch(text.strip())
    unit = found.group(2) if found else None
    value = float(found.group(1)) * units[unit] if found and unit in units else 0.0
    if not 0 < value < math.inf:
        known = ", ".join(unit for unit in units if unit)
        raise ConfigError(
            f"{name} is no {'time' if resource == 'latency' else 'number'} above 0", got=repr(text[:40]),
            allowed=f"as {example}; units {known}", next=f"--set {name}={example}",
        )  # fmt: skip
    return value


def quantity_text(resource: Resource, value: float, *, up: bool = False) -> str:
    """As `600 M MACs` or `80 ms`, four digits; rounded up where `up` is set, so that it is never below the value."""
    word = {"params": " parameters", "macs": " MACs", "latency": " ms"}[resource]
    if resource != "latency":
        for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if value >= size:
                value, word = value / size, f" {unit}{word}"
                break
    if up and value > 0:
        grain = 10.0 ** (math.floor(math.log10(value)) - 3)
        value = math.ceil(value / grain * (1 - 1e-12)) * grain
    return f"{value:.4g}{word}"
