"""A run's metrics rows as checked columns: what the report draws. Nothing here imports torch.

Rows come from a file that may be cut, old or edited, so a value of the wrong type counts as missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GenotypeError
from ..settings.config import SearchConfig
from ..settings.train_config import TrainConfig
from ..spaces.genotype import Genotype
from ..spaces.space import SearchSpace, space_named

Floats = NDArray[np.float64]

# The event that tells of the cell that random search chose at its end.
CHOSEN = "chosen by the super-net"
# No loss, byte count or time is as large: a file that says so is damaged, and no chart could show it.
LARGEST = 1e18
STEP_VALUES = ("epoch", "loss", "accuracy", "grad_norm", "lr", "drop_rate")
SEARCH_VALUES = ("distill", "alpha_loss", "alpha_grad_norm", "tau")
STEP_TIMES = ("step_s", "samples_per_s", "rss_bytes")


@dataclass(frozen=True, slots=True)
class Judged:
    """What the end of an epoch told of the network.

    Attributes:
        number: counted from 1.
        val_loss, val_accuracy: in a search of the derived cell with the super-net's weights, in a training of the test
            images; NaN where missing.
        eval_s: seconds that judging took.
    """

    number: int
    step: int
    val_loss: float
    val_accuracy: float
    eval_s: float


@dataclass(frozen=True, slots=True)
class Epoch(Judged):
    """What the end of an epoch of a search told.

    Attributes:
        teacher_loss, student_loss: running means of the cross-entropy; NaN where missing.
        teacher_used: whether the teacher was trusted at the end of the epoch.
        skips: skip-connects of the derived cell per kind.
        alpha: probabilities per kind, [edges, operations], None where they are not tables of the space.
        genotype: the cell so far, None where it is none.
    """

    teacher_loss: float
    student_loss: float
    teacher_used: bool
    skips: Mapping[str, int]
    alpha: Mapping[str, Floats] | None
    genotype: Genotype | None


@dataclass(frozen=True, slots=True)
class TrainEpoch(Judged):
    """What the end of an epoch of a training told.

    Attributes:
        top5: share of the test images, NaN where missing.
        best: the largest accuracy of the epochs so far, for the record; NaN where missing.
    """

    top5: float
    best: float


@dataclass(frozen=True, slots=True)
class Peaks:
    """Measured peaks of one phase: epoch (counted from 1) and bytes of live memory above what lived before."""

    epochs: Floats
    bytes: Floats


@dataclass(frozen=True, slots=True)
class Course:
    """What searches and trainings record alike.

    Attributes:
        step: numbers of the recorded steps (on weights), increasing.
        values: a column per name of value and time, NaN where a row has no such number.
        peaks: per phase, only phases that were measured.
        source: how the peaks were measured, as the run recorded it.
        classes: number of classes, where a row told it.
        events: rows of kind `event`.
    """

    config: SearchConfig | TrainConfig
    step: Floats
    values: Mapping[str, Floats]
    epochs: tuple[Judged, ...]
    peaks: Mapping[str, Peaks]
    source: str
    classes: int | None
    events: tuple[Mapping[str, Any], ...]

    @property
    def warmup_end_step(self) -> float:
        """The last recorded step of the warm-up, 0 without one."""
        within = self.step[self.values["epoch"] < self.config.warmup]
        return float(within[-1]) if len(within) else 0.0

    @property
    def steps_per_epoch(self) -> float | None:
        """W steps of one epoch, None before the first epoch was closed."""
        return self.epochs[0].step / self.epochs[0].number if self.epochs and self.epochs[0].step else None

    @property
    def finished(self) -> bool:
        """Whether the last epoch of the configuration was closed."""
        return bool(self.epochs) and self.epochs[-1].number >= self.config.epochs

    @property
    def elapsed_s(self) -> float:
        """Seconds in steps and in judging cells."""
        return float(np.nansum(self.values["step_s"]) + np.nansum([epoch.eval_s for epoch in self.epochs]))

    @property
    def samples_per_s(self) -> float:
        """Median over the steps after the first, which pays for warming up; NaN without any."""
        later = self.values["samples_per_s"][1:]
        later = later[np.isfinite(later)]
        return float(np.median(later)) if len(later) else math.nan

    @property
    def peak(self) -> tuple[float, str]:
        """(bytes, phase) of the largest measured step; (NaN, "") where none was measured."""
        found = [(float(np.max(peaks.bytes)), phase) for phase, peaks in self.peaks.items()]
        return max(found, default=(math.nan, ""))


@dataclass(frozen=True, slots=True)
class History(Course):
    """Everything a search has recorded so far."""

    config: SearchConfig
    epochs: tuple[Epoch, ...]
    space: SearchSpace

    @classmethod
    def of(cls, config: SearchConfig, rows: Sequence[Mapping[str, Any]]) -> History:
        """The history in the rows of metrics.jsonl; where a step or an epoch comes twice, the later row counts."""
        space, epochs = space_named(config.space), _by_number(_of_kind("epoch", rows), "epoch")
        return cls(
            config=config, space=space, epochs=tuple(_epoch(space, number, row) for number, row in epochs.items()),
            **_common(rows, (*STEP_VALUES, *SEARCH_VALUES), ("weight", "alpha")),
        )  # fmt: skip

    @property
    def chosen_accuracy(self) -> float:
        """Validation accuracy of the cell that random search chose at its end; NaN where no event tells it."""
        told = [event.get("val_accuracy") for event in self.events if event.get("what") == CHOSEN]
        return number_or_nan(told[-1]) if told else math.nan


@dataclass(frozen=True, slots=True)
class TrainHistory(Course):
    """Everything a training has recorded so far."""

    config: TrainConfig
    epochs: tuple[TrainEpoch, ...]

    @classmethod
    def of(cls, config: TrainConfig, rows: Sequence[Mapping[str, Any]]) -> TrainHistory:
        """As `History.of`."""
        epochs = _by_number(_of_kind("epoch", rows), "epoch")
        return cls(
            config=config,
            epochs=tuple(
                TrainEpoch(
                    **_judged(number, row), top5=number_or_nan(row.get("val_top5")), best=number_or_nan(row.get("best"))
                )
                for number, row in epochs.items()
            ),
            **_common(rows, STEP_VALUES, ("training",)),
        )


def number_or_nan(value: object) -> float:
    """A JSON number as float, NaN for anything else and for what is too large to be measured."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        return math.nan
    return float(value)


def _common(
    rows: Sequence[Mapping[str, Any]], value_names: tuple[str, ...], phases: tuple[str, ...]
) -> dict[str, Any]:  # fmt: skip
    """The fields that searches and trainings share."""
    steps, memory = _by_number(_of_kind("step", rows), "step"), _of_kind("memory", rows)
    values = {name: _column(row.get(name) for row in steps.values()) for name in value_names}
    values |= {name: _column(_times(row).get(name) for row in steps.values()) for name in STEP_TIMES}
    sources = [row["source"] for row in memory if isinstance(row.get("source"), str)]
    classes = [row["classes"] for row in rows if _is_whole(row.get("classes"), 1)]
    return {
        "step": np.array(list(steps), dtype=np.float64), "values": values, "peaks": _peaks(memory, phases),
        "source": sources[-1] if sources else "", "classes": classes[-1] if classes else None,
        "events": tuple(_of_kind("event", rows)),
    }  # fmt: skip


def _of_kind(kind: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get("kind") == kind]


def _is_whole(value: object, low: int) -> bool:
    return type(value) is int and low <= value < 1 << 53


def _by_number(rows: Sequence[Mapping[str, Any]], name: str) -> dict[int, Mapping[str, Any]]:
    found = {row[name]: row for row in rows if _is_whole(row.get(name), 0)}
    return dict(sorted(found.items()))


def _times(row: Mapping[str, Any]) -> Mapping[str, Any]:
    times = row.get("time")
    return times if isinstance(times, dict) else {}


def _column(values: Any) -> Floats:
    return np.array([number_or_nan(value) for value in values], dtype=np.float64)


def _peaks(rows: Sequence[Mapping[str, Any]], phases: tuple[str, ...]) -> dict[str, Peaks]:
    peaks = {}
    for phase in phases:
        own = _by_number([row for row in rows if row.get("phase") == phase], "epoch")
        sizes = _column(row.get("peak_bytes") for row in own.values())
        known = np.isfinite(sizes)
        if known.any():
            peaks[phase] = Peaks(np.array(list(own), dtype=np.float64)[known] + 1, sizes[known])
    return peaks


def _judged(index: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Judged`."""
    step = row.get("step")
    return {
        "number": index + 1, "step": step if _is_whole(step, 0) else 0,
        "val_loss": number_or_nan(row.get("val_loss")), "val_accuracy": number_or_nan(row.get("val_accuracy")),
        "eval_s": number_or_nan(_times(row).get("eval_s")),
    }  # fmt: skip


def _epoch(space: SearchSpace, index: int, row: Mapping[str, Any]) -> Epoch:
    skips = row.get("skips")
    skips = skips if isinstance(skips, dict) else {}
    return Epoch(
        **_judged(index, row),
        teacher_loss=number_or_nan(row.get("teacher_loss")),
        student_loss=number_or_nan(row.get("student_loss")),
        teacher_used=row.get("teacher_used") is True,
        skips={spec.kind: skips[spec.kind] for spec in space.cells if _is_whole(skips.get(spec.kind), 0)},
        alpha=_alpha(space, row.get("alpha")),
        genotype=_genotype(space, row.get("genotype")),
    )


def _alpha(space: SearchSpace, tables: object) -> dict[str, Floats] | None:
    if not isinstance(tables, dict):
        return None
    alpha = {}
    for spec in space.cells:
        rows = tables.get(spec.kind)
        shape = (len(spec.edges), space.num_operations)
        if not isinstance(rows, list) or len(rows) != shape[0]:
            return None
        if not all(isinstance(row, list) and len(row) == shape[1] for row in rows):
            return None
        alpha[spec.kind] = _column(value for row in rows for value in row).reshape(shape)
    return alpha if all(np.isfinite(table).all() for table in alpha.values()) else None


def _genotype(space: SearchSpace, data: object) -> Genotype | None:
    try:
        genotype = Genotype.from_json_dict(data)
    except GenotypeError:
        return None
    return genotype if genotype.space == space.family else None
