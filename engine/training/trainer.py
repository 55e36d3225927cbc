"""The training of a derived network: epochs of steps, and a run folder that can be resumed bit for bit.

The result is the last epoch's accuracy on the test images; the best epoch's is written down and chooses nothing.
"""

from __future__ import annotations

import dataclasses
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from ...profiles.device import process_rss_bytes
from ...profiles.errors import BudgetError
from ...profiles.meter import measure
from ...profiles.room import ReadRoom
from ..errors import FollowedError, InterruptedSearchError
from ..images.batches import Batch
from ..memory.guard import context_bytes, release, room_of
from ..run import checkpoint, rundir
from ..run.dist import Ranks, digest, images_of, ranks_here
from ..run.environment import environment
from ..run.rundir import RunFolder
from ..run.signals import StopFlag
from ..search.journal import Journal, held, last_checkpoint
from ..settings.train_config import TrainConfig, drop_path_rate, from_json, learning_rate
from ..supernet.exhausted import is_out_of_memory
from ..supernet.implementation import device_of
from .cost import cost_of
from .images import shared_images
from .micro_batches import fit_budget
from .scoring import JUDGED_BATCH, Scores, score
from .student import StepResult, Student, parts_of


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
    with ranks_here(config.dist_timeout_s, "train") as ranks, ExitStack() as stack:
        device = ranks.device(device_of(config))
        with ranks.together("the configuration") as meeting:
            images_of(config.batch, ranks.world)
            meeting.equal = digest(dataclasses.replace(config, data_root="").to_json().encode())

        def create() -> RunFolder[TrainConfig]:
            path = out or rundir.default_path(f"train-{config.recipe}")
            folder = RunFolder.create(path, config, environment())
            folder.write_json(rundir.GENOTYPE, config.cells.to_json_dict())
            return folder

        folder = stack.enter_context(held(ranks, create, from_json))
        read_room = stack.enter_context(room_of(device))
        return _Run(folder, device, read_room, ranks).run(None)


def resume(path: Path) -> TrainResult:
    """Go on from the newest good checkpoint of a run folder, or from the start where there is none yet."""
    with ranks_here(command="train") as ranks, ExitStack() as stack:
        folder = stack.enter_context(held(ranks, lambda: RunFolder.open(path, from_json), from_json))
        ranks.wait_for(folder.config.dist_timeout_s)
        device = ranks.device(device_of(folder.config))
        read_room = stack.enter_context(room_of(device))
        return _Run(folder, device, read_room, ranks).run(last_checkpoint(ranks, folder))


class _Run:
    """One process's part of a training."""

    def __init__(
        self, folder: RunFolder[TrainConfig], device: torch.device, read_room: ReadRoom, ranks: Ranks
    ) -> None:  # fmt: skip
        config = folder.config
        self.read_room, self.context_bytes = read_room, context_bytes(device, read_room)
        torch.set_num_threads(config.threads or ranks.share_of_processors(os.cpu_count() or 1))
        self.folder, self.config, self.device, self.ranks = folder, config, device, ranks
        self.images = shared_images(config, ranks, device)
        self.student = Student(config, len(self.images.classes), device, ranks)
        self.per_epoch = self.images.batches.per_epoch
        self.total_steps = self.per_epoch * config.epochs
        self.step, self.epoch_closed = 0, False
        self.accuracy, self.best_accuracy, self.peak_bytes = 0.0, 0.0, 0
        self.stop = StopFlag()

    def run(self, start: checkpoint.Checkpoint | None) -> TrainResult:
        if start is not None:
            self._restore(start)
        with self.ranks.together("the first weights") as meeting:
            meeting.equal = self.ranks.digest_of(self.student.network.parameters())
        title = f"training · {self.config.recipe} · C={self.config.channels} · {self.config.layers} cells"
        with ExitStack() as stack:
            stack.enter_context(self.images)
            stack.enter_context(self.stop)
            self.journal = stack.enter_context(
                Journal(
                    self.folder, writes=self.ranks.first, title=title, total_steps=self.total_steps, start=start,
                    epoch_closed=self.epoch_closed,
                )
            )  # fmt: skip
            self.peak_bytes = self.journal.largest_peak_bytes()
            self._begin(start)
            if self.step and self.step % self.per_epoch == 0 and not self.epoch_closed:
                self._close_epoch()
            while self.step < self.total_steps:
                self._one_step()
            self._keep_cost()
            with self.ranks.together("the report"):
                self.journal.report()
        return TrainResult(self.folder.path, self.accuracy, self.best_accuracy, self.peak_bytes)

    def _begin(self, start: checkpoint.Checkpoint | None) -> None:
        """Say what the training begins or goes on with, and fit its budget where it begins."""
        if self.images.feed is not None:
            self.journal.note(self.images.feed.note)
        before, asked = 1, self.config.accumulate
        if start is None:
            self.journal.row(
                {
                    "kind": "data", "step": 0, "images": self.images.fingerprint, "classes": len(self.images.classes),
                    "loader": self.images.feeder,
                }
            )  # fmt: skip
        else:
            self.journal.note(f"resumed after step {self.step} of {self.total_steps} from {start.path}")
            self.journal.event(self.step, "resumed", f"from {start.path.name}")
            before, asked = start.state.get("processes", 1), start.state["student"]["micro_batches"]
        self.journal.shared_out(before, self.ranks.world, batch=self.student.images)
        self.journal.cut(asked, self.student.micro_batches * self.ranks.world)
        if start is None:
            chosen = fit_budget(
                self.student, self.config.image, len(self.images.classes), self.read_room, self.context_bytes
            )
            if chosen is not None:
                self.journal.note(chosen)
                self.journal.event(0, "micro-batches", chosen)

    def _one_step(self) -> None:
        epoch, place = divmod(self.step, self.per_epoch)
        begin, waited_s = time.perf_counter(), self.images.batches.waited_s
        with self.ranks.together("a batch"):
            batch = self.images.batches.at(self.step)
        wait_s = self.images.batches.waited_s - waited_s
        # Once in each epoch: counting every storage slows a step down.
        if place == 0:
            result, peak = measure(lambda: self._take(batch, epoch), self.device)
            own_bytes = 0 if self.device.type == "cuda" else batch.images_BCHW.nbytes + batch.labels_B.nbytes
            self._keep_peak(peak.bytes + own_bytes + self.student.fixed_bytes(), peak.source, epoch)
        else:
            result = self._take(batch, epoch)
        seconds = time.perf_counter() - begin
        self.step += 1
        self.epoch_closed = False
        row = {
            "kind": "step", "epoch": epoch, "step": self.step, "loss": result.loss, "accuracy": result.accuracy,
            "grad_norm": result.grad_norm, "lr": learning_rate(self.config, epoch),
            "drop_rate": drop_path_rate(self.config, epoch),
            "time": {
                "step_s": seconds, "samples_per_s": self.config.batch / seconds, "wait_s": wait_s,
                "rss_bytes": process_rss_bytes(),
            },
        }  # fmt: skip
        self.journal.row(row)
        if self.step % self.per_epoch == 0:
            self._close_epoch()
        elif self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0:
            self._save()
        signum = self.ranks.most("the end of a step", self.stop.raised or 0)
        if signum:
            self._interrupt(signum)

    def _take(self, batch: Batch, epoch: int) -> StepResult:
        """One update; where memory runs out in its passes, of any process, all make them again in more parts."""
        with self.ranks.together("a batch's way to the device"):
            images, labels = batch.images_BCHW.to(self.device), batch.labels_B.to(self.device)
        while True:
            try:
                found = self.student.passes(images, labels, self.step, epoch)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                said = str(error).split("\n")[0].strip() or type(error).__name__
            # Outside the except block: the error's frames hold the failed step's tensors.
            self._step_down(said[:120])
        return self.student.update(found, self.step, epoch)

    def _step_down(self, said: str) -> None:
        """Cut batches into more parts.

        Raises:
            BudgetError: no more are possible.
        """
        student = self.student
        student.optimizer.zero_grad(set_to_none=True)
        release(self.device)
        parts = parts_of(student.images, student.micro_batches + 1)
        if parts == student.micro_batches:
            room = self.read_room()
            raise BudgetError(
                f"memory ran out in micro-batches of {student.images // parts} images ({said})",
                asked_bytes=room.total_bytes, free_bytes=room.free_bytes, needed_bytes=None,
                next="fewer channels or layers, or a device with more memory",
            )  # fmt: skip
        detail = f"{parts} in each process instead of {student.micro_batches}: memory ran out ({said})"
        student.micro_batches = parts
        self.journal.note(f"step {self.step + 1}: micro-batches: {detail}")
        self.journal.event(self.step + 1, "stepped down", f"micro-batches: {detail}")

    def _keep_peak(self, own_bytes: int, source: str, epoch: int) -> None:
        peak_bytes = self.ranks.most("the peak", own_bytes)
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        row = {
            "kind": "memory", "epoch": epoch, "step": self.step + 1, "phase": "training", "peak_bytes": peak_bytes,
            "source": source,
        }  # fmt: skip
        self.journal.row(row)

    def _close_epoch(self) -> None:
        """Judge the network, write the epoch's row, save."""
        begin = time.perf_counter()
        # A budget is kept while the network is judged too.
        fitting = self.student.images // self.student.micro_batches if self.config.budget else JUDGED_BATCH
        found: Scores | None = score(
            self.student.judged_logits, self.images.judge, self.device, self.stop, self.ranks,
            most=min(JUDGED_BATCH, fitting),
        )  # fmt: skip
        if found is None:
            self._interrupt()
        self.accuracy, self.best_accuracy = found.top1, max(self.best_accuracy, found.top1)
        row = {
            "kind": "epoch", "epoch": (self.step - 1) // self.per_epoch, "step": self.step,
            "val_loss": found.loss, "val_accuracy": found.top1, "val_top5": found.top5, "best": self.best_accuracy,
            "time": {"eval_s": time.perf_counter() - begin},
        }  # fmt: skip
        self.journal.row(row)
        self.epoch_closed = True
        self._save(last=self.step == self.total_steps)

    def _keep_cost(self) -> None:
        """Write what the network costs on this machine; a full disk does not undo a finished training."""
        if not self.ranks.first:
            return
        cost = cost_of(self.student, len(self.images.classes), self.peak_bytes)
        try:
            self.journal.json(rundir.COST, cost.to_json_dict())
        except OSError as error:
            self.journal.note(f"warning: no {rundir.COST} ({error})")

    def _state(self) -> dict[str, Any]:
        images = self.images
        return {
            "student": self.student.state_dict(), "epoch_closed": self.epoch_closed, "accuracy": self.accuracy,
            "best_accuracy": self.best_accuracy, "fingerprint": images.fingerprint, "classes": len(images.classes),
            "class_names": list(images.classes), "mean": list(images.mean), "std": list(images.std),
            "processes": self.ranks.world,
        }  # fmt: skip

    def _restore(self, start: checkpoint.Checkpoint) -> None:
        start.require_images(self.images.fingerprint, verb="train")
        self.student.load_state_dict(start.state["student"])
        self.step, self.epoch_closed = start.step, start.state["epoch_closed"]
        self.accuracy, self.best_accuracy = start.state["accuracy"], start.state["best_accuracy"]

    def _save(self, *, last: bool = False) -> None:
        self.journal.checkpoint(self.step, self._state, last=last)

    def _interrupt(self, signum: int = 0) -> NoReturn:
        signum = signum or self.ranks.most("a signal", self.stop.raised or 0)
        assert signum
        with self.ranks.together("the last checkpoint"):
            self._save(last=True)
        if not self.ranks.first:
            raise FollowedError("stopped by a signal", signum=signum)
        raise InterruptedSearchError(signum, next=f"msgdas train --resume {self.folder.path}")
