"""The one error of this package."""

from __future__ import annotations


class KernelError(ValueError):
    """A tensor or setting that a kernel cannot take, found before anything is launched.

    Args:
        argument: name of the argument.
        got: what it is.
        allowed: what it may be.
    """

    def __init__(self, argument: str, *, got: object, allowed: str) -> None:
        super().__init__(f"{argument}: got {got}; allowed: {allowed}")
        self.argument = argument
