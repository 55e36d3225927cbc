"""How much of a device's memory a search may take: `10GiB`, `24GB`, `80%` or `auto`.

A `Budget` is what the user wrote; `Budget.bytes_on` makes bytes of it for one device. `parse(str(budget))` is the
same budget again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from .errors import BudgetError, ProfileError, in_words

UNITS = {
    "TiB": 1 << 40,
    "TB": 10**12,
    "GiB": 1 << 30,
    "GB": 10**9,
    "MiB": 1 << 20,
    "MB": 10**6,
    "KiB": 1 << 10,
    "KB": 10**3,
    "B": 1,
}
ALLOWED = "a size as 10GiB or 24GB, a share of the device as 80%, or auto"
# More digits than any device has bytes; keeps a pasted number from becoming a long computation.
_TEXT = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z%]*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Budget:
    """Exactly one of the two is set; with neither it is `auto`, all that is free.

    Attributes:
        size_bytes: a size.
        percent: a share of the device's total memory, above 0 and at most 100.
    """

    size_bytes: int | None = None
    percent: Decimal | None = None

    def __post_init__(self) -> None:
        assert self.size_bytes is None or self.percent is None
        assert self.size_bytes is None or self.size_bytes > 0
        assert self.percent is None or 0 < self.percent <= 100

    def __str__(self) -> str:
        if self.percent is not None:
            return f"{self.percent.normalize():f}%"
        return "auto" if self.size_bytes is None else size_text(self.size_bytes)

    def bytes_on(self, *, total_bytes: int, free_bytes: int) -> int:
        """The budget in bytes on a device.

        Args:
            total_bytes: all of the device's memory; `80%` is a share of this.
            free_bytes: what this process could have now: what is free plus what it holds itself.

        Raises:
            BudgetError: more than is free, for others hold the rest, or more than the device has.
        """
        asked_bytes = self.asked_bytes(total_bytes=total_bytes, free_bytes=free_bytes)
        if asked_bytes > total_bytes:
            raise BudgetError(
                f"the budget {self} is above the device's {in_words(total_bytes)}",
                asked_bytes=asked_bytes,
                free_bytes=free_bytes,
                needed_bytes=None,
                next="take --budget auto or a smaller one",
            )
        if asked_bytes > free_bytes:
            held_bytes = total_bytes - free_bytes
            raise BudgetError(
                f"the budget {self} is above what is free, for others hold {in_words(held_bytes)}",
                asked_bytes=asked_bytes,
                free_bytes=free_bytes,
                needed_bytes=None,
                next="take --budget auto, or end what runs there (nvidia-smi lists it)",
            )
        return asked_bytes

    def asked_bytes(self, *, total_bytes: int, free_bytes: int) -> int:
        """What the text says, whether or not it is there; arguments as for `bytes_on`."""
        if self.percent is not None:
            return int(total_bytes * self.percent / 100)
        return free_bytes if self.size_bytes is None else self.size_bytes


def parse(text: str) -> Budget:
    """The budget that a text names; units as GiB (1024³) and GB (1000³), in that case or all lower.

    Raises:
        ProfileError: no number, no unit, a wrong or ambiguous one, nothing or more than all.
    """
    text = text.strip()
    if text.lower() == "auto":
        return Budget()
    match = _TEXT.fullmatch(text)
    if not match:
        raise ProfileError("a budget that cannot be read", got=repr(text[:40]), allowed=ALLOWED, next="--budget auto")
    number, unit = Decimal(match[1]), match[2]
    if unit == "%":
        if not 0 < number <= 100:
            raise ProfileError(
                "a share of a device's memory", got=repr(text), allowed="above 0% and at most 100%", next="--budget 80%"
            )
        return Budget(percent=number)
    size_bytes = int(number * _unit_bytes(text, match[1], unit))
    if not size_bytes:
        raise ProfileError("a budget of nothing", got=repr(text), allowed=ALLOWED, next="--budget auto")
    return Budget(size_bytes=size_bytes)


def _unit_bytes(text: str, number: str, unit: str) -> int:
    for name, unit_bytes in UNITS.items():
        if unit in (name, name.lower()):
            return unit_bytes
    letter = unit[:1].upper()
    if unit.upper() in ("K", "M", "G", "T") or (unit.upper() in UNITS and unit[-1] == "b"):
        hint = f"write {number}{letter}iB (1024 based) or {number}{letter}B (1000 based)"
    elif not unit:
        share = Decimal(number)
        hint = f"write {number}GiB" if share > 1 else f"write {(share * 100).normalize():f}% for a share"
    else:
        hint = "take --budget auto for all that is free"
    raise ProfileError("a budget without a clear unit", got=repr(text), allowed=f"{', '.join(UNITS)} or %", next=hint)


def size_text(size_bytes: int) -> str:
    """A size in the largest unit that writes it with at most three decimals, exactly: `1.5GiB`, `24GB`, `1023B`."""
    for name, unit_bytes in UNITS.items():
        thousandths, rest = divmod(size_bytes * 1000, unit_bytes)
        if not rest and thousandths >= 1000:
            return f"{(Decimal(thousandths) / 1000).normalize():f}{name}"
    return f"{size_bytes}B"
