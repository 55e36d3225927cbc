"""What a user can get wrong about devices and budgets; engine/cli.py prints it in one line."""

from __future__ import annotations


def one_line(what: str, *, got: object = None, allowed: str = "", next: str = "") -> str:
    """A message for people: what is wrong, what was got, what is allowed, what to do next; parts may be missing."""
    parts = [what]
    if got is not None:
        parts.append(f"got {got}")
    if allowed:
        parts.append(f"allowed {allowed}")
    message = "; ".join(parts)
    return " ".join((f"{message}. Next: {next}" if next else message).split())


class ProfileError(Exception):
    """A device, a name, a size or a folder that cannot be used.

    Args:
        what: the thing that is wrong, as a short clause.
        got: the value met, shown as `got ...`.
        allowed: what would have been right, shown as `allowed ...`.
        next: a command or an action, shown as `Next: ...`.
    """

    def __init__(self, what: str, *, got: object = None, allowed: str = "", next: str = "") -> None:
        super().__init__(one_line(what, got=got, allowed=allowed, next=next))


class BudgetError(ProfileError):
    """A budget that this device, or this search, cannot keep.

    Attributes:
        asked_bytes: what the user allowed.
        free_bytes: what the device could give.
        needed_bytes: what the smallest step takes, None where that was not asked yet.
    """

    def __init__(self, what: str, *, asked_bytes: int, free_bytes: int, needed_bytes: int | None, next: str) -> None:
        self.asked_bytes = asked_bytes
        self.free_bytes = free_bytes
        self.needed_bytes = needed_bytes
        numbers = f"asked {in_words(asked_bytes)}, free {in_words(free_bytes)}"
        if needed_bytes is not None:
            numbers += f", needed {in_words(needed_bytes)}"
        super().__init__(f"{what}: {numbers}", next=next)


def in_words(size_bytes: int) -> str:
    """A size for people, to two decimals in MiB or GiB; `size_text` of budget.py is the exact one."""
    if abs(size_bytes) < 1 << 30:
        return f"{size_bytes / (1 << 20):.2f} MiB"
    return f"{size_bytes / (1 << 30):.2f} GiB"
