"""Threads that read and decode images, and do not let a file that never comes end in silence.

They are threads, not processes: reading, decoding and resizing let go of the interpreter's lock, nothing is copied
between processes, and /dev/shm is not used.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from ..errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
# Without one image in this time a batch is given up: network file systems come back within it or not at all (ours).
STALL_S = 300.0
# What `close` waits for threads that still end a task: one that the interpreter meets inside a torch operator while it
# shuts down aborts the process, so those that can end are let end; one that hangs in a read is left behind (ours).
CLOSE_S = 5.0
# Pieces of a batch per worker: enough that one slow image does not leave the others idle (ours).
PIECES = 4


def processors() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of daemon threads.

    Args:
        count: of threads.
        stall_s: seconds without any progress after which `map` gives up.

    Attributes:
        count: of threads.
    """

    def __init__(self, count: int, *, stall_s: float = STALL_S) -> None:
        self.count, self.stall_s = count, stall_s
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # Daemons: one that hangs in a read must not keep the program from ending.
        self._threads = [
            threading.Thread(target=self._serve, name=f"images-{number}", daemon=True) for number in range(self.count)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads when they have done what was given to them; ones that hang are given `CLOSE_S`."""
        for _ in range(self.count):
            self._tasks.put(None)
        end = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], name_of: Callable[[Item], str]) -> list:
        """`function` of every item, in order.

        Raises:
            DataError: no item was finished for `stall_s`; it names the first of those that hang.
            BaseException: of the first item, by order, that raised.
        """
        job = _Job(function, items)
        piece = max(1, -(-len(items) // (PIECES * self.count)))
        for start in range(0, len(items), piece):
            self._tasks.put(partial(job.run, start, min(start + piece, len(items))))
        hanging = job.wait(self.stall_s)
        if hanging is not None:
            raise DataError(
                f"reading {name_of(items[hanging])} hangs", got=f"nothing for {self.stall_s:g} s",
                allowed="a file that can be read", next="check the disk or the network, or leave this file out",
            )  # fmt: skip
        return job.results

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()


class _Job:
    """The items of one `map`, done in pieces by several threads."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function, self.items = function, items
        self.results: list[Any] = [None] * len(items)
        self._errors: dict[int, BaseException] = {}
        self._begun: set[int] = set()
        self._left = len(items)
        self._given_up = False
        self._changed = threading.Condition()

    def run(self, start: int, end: int) -> None:
        for number in range(start, end):
            if self._given_up:
                return
            self._begun.add(number)
            try:
                self.results[number] = self.function(self.items[number])
            except BaseException as error:  # raised again by `wait`, in the thread that asked
                self._errors[number] = error
            with self._changed:
                self._begun.discard(number)
                self._left -= 1
                if not self._left:
                    self._changed.notify()

    def wait(self, stall_s: float) -> int | None:
        """Wait for all items; the number of one that hangs where nothing moves any more."""
        with self._changed:
            while self._left:
                before = self._left
                if not self._changed.wait(stall_s) and self._left == before:
                    self._given_up = True
                    return min(self._begun, default=0)
        if self._errors:
            raise self._errors[min(self._errors)]
        return None
