"""The search: epochs of steps, a run folder that can be resumed bit for bit, and the derived cell."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ...profiles.device import process_rss_bytes
from ...profiles.errors import BudgetError
from ...profiles.room import ReadRoom
from ..errors import FollowedError, InterruptedSearchError, NumericsError
from ..images.batches import Batch
from ..learning.assembly import build_learner
from ..learning.steps import AlphaResult, Moment, WeightResult
from ..memory.budgeting import MakePlan, guard_of, probed, shared_plan
from ..memory.guard import Descent, Guard, context_bytes, room_of
from ..memory.recording import Recording
from ..report.figures import SKIP_ALARM
from ..run import checkpoint, rundir
from ..run.dist import Ranks, digest, ranks_here, share_of
from ..run.environment import environment
from ..run.history import CHOSEN
from ..run.result import SearchResult
from ..run.rundir import RunFolder
from ..run.signals import StopFlag
from ..settings import schedule
from ..settings.config import SearchConfig, from_json
from ..settings.resources import limits_of
from ..spaces.derive import skip_count
from ..spaces.genotype import Genotype
from ..spaces.space import space_named
from ..supernet.implementation import device_of
from .evaluate import best_of, derived, evaluate, genotype_paths, random_cells
from .halves import shared_halves
from .journal import Journal, held, last_checkpoint


def search(
    config: SearchConfig, *, out: Path | None = None, plan: MakePlan | None = None,
    read_room: ReadRoom | None = None,
) -> SearchResult:  # fmt: skip
    """Search from the start, in a new run folder (runs/RECIPE-DATE by default).

    Args:
        config: what to search, and how.
        out: the new run folder.
        plan: makes the configuration that fits (see `shared_plan`); what it tells is kept there as plan.json.
        read_room: tells the memory that `config.budget` is held against; the device's own by default.

    Raises:
        EngineError: see errors.py; whatever was done is in the run folder.
        BudgetError: the budget is not there, or nothing fits it.
    """
    with ranks_here(config.dist_timeout_s) as ranks, ExitStack() as stack:
        device = ranks.device(device_of(config))
        with ranks.together("the configuration") as meeting:
            share_of(config, ranks.world)
            meeting.equal = digest(dataclasses.replace(config, data_root="").to_json().encode())
        facts: Mapping[str, Any] | None = None
        if plan is not None:
            config, facts = shared_plan(config, ranks, plan)

        def create() -> RunFolder:
            return RunFolder.create(out or rundir.default_path(config.recipe), config, environment())

        folder = stack.enter_context(held(ranks, create, from_json))
        own_room = stack.enter_context(room_of(device))
        if facts is not None and ranks.first:
            folder.write_json(rundir.PLAN, dict(facts))
        return _Run(folder, device, read_room or own_room, ranks).run(None)


def resume(path: Path, *, read_room: ReadRoom | None = None) -> SearchResult:
    """Go on from the newest good checkpoint of a run folder, or from the start where there is none yet."""
    with ranks_here() as ranks, ExitStack() as stack:
        folder = stack.enter_context(held(ranks, lambda: RunFolder.open(path, from_json), from_json))
        ranks.wait_for(folder.config.dist_timeout_s)
        device = ranks.device(device_of(folder.config))
        own_room = stack.enter_context(room_of(device))
        return _Run(folder, device, read_room or own_room, ranks).run(last_checkpoint(ranks, folder))


class _Run:
    """One process's part of a search."""

    def __init__(self, folder: RunFolder, device: torch.device, read_room: ReadRoom, ranks: Ranks) -> None:
        config = folder.config
        self.read_room, self.context_bytes = read_room, context_bytes(device, read_room)
        torch.set_num_threads(config.threads or ranks.share_of_processors(os.cpu_count() or 1))
        self.folder, self.config, self.device, self.ranks = folder, config, device, ranks
        self.mine = share_of(config, ranks.world)
        self.space = space_named(config.space)
        self.halves = shared_halves(config, ranks, folder.path)
        self.watch = self.halves.watch()
        self.limits = limits_of(config, self.halves.classes)
        self.learner, self.impl, self.impl_note = build_learner(self.mine, device, self.halves.classes, ranks=ranks)
        self.steps_per_epoch = self.halves.w.per_epoch
        self.total_steps = self.steps_per_epoch * config.epochs
        self.step, self.epoch_closed = 0, False
        self.at = 0  # the step being taken, or the last while an epoch is judged
        self.val_accuracy, self.peak_bytes = 0.0, 0
        self.stop = StopFlag()

    def run(self, start: checkpoint.Checkpoint | None) -> SearchResult:
        if start is not None:
            self._restore(start)
        with self.ranks.together("the first weights") as meeting:
            meeting.equal = self.ranks.digest_of([*self.learner.net.parameters(), *self.learner.sampler.parameters()])
        with ExitStack() as stack:
            stack.enter_context(self.halves)
            stack.enter_context(self.stop)
            self.journal = stack.enter_context(self._journal(start))
            self.peak_bytes = self.journal.largest_peak_bytes()
            if self.impl_note is not None:
                self.journal.note(self.impl_note)
            parts = self.learner.rung.over(self.ranks.world).accumulate
            self.journal.started(start, self.halves, batch=self.mine.batch, processes=self.ranks.world, parts=parts)
            with self.ranks.together("the budget"):
                self.guard = self._guard(resumed=start is not None)
            self.learner.follow(schedule.sampled(self.config, min(self._epoch(), self.config.epochs - 1)))
            if self.config.budget and start is None:
                self._fit()
                self._probe()
            if self.step and self.step % self.steps_per_epoch == 0 and not self.epoch_closed:
                self._close_epoch()
            while self.step < self.total_steps:
                self._one_step()
            return self._finish()

    def _journal(self, start: checkpoint.Checkpoint | None) -> Journal:
        title = f"{self.config.recipe} · {self.config.method} · K={self.config.k} · {self.config.mode}"
        return Journal(
            self.folder, writes=self.ranks.first, title=title, total_steps=self.total_steps, start=start,
            epoch_closed=self.epoch_closed,
        )  # fmt: skip

    def _guard(self, *, resumed: bool) -> Guard:
        return guard_of(
            self.mine, self.learner, self.device, classes=self.halves.classes, impl=self.impl,
            read_room=self.read_room, context_bytes=self.context_bytes, resumed=resumed, say=self._say_descent,
        )  # fmt: skip

    def _probe(self) -> None:
        """Hold the prediction against one real step before the first."""
        result, warning = probed(self.mine, self.guard, self.device, classes=self.halves.classes, impl=self.impl)
        self.journal.json(rundir.PROBE, result.to_dict())
        self.journal.note(result.line())
        if result.missed:
            self.journal.event(0, "prediction missed", result.line())
        if warning is not None:
            self.journal.note(f"warning: {warning}")

    def _fit(self) -> None:
        """Step down as far as the step to come needs it."""
        self.at = self.step + 1
        try:
            self.guard.before_step()
        except BudgetError:
            self._save()
            raise

    def _say_descent(self, descent: Descent) -> None:
        self.journal.note(f"step {self.at}: {descent}")
        self.journal.event(self.at, "stepped down", str(descent))

    def _epoch(self) -> int:
        """Of the step to come."""
        return self.step // self.steps_per_epoch

    def _follow_schedule(self) -> None:
        before, k = self.learner.sampler.k, schedule.sampled(self.config, self._epoch())
        self.learner.follow(k)
        if self.learner.sampler.k != before:
            detail = f"K={self.learner.sampler.k} instead of {before}"
            self.journal.note(f"epoch {self._epoch() + 1}: {detail}, as k_schedule says")
            self.journal.event(self.step + 1, "K of the schedule", detail)
        kept = schedule.kept(self.config, self._epoch())
        if kept is not None and kept < self.learner.sampler.num_alive:
            self.learner.keep_operations(kept)
            detail = f"every edge keeps {kept} operations"
            self.journal.note(f"epoch {self._epoch() + 1}: {detail}, as keep_ops says")
            self.journal.event(self.step + 1, "operations dropped", detail)

    def _moment(self) -> Moment:
        epoch = self._epoch()
        return Moment(
            self.step,
            schedule.temperature(self.config, epoch),
            schedule.learning_rate(self.config, epoch),
            schedule.drop_rate(self.config, epoch),
            schedule.guidance_active(self.config, epoch),
            schedule.cost_share(self.config, epoch),
        )

    def _one_step(self) -> None:
        """One alpha step (where one is due) and one W step, with everything that a user may want to see of them."""
        moment, epoch = self._moment(), self._epoch()
        place = self.step % self.steps_per_epoch
        if place == 0:
            self._follow_schedule()
        self._fit()
        begin, waited_s = time.perf_counter(), self.halves.waited_s
        alpha: AlphaResult | None = None
        images = 0
        # Once in each epoch, in the first step that has a step on alpha where there is one.
        measured = place == min(self.config.alpha_every, self.steps_per_epoch) - 1
        recording = Recording(self.learner, self.device) if measured else None
        with recording or nullcontext():
            if schedule.alpha_due(self.config, epoch, place):
                batch = (self.halves.alpha if self.config.alpha_half == "alpha" else self.halves.w).at(self.step)
                ahead = self.halves.w.at(self.step) if self.config.order == 2 else None
                alpha = self._checked("alpha", self._alpha_step(ahead), batch, moment, recording)
                images += len(batch.labels_B)
            batch = self.halves.w.at(self.step)
            result: WeightResult = self._checked("weight", self.learner.weight_step, batch, moment, recording)
            images += len(batch.labels_B)
        seconds, wait_s = time.perf_counter() - begin, self.halves.waited_s - waited_s
        self.step += 1
        self.epoch_closed = False
        row = {
            "kind": "step", "epoch": epoch, "step": self.step, "loss": result.loss, "distill": result.distill,
            "accuracy": result.accuracy, "alpha_loss": alpha.loss if alpha else None, "grad_norm": result.grad_norm,
            "alpha_grad_norm": alpha.grad_norm if alpha else None, "lr": moment.lr, "tau": moment.tau,
            "drop_rate": moment.drop_rate,
            "time": {
                "step_s": seconds, "samples_per_s": images / seconds, "wait_s": wait_s,
                "rss_bytes": process_rss_bytes(),
            },
        }  # fmt: skip
        self.journal.row(row)
        pace = self.watch.step(seconds, wait_s)
        if pace is not None:
            self.journal.note(pace)
        if result.grad_norm is None or (alpha is not None and alpha.grad_norm is None):
            detail = f"loss scale {self.learner.scale.scale:g} from now on, {self.learner.scale.skipped} so far"
            self.journal.event(self.step, "skipped, not finite", detail)
        if recording is not None:
            self.journal.timeline(recording, self.step)
        if self.step % self.steps_per_epoch == 0:
            self._close_epoch()
        elif self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0:
            self._save()
        self._stop_if_asked("the end of a step")

    def _alpha_step(self, ahead: Batch | None) -> Callable[[Tensor, Tensor, Moment], AlphaResult]:
        """The learner's, with the W step's batch where its gradient looks ahead."""
        if ahead is None:
            return self.learner.alpha_step
        train = ahead.images_BCHW.to(self.device), ahead.labels_B.to(self.device)
        return lambda images, labels, moment: self.learner.alpha_step(images, labels, moment, train)

    def _checked(
        self, phase: str, take: Callable[..., Any], batch: Batch, moment: Moment, recording: Recording | None
    ) -> Any:
        """Take a step; measure its memory where it is recorded; keep the evidence if it is not finite."""
        images, labels = self.guard.attempt(lambda: self._moved(batch))
        try:
            if recording is None:
                return self.guard.attempt(lambda: take(images, labels, moment))
            result, peak = self.guard.attempt(lambda: recording.measure(lambda: take(images, labels, moment)))
        except NumericsError as error:
            self._dump(error, phase, batch)
            if self.ranks.first:
                raise
            raise FollowedError(str(error), of=NumericsError) from None
        peak_bytes = self.ranks.most("the peak", peak.bytes)
        row = {
            "kind": "memory", "epoch": moment.step // self.steps_per_epoch, "step": moment.step + 1, "phase": phase,
            "peak_bytes": peak_bytes, "source": peak.source,
        }  # fmt: skip
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        self.guard.measured(peak.bytes + images.nbytes + labels.nbytes)
        self.journal.row(row)
        return result

    def _moved(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with self.ranks.together("a batch's way to the device"):
            return batch.images_BCHW.to(self.device), batch.labels_B.to(self.device)

    def _dump(self, error: NumericsError, phase: str, batch: Batch) -> None:
        sampler = self.learner.sampler
        images = self.ranks.every("the images of a failed step", batch.indices_B.tolist())
        self.journal.json(
            f"numerics-{self.step + 1}.json",
            {
                "error": str(error), "phase": phase, "step": self.step + 1,
                "alpha": {kind: repr(alpha.tolist()) for kind, alpha in sampler.alpha.items()},
                "images": images,
            },
        )  # fmt: skip

    def _close_epoch(self) -> None:
        """Judge the cell so far, write the epoch's row, save."""
        begin = time.perf_counter()
        epoch = (self.step - 1) // self.steps_per_epoch
        guidance, sampler = self.learner.guidance, self.learner.sampler
        chosen = self.config.choose == "supernet"
        seed = self.config.seed + 1 + epoch
        genotype = random_cells(self.space, seed, 1, self.limits)[0] if chosen else derived(sampler, self.limits)
        paths = genotype_paths(self.space, genotype, self.device)

        judged = self.guard.attempt(
            lambda: evaluate(self.learner.net, paths, self._held(0), self.device, self.stop, self.ranks)
        )
        if judged is None:
            self._interrupt()
        self.val_accuracy = judged[1]
        skips = skip_count(genotype)
        row = {
            "kind": "epoch", "epoch": epoch, "step": self.step, "val_loss": judged[0], "val_accuracy": judged[1],
            "teacher": guidance.kind, "teacher_used": guidance.trusted and schedule.guidance_active(self.config, epoch),
            "teacher_loss": guidance.teacher_loss, "student_loss": guidance.student_loss, "skips": skips,
            "alpha": {kind: p.tolist() for kind, p in sampler.probabilities().items()},
            "genotype": genotype.to_json_dict(),
            "costs": {limit.table.resource: limit.table.of(genotype) for limit in self.limits},
            "expected_cost": self.learner.cost.value() if self.learner.cost else None,
            "time": {"eval_s": time.perf_counter() - begin},
        }  # fmt: skip
        self.journal.row(row)
        for kind, count in skips.items():
            if kind != "reduce" and count >= SKIP_ALARM and schedule.alpha_trains(self.config, epoch):
                self.journal.note(f"{kind} cell has {count} skip-connects: a sign of collapse if it grows")
        self.epoch_closed = True
        last = self.step == self.total_steps
        with self.ranks.together("the last checkpoint") if last else nullcontext():
            self._save(last=last)

    def _held(self, count: int) -> Iterable[Batch]:
        """The first batches of the alpha half as cells are judged on them, all of `eval_images` for 0."""
        size = max(2, self.learner.rung.images(self.mine.batch))
        held = self.halves.alpha.sequential(self.config.eval_images, size)
        return itertools.islice(held, count) if count else held

    def _best_random_cell(self) -> Genotype:
        cells = random_cells(self.space, self.config.seed, self.config.candidates, self.limits)
        self.journal.note(f"{len(cells)} random cells compete with the super-net's weights")
        found = self.guard.attempt(
            lambda: best_of(cells, self.learner.net, self._held, self.device, self.stop, self.ranks)
        )
        if found is None:
            self._interrupt()
        genotype, self.val_accuracy = found
        detail = f"validation accuracy {self.val_accuracy:.1%}, of {len(cells)} random cells"
        self.journal.event(self.step, CHOSEN, detail, val_accuracy=self.val_accuracy)
        return genotype

    def _state(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(), "epoch_closed": self.epoch_closed,
            "val_accuracy": self.val_accuracy, "fingerprint": self.halves.fingerprint, "processes": self.ranks.world,
        }  # fmt: skip

    def _restore(self, start: checkpoint.Checkpoint) -> None:
        start.require_images(self.halves.fingerprint, verb="search")
        self.learner.load_state_dict(start.state["learner"])
        self.step, self.epoch_closed = start.step, start.state["epoch_closed"]
        self.val_accuracy = start.state["val_accuracy"]

    def _save(self, *, last: bool = False) -> None:
        self.journal.checkpoint(self.step, self._state, last=last)

    def _stop_if_asked(self, what: str) -> None:
        """End the search where a signal has come to one of its processes."""
        signum = self.ranks.most(what, self.stop.raised or 0)
        if signum:
            self._interrupt(signum)

    def _interrupt(self, signum: int = 0) -> NoReturn:
        signum = signum or self.ranks.most("a signal", self.stop.raised or 0)
        assert signum
        with self.ranks.together("the last checkpoint"):
            self._save(last=True)
        if not self.ranks.first:
            raise FollowedError("stopped by a signal", signum=signum)
        raise InterruptedSearchError(signum, next=f"msgdas search --resume {self.folder.path}")

    def _finish(self) -> SearchResult:
        chosen = self.config.choose == "supernet"
        genotype = self._best_random_cell() if chosen else derived(self.learner.sampler, self.limits)
        for limit in self.limits:
            self.journal.note(f"derived network: {limit.told(genotype)}")
        with self.ranks.together("the result"):
            self.journal.cells(genotype)
            self.journal.report()
        self._stop_if_asked("the end")
        return SearchResult(self.folder.path, genotype, self.val_accuracy, self.peak_bytes)
