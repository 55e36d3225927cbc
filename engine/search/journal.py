"""What a search or a training writes and shows: rows, events, notes, checkpoints and files of its run folder.

Of several processes the first alone writes and shows; the others' journals take everything and do nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..images.feeding import changed_feeder
from ..memory.recording import Recording
from ..report.draw import save_cells
from ..report.report import refresh_parent, write_report
from ..run import checkpoint, rundir
from ..run.checkpoint import Checkpoint
from ..run.dist import Ranks
from ..run.progress import Progress
from ..run.rundir import Config, MetricsWriter, RunFolder
from ..run.tensorboard import TensorBoardWriter
from ..spaces.genotype import Genotype
from .halves import Halves


@contextmanager
def held(
    ranks: Ranks, claim: Callable[[], RunFolder[Config]], read: Callable[[str], Config]
) -> Iterator[RunFolder[Config]]:
    """The run folder that the first process creates or opens, and locks; the others know its path and configuration.

    Args:
        ranks: the processes.
        claim: creates or opens it.
        read: makes a configuration out of its JSON.

    Raises:
        EngineError: whatever `claim` or the lock raise, in the first process; the others follow.
    """
    with ExitStack() as stack:
        claimed: list[RunFolder[Config]] = []

        def facts() -> list[str]:
            folder = claim()
            stack.enter_context(folder.lock())
            claimed.append(folder)
            return [str(folder.path), folder.config.to_json()]

        path, text = ranks.share("the run folder", facts)
        yield claimed[0] if claimed else RunFolder(Path(path), read(text))


def last_checkpoint(ranks: Ranks, folder: RunFolder[Any]) -> Checkpoint | None:
    """The newest good checkpoint, read by the first process for all.

    Raises:
        CheckpointError: see `checkpoint.load`.
    """

    def read() -> list[Any]:
        checkpoint.clean(folder.path)
        found = checkpoint.load(folder.path, folder.config)
        for warning in found.warnings if found else ():
            print(f"warning: {warning}", file=sys.stderr)
        return [] if found is None else [found.step, found.state, str(found.path)]

    found = ranks.share("the checkpoint", read)
    return Checkpoint(found[0], found[1], Path(found[2]), ()) if found else None


class Journal:
    """Context manager around the run folder of a search or a training.

    Args:
        folder: whose it is.
        writes: whether this process writes and shows.
        title: of the progress.
        total_steps: of the run.
        start: the checkpoint that the run goes on from, None for a new one.
        epoch_closed: whether the last epoch of `start` had been judged.
    """

    def __init__(
        self, folder: RunFolder[Any], *, writes: bool, title: str, total_steps: int, start: Checkpoint | None,
        epoch_closed: bool,
    ) -> None:  # fmt: skip
        self.folder, self.writes = folder, writes
        self._title, self._total_steps = title, total_steps
        self._step = 0 if start is None else start.step
        self._resumed, self._epoch_closed = start is not None, epoch_closed
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self.writes:
            path = self.folder.path / rundir.METRICS
            if self._resumed:
                rundir.keep_until(path, self._step, self._epoch_closed)
            else:
                path.unlink(missing_ok=True)
            self._metrics = MetricsWriter(path)
            self._stack.callback(self._metrics.close)
            self._events = TensorBoardWriter(self.folder.path / "tb", self._step if self._resumed else None)
            self._stack.callback(self._events.close)
            self._progress = self._stack.enter_context(Progress(self._total_steps, self._title, self._step))
            self.note(f"run folder {self.folder.path}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def largest_peak_bytes(self) -> int:
        """Of the rows so far, 0 where there is none."""
        rows = self.folder.read_metrics() if self.writes else []
        return max((row.get("peak_bytes", 0) for row in rows), default=0)

    def row(self, row: dict[str, Any]) -> None:
        """Write a row of metrics.jsonl and show it, where the progress has a place for its kind."""
        if not self.writes:
            return
        self._metrics.append(row)
        self._events.write(row)
        show = {"step": self._progress.step, "memory": self._progress.memory, "epoch": self._progress.epoch}
        if row["kind"] in show:
            show[row["kind"]](row)

    def event(self, step: int, what: str, detail: str, **facts: float) -> None:
        """A row of kind `event`."""
        self.row({"kind": "event", "step": step, "what": what, "detail": detail, **facts})

    def note(self, text: str) -> None:
        """Show one line that stays."""
        if self.writes:
            self._progress.note(text)

    def started(self, start: Checkpoint | None, halves: Halves, *, batch: int, processes: int, parts: int) -> None:
        """Say what the search begins or goes on with, and what is no longer as it was.

        Args:
            start: the checkpoint, None for a new search.
            halves: what it learns from.
            batch: images of a step that each process takes.
            processes, parts: number of processes, and of micro-batches of a whole batch.
        """
        config, step, loader = self.folder.config, self._step, {"loader": halves.feeder}
        if halves.feed is not None:
            self.note(halves.feed.note)
        if start is None:
            facts = {"kind": "data", "step": 0, "images": halves.fingerprint, "classes": halves.classes}
            self.row(facts | loader)
        else:
            self.note(f"resumed after step {step} of {self._total_steps} from {start.path}")
            changed = changed_feeder(self.folder.read_metrics(), halves.feeder)
            if changed is not None:
                self.note(changed)
            self.row({"kind": "event", "step": step, "what": "resumed", "detail": f"from {start.path.name}"} | loader)
        before = 1 if start is None else start.state.get("processes", 1)
        asked = config.accumulate if start is None else start.state["learner"]["rung"]["accumulate"]
        self.shared_out(before, processes, batch=batch)
        self.cut(asked, parts)

    def shared_out(self, before: int, processes: int, *, batch: int) -> None:
        """Say where the number of processes is another; `batch` images of a step are each one's."""
        if before != processes:
            detail = f"{processes} instead of {before}, {batch} of a batch's {self.folder.config.batch} images each"
            self.note(f"processes: {detail}")
            self.event(self._step, "processes", detail)

    def cut(self, asked: int, parts: int) -> None:
        """Say where the number of a whole batch's micro-batches is another."""
        if parts != asked:
            detail = f"{parts} instead of {asked}, one or more for each process"
            self.note(f"micro-batches: {detail}; BatchNorm takes its statistics of smaller ones")
            self.event(self._step, "micro-batches", detail)

    def json(self, name: str, value: Any) -> None:
        """A file of the run folder."""
        if self.writes:
            self.folder.write_json(name, value)

    def cells(self, genotype: Genotype) -> None:
        """The result and its picture."""
        if self.writes:
            self.json(rundir.GENOTYPE, genotype.to_json_dict())
            save_cells(genotype, self.folder.path / "cells.svg", self.folder.path / "cells.png")

    def report(self) -> None:
        """The page about the run, and anew that of the search in whose folder it lies; neither ends the run."""
        if not self.writes:
            return
        path = self.folder.path
        try:
            self.note(f"report {write_report(path)}")
        except OSError as error:
            self.note(f"warning: no report of {path} ({error}); msgdas report {path} writes it")
        refreshed = refresh_parent(path)
        if refreshed:
            self.note(refreshed)

    def timeline(self, recording: Recording, step: int) -> None:
        """Of a step's memory."""
        if not self.writes:
            return
        try:
            recording.save(self.folder.path, step)
        except OSError as error:
            self.note(f"warning: no timeline of step {step} ({error}); the search goes on")

    def checkpoint(self, step: int, state: Callable[[], dict[str, Any]], *, last: bool = False) -> None:
        """Write a checkpoint; a full disk ends the run only where nothing would come after.

        Raises:
            RunFolderError: the last one cannot be saved.
        """
        if not self.writes:
            return
        config = self.folder.config
        warning = checkpoint.keep(self.folder.path, step, state(), config, verb=config.command, last=last)
        if warning is not None:
            self.note(warning)
