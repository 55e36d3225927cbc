"""The training of a derived network: epochs of steps, and a run folder that can be resumed bit for bit.

The result is the last epoch's accuracy on the test images; the best epoch's is written down and chooses nothing.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import torch

from ..profiles.device import process_rss_bytes
from ..profiles.meter import measure
from ..profiles.room import ReadRoom
from . import checkpoint, rundir
from .batches import ALONE, Batches, dataset_fingerprint, generator
from .data import load
from .environment import environment
from .errors import CheckpointError, InterruptedSearchError
from .feeding import Feed
from .guard import room_of
from .images import Encoded
from .implementation import device_of
from .inputs import encoded, resized
from .micro_batches import fit_budget
from .progress import Progress
from .rundir import MetricsWriter, RunFolder
from .scoring import Scores, judge_of, score
from .signals import StopFlag
from .student import StepResult, Student
from .tensorboard import TensorBoardWriter
from .train_config import TrainConfig, drop_path_rate, from_json, learning_rate


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished training came to.

    Attributes:
        path: the run folder.
        accuracy: top-1 on the test images after the last epoch, 0 to 1.
        best_accuracy: of the best epoch, for the record.
        peak_bytes: the largest measured peak of a step.
    """

    path: Path
    accuracy: float
    best_accuracy: float
    peak_bytes: int


def train(config: TrainConfig, *, out: Path | None = None) -> TrainResult:
    """Train from the start, in a new run folder (runs/train-RECIPE-DATE by default).

    Raises:
        EngineError: see errors.py; whatever was done is in the run folder.
        BudgetError: the budget is not there, or two images do not fit it.
    """
    device = device_of(config)
    folder = RunFolder.create(out or rundir.default_path(f"train-{config.recipe}"), config, environment())
    folder.write_json(rundir.GENOTYPE, config.cells.to_json_dict())
    with folder.lock(), room_of(device) as read_room:
        return _Run(folder, device).run(None, read_room)


def resume(path: Path) -> TrainResult:
    """Go on from the newest good checkpoint of a run folder, or from the start where there is none yet."""
    folder = RunFolder.open(path, from_json)
    device = device_of(folder.config)
    with folder.lock(), room_of(device) as read_room:
        checkpoint.clean(path)
        found = checkpoint.load(path, folder.config)
        for warning in found.warnings if found else ():
            print(f"warning: {warning}", file=sys.stderr)
        return _Run(folder, device).run(found, read_room)


class _Run:
    """One process's part of a training."""

    def __init__(self, folder: RunFolder[TrainConfig], device: torch.device) -> None:
        config = folder.config
        torch.set_num_threads(config.threads or os.cpu_count() or 1)
        self.folder, self.config, self.device = folder, config, device
        dataset = load(config)
        indices = torch.randperm(len(dataset.labels), generator=generator(config.seed, "subset"))
        indices = indices[: config.limit] if config.limit else indices
        self.feed = Feed(cast("Encoded", dataset), config, ALONE, device) if resized(config) else None
        self.batches = Batches(
            dataset, indices, batch=config.batch, seed=config.seed, stream="train", augment=config.augment,
            cutout=config.cutout, prefetch=config.prefetch if encoded(config) else 0,
            source=None if self.feed is None else self.feed.source("train"),
        )  # fmt: skip
        self.judge = judge_of(config, config.eval_images)
        self.classes = len(dataset.classes)
        self.fingerprint = dataset_fingerprint(dataset.labels, indices)
        self.student = Student(config, self.classes, device)
        self.total_steps = self.batches.per_epoch * config.epochs
        self.step, self.epoch_closed = 0, False
        self.accuracy, self.best_accuracy, self.peak_bytes = 0.0, 0.0, 0
        self.stop = StopFlag()

    def run(self, start: checkpoint.Checkpoint | None, read_room: ReadRoom) -> TrainResult:
        if start is not None:
            self._restore(start)
        metrics_path = self.folder.path / rundir.METRICS
        if start is None:
            metrics_path.unlink(missing_ok=True)
        else:
            rundir.keep_until(metrics_path, self.step, self.epoch_closed)
        for row in self.folder.read_metrics():
            self.peak_bytes = max(self.peak_bytes, row.get("peak_bytes", 0))
        title = f"training · {self.config.recipe} · C={self.config.channels} · {self.config.layers} cells"
        with ExitStack() as stack:
            if self.feed is not None:
                stack.callback(self.feed.close)
            stack.enter_context(self.batches)
            self.metrics = MetricsWriter(metrics_path)
            stack.callback(self.metrics.close)
            self.events = TensorBoardWriter(self.folder.path / "tb", self.step if start is not None else None)
            stack.callback(self.events.close)
            stack.enter_context(self.stop)
            self.progress = stack.enter_context(Progress(self.total_steps, title, self.step))
            self.progress.note(f"run folder {self.folder.path}")
            if self.feed is not None:
                self.progress.note(self.feed.note)
            if start is None:
                self._begin(read_room)
            else:
                self.progress.note(f"resumed after step {self.step} of {self.total_steps} from {start.path}")
                self._event("resumed", f"from {start.path.name}")
            if self.step and self.step % self.batches.per_epoch == 0 and not self.epoch_closed:
                self._close_epoch()
            while self.step < self.total_steps:
                self._one_step()
        return TrainResult(self.folder.path, self.accuracy, self.best_accuracy, self.peak_bytes)

    def _begin(self, read_room: ReadRoom) -> None:
        self._write({"kind": "data", "step": 0, "images": self.fingerprint, "classes": self.classes})
        chosen = fit_budget(self.student, self.config.image, self.classes, read_room)
        if chosen is not None:
            self.progress.note(chosen)
            self._event("micro-batches", chosen)

    def _one_step(self) -> None:
        epoch, place = divmod(self.step, self.batches.per_epoch)
        begin = time.perf_counter()
        batch = self.batches.at(self.step)
        images, labels = batch.images_BCHW.to(self.device), batch.labels_B.to(self.device)

        def take() -> StepResult:
            return self.student.step(images, labels, self.step, epoch)

        # Once in each epoch: counting every storage slows a step down.
        if place == 0:
            result, peak = measure(take, self.device)
            self._keep_peak(peak.bytes + self.student.fixed_bytes(), peak.source, epoch)
        else:
            result = take()
        seconds = time.perf_counter() - begin
        self.step += 1
        self.epoch_closed = False
        row = {
            "kind": "step", "epoch": epoch, "step": self.step, "loss": result.loss, "accuracy": result.accuracy,
            "grad_norm": result.grad_norm, "lr": learning_rate(self.config, epoch),
            "drop_rate": drop_path_rate(self.config, epoch),
            "time": {"step_s": seconds, "samples_per_s": len(labels) / seconds, "rss_bytes": process_rss_bytes()},
        }  # fmt: skip
        self._write(row)
        self.progress.step(row)
        if self.step % self.batches.per_epoch == 0:
            self._close_epoch()
        elif self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0:
            self._save()
        if self.stop():
            self._interrupt()

    def _keep_peak(self, peak_bytes: int, source: str, epoch: int) -> None:
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        row = {
            "kind": "memory", "epoch": epoch, "step": self.step + 1, "phase": "training", "peak_bytes": peak_bytes,
            "source": source,
        }  # fmt: skip
        self._write(row)
        self.progress.memory(row)

    def _close_epoch(self) -> None:
        """Judge the network, write the epoch's row, save."""
        begin = time.perf_counter()
        found: Scores | None = score(self.student.judged_logits, self.judge, self.device, self.stop)
        if found is None:
            self._interrupt()
        self.accuracy, self.best_accuracy = found.top1, max(self.best_accuracy, found.top1)
        row = {
            "kind": "epoch", "epoch": (self.step - 1) // self.batches.per_epoch, "step": self.step,
            "val_loss": found.loss, "val_accuracy": found.top1, "val_top5": found.top5, "best": self.best_accuracy,
            "time": {"eval_s": time.perf_counter() - begin},
        }  # fmt: skip
        self._write(row)
        self.progress.epoch(row)
        self.epoch_closed = True
        self._save(last=self.step == self.total_steps)

    def _write(self, row: dict[str, Any]) -> None:
        self.metrics.append(row)
        self.events.write(row)

    def _event(self, what: str, detail: str) -> None:
        self._write({"kind": "event", "step": self.step, "what": what, "detail": detail})

    def _state(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(), "epoch_closed": self.epoch_closed, "accuracy": self.accuracy,
            "best_accuracy": self.best_accuracy, "fingerprint": self.fingerprint, "classes": self.classes,
        }  # fmt: skip

    def _restore(self, start: checkpoint.Checkpoint) -> None:
        if start.state["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"checkpoint {start.path} was made with other images", got=self.fingerprint,
                allowed=start.state["fingerprint"], next="put the data back, or train anew without --resume",
            )  # fmt: skip
        self.student.load_state_dict(start.state["student"])
        self.step, self.epoch_closed = start.step, start.state["epoch_closed"]
        self.accuracy, self.best_accuracy = start.state["accuracy"], start.state["best_accuracy"]

    def _save(self, *, last: bool = False) -> None:
        """Write a checkpoint; a full disk ends the training only where nothing would come after."""
        warning = checkpoint.keep(self.folder.path, self.step, self._state(), self.config, verb="train", last=last)
        if warning is not None:
            self.progress.note(warning)

    def _interrupt(self) -> NoReturn:
        assert self.stop.raised is not None
        self._save(last=True)
        raise InterruptedSearchError(self.stop.raised, next=f"msgdas train --resume {self.folder.path}")
