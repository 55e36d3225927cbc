"""What a plan of a search says; `planning` makes it, `plan_text` and `plan_figure` show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...profiles.budget import Budget
from ...profiles.planner import MARGIN, Plan, Setting, usable_bytes
from ...profiles.predictor import Prediction
from ..settings.config import SearchConfig
from .machine import Machine
from .prediction import Target


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a setting at the wanted batch, and how far its batch could grow.

    Attributes:
        method: its name.
        setting: K, batch, policy, mode, dtype.
        prediction: for it.
        largest_batch: the largest that fits the budget, None where not even two images do.
    """

    method: str
    setting: Setting
    prediction: Prediction
    largest_batch: int | None


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """A plan for a search on a machine.

    Attributes:
        config: what to search with.
        machine: where.
        budget: as it was asked for.
        budget_bytes: what that is here.
        target: how the machine runs it.
        plan: the choice and its reasons.
        most_batch: the largest batch that was looked at.
        stages: K of the schedule and what is predicted for it, in the order of the search; one without a schedule.
        spread_bytes: peaks of some draws, in rising order; empty where every sample takes the same.
        rows: the table, empty unless it was asked for.
        alike: for methods of the table those that take what they take.
        left_out: why methods are not in it.
    """

    config: SearchConfig
    machine: Machine
    budget: Budget
    budget_bytes: int
    target: Target
    plan: Plan
    most_batch: int
    stages: tuple[tuple[int, Prediction], ...] = ()
    spread_bytes: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()
    alike: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def limit_bytes(self) -> int:
        return usable_bytes(self.budget_bytes, MARGIN)
