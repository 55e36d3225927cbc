"""Metrics rows as TensorBoard scalars, where tensorboard is installed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STEP_TAGS = {
    "loss": "loss/weight_step",
    "alpha_loss": "loss/alpha_step",
    "distill": "loss/distillation",
    "accuracy": "accuracy/weight_step",
    "grad_norm": "gradient_norm/weight",
    "alpha_grad_norm": "gradient_norm/alpha",
    "lr": "schedule/lr",
    "tau": "schedule/tau",
    "drop_rate": "schedule/drop_rate",
}
EPOCH_TAGS = {
    "val_loss": "loss/validation",
    "val_accuracy": "accuracy/validation",
    "teacher_loss": "teacher/teacher_loss",
    "student_loss": "teacher/student_loss",
    "teacher_used": "teacher/used",
}


class TensorBoardWriter:
    """Writes rows of kind `step`, `memory` and `epoch` as scalars; rows of other kinds are passed over.

    Args:
        path: the folder for event files, made where missing.
        done_step: W steps that a resumed search keeps; what an earlier event file says of later steps is
            hidden. None or 0 hides all of it.

    Attributes:
        active: False without tensorboard, after `close`, and after a write that failed (said once).
    """

    def __init__(self, path: Path, done_step: int | None = None) -> None:
        self._path = path
        self._writer: SummaryWriter | None = None
        self._threads: set[threading.Thread] = set()
        self._show_error = threading.excepthook
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._attempt(lambda: self._open(SummaryWriter, (done_step or 0) + 1))

    @property
    def active(self) -> bool:
        return self._writer is not None

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row, at its step."""
        writer = self._writer
        if writer is None:
            return

        def add() -> None:
            for tag, value in scalars(row):
                writer.add_scalar(tag, value, row["step"])
            if row["kind"] == "epoch":
                writer.flush()

        self._attempt(add)

    def close(self) -> None:
        """Write out what is pending; a second call does nothing."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._attempt(writer.close)
        if self._threads:
            threading.excepthook = self._show_error
            self._threads = set()

    def _open(self, kind: type[SummaryWriter], purge_step: int) -> None:
        before = set(threading.enumerate())
        self._writer = kind(str(self._path), purge_step=purge_step)
        self._threads = set(threading.enumerate()) - before
        threading.excepthook = self._passed_over

    def _passed_over(self, failed: threading.ExceptHookArgs) -> None:
        """A full disk ends tensorboard's own thread, whose error comes again in the next call: no traceback for it."""
        if not (isinstance(failed.exc_value, OSError) and failed.thread in self._threads):
            self._show_error(failed)

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
        # tensorboard takes no path that is not UTF-8.
        except (OSError, UnicodeError) as error:
            self._writer = None
            print(f"warning: no more TensorBoard events in {self._path} ({error}); the search goes on", file=sys.stderr)


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, value) of each number in a row."""
    kind = row.get("kind")
    if kind == "memory":
        yield f"memory/peak_bytes_{row['phase']}_step", row["peak_bytes"]
    tags = {"step": STEP_TAGS, "epoch": EPOCH_TAGS}.get(str(kind), {})
    for name, tag in tags.items():
        if row.get(name) is not None:
            yield tag, float(row[name])
    if not tags:
        return
    for name, value in row.get("time", {}).items():
        yield f"memory/{name}" if name.endswith("_bytes") else f"time/{name}", value
    for cell, count in row.get("skips", {}).items():
        yield f"skip_connects/{cell}", count
