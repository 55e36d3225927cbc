"""SIGTERM and Ctrl-C as a flag that every loop polls, so that a step ends before the program does."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """Context manager: inside it the first signal sets `raised`, a second one of the same kind acts at once.

    Previous handlers come back on leaving. Only for the main thread, as signal handlers are.

    Attributes:
        raised: number of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.raised: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for signum in SIGNALS:
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.raised == signum:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.raised = signum

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.raised is not None
