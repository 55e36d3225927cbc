"""Runs side by side: their names, their measures, and which of them differ in nothing but their seed.

Such runs are a group: mean and standard deviation of those that have finished, never the best of them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..run.history import LARGEST
from .cost import MeasuredCost
from .subject import SearchRun, TrainRun, read_run
from .text import duration

MIB = 1 << 20
MAX_NAMES = 4

Run = SearchRun | TrainRun


@dataclass(frozen=True, slots=True)
class Measure:
    """A quantity of every run.

    Attributes:
        key: in JSON, with its unit.
        title: in tables, with its unit.
        of: reads it; NaN where the run does not tell.
        text: shows it.
        at: what must be equal among runs whose mean is taken, such as the machine that it was measured on.
        always: whether it has its column where no run tells it.
    """

    key: str
    title: str
    of: Callable[[Run], float]
    text: Callable[[float], str]
    at: Callable[[Run], object] = lambda run: None
    always: bool = True


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the finished runs of a group.

    Attributes:
        mean: NaN where none has finished.
        sd: of a sample (n - 1); NaN for fewer than two.
        n: how many were averaged.
    """

    mean: float
    sd: float
    n: int


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        names: of the runs, in their order.
        spreads: by the key of each measure.
    """

    names: tuple[str, ...]
    runs: tuple[Run, ...]
    spreads: Mapping[str, Spread]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs side by side.

    Attributes:
        groups: in the order of their first runs.
        differing: by command (search, train), the keys in which its runs differ, each with a value per run's name.
    """

    groups: tuple[Group, ...]
    differing: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @property
    def measures(self) -> list[Measure]:
        """Those that have a column."""
        runs = [run for _, run in self.named]
        return [one for one in MEASURES if one.always or any(abs(one.of(run)) < LARGEST for run in runs)]

    @property
    def measured(self) -> list[tuple[str, MeasuredCost]]:
        """What the network costs of those runs that tell it."""
        found = [(name, _measured(run)) for name, run in self.named]
        return [(name, cost) for name, cost in found if cost is not None]

    @property
    def notes(self) -> list[str]:
        """What the measures are."""
        return [*NOTES, *([MEASURED_NOTE] if self.measured else [])]

    @property
    def head(self) -> tuple[str, ...]:
        """Of the table."""
        return "run", "what", *(measure.title for measure in self.measures)

    @property
    def named(self) -> list[tuple[str, Run]]:
        """All runs with their names."""
        return [pair for group in self.groups for pair in zip(group.names, group.runs, strict=True)]


def _peak_bytes(run: Run) -> float:
    return run.history.peak[0]


def _usual(run: Run, name: str) -> float:
    return math.nan if run.usual_cost is None else float(getattr(run.usual_cost[1], name))


def _measured(run: Run) -> MeasuredCost | None:
    return run.measured if isinstance(run, TrainRun) else None


def _latency_ms(run: Run) -> float:
    cost = _measured(run)
    return math.nan if cost is None else cost.latency_ms.median


def _inference_peak_bytes(run: Run) -> float:
    cost = _measured(run)
    return math.nan if cost is None else cost.inference_peak_bytes


def _place(run: Run) -> str:
    cost = _measured(run)
    return "" if cost is None else cost.place


def _mib(value: float) -> str:
    return f"{value / MIB:,.1f}"


def _skips(run: Run) -> float:
    return sum(run.skips.values()) if run.skips else math.nan


def _whole(value: float) -> str:
    return f"{value:,.0f}"


MEASURES = (
    Measure("accuracy", "accuracy", lambda run: run.accuracy, lambda value: f"{value:.2%}"),
    Measure("peak_bytes", "peak, MiB", _peak_bytes, _mib),
    Measure("samples_per_s", "samples/s", lambda run: run.history.samples_per_s, _whole),
    Measure("elapsed_s", "time", lambda run: run.history.elapsed_s, duration),
    Measure("params", "parameters, M", lambda run: _usual(run, "params"), lambda value: f"{value / 1e6:,.3f}"),
    Measure("macs", "MACs, M", lambda run: _usual(run, "macs"), lambda value: f"{value / 1e6:,.1f}"),
    Measure("skips", "skips", _skips, lambda value: f"{value:.3g}"),
    Measure("latency_ms", "latency, ms", _latency_ms, lambda value: f"{value:,.2f}", _place, False),
    Measure("inference_peak_bytes", "inference peak, MiB", _inference_peak_bytes, _mib, _place, False),
)
ACCURACIES = {"search": "validation, super-net's weights", "train": "test top-1, last epoch"}
NOTES = (
    "accuracy: of a search the validation accuracy of its cell by the super-net's weights, of a training the test "
    "top-1 after its last epoch; the two are not to be compared.",
    "peak: of a step; a search's is above what lived before it, a training's holds weights and optimizer too.",
    "parameters, MACs: of the derived network at its family's usual size; skips: skip-connects of its cells.",
)
MEASURED_NOTE = (
    "latency, inference peak: time and memory of one image through the network at the size that it was trained at, on "
    "the machine that measured it; no mean is taken over different machines, threads or precisions."
)


def comparison(paths: Sequence[Path]) -> Comparison:
    """Read, name and group the runs. Raises as `compare`."""
    places = [path.resolve() for path in paths]
    if len(places) < 2:
        raise ConfigError(
            "a comparison is of two runs or more", got=f"{len(places)} run", allowed="two or more run folders",
            next="msgdas compare RUN RUN, or msgdas report RUN",
        )  # fmt: skip
    twice = next((path for path, place in zip(paths, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise ConfigError(
            "a run is given twice", got=str(twice), allowed="each run once, lest it count twice in a mean",
            next="msgdas compare with each run once",
        )  # fmt: skip
    groups: dict[str, list[tuple[str, Run]]] = {}
    for name, path in zip(_names(places), paths, strict=True):
        run = read_run(path)
        alike = run.config.command + json.dumps(asdict(run.config) | {"seed": 0})
        groups.setdefault(alike, []).append((name, run))
    made = tuple(_group(members) for members in groups.values())
    return Comparison(made, _differing([pair for members in groups.values() for pair in members]))


def _names(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; whole paths would tell about somebody's disk."""
    parts = [place.parts for place in places]
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]) for part in parts]


def _group(members: Sequence[tuple[str, Run]]) -> Group:
    names, runs = zip(*members, strict=True)
    done = [run for run in runs if run.finished]
    return Group(names, runs, {measure.key: spread(_alike(measure, done)) for measure in MEASURES})


def _alike(measure: Measure, runs: Sequence[Run]) -> list[float]:
    """The values that a mean can be taken of: none where they were not taken alike."""
    known = [run for run in runs if abs(measure.of(run)) < LARGEST]
    return [measure.of(run) for run in known] if len({measure.at(run) for run in known}) == 1 else []


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of those values that are believable."""
    known = [value for value in values if abs(value) < LARGEST]
    mean = statistics.fmean(known) if known else math.nan
    return Spread(mean, statistics.stdev(known) if len(known) > 1 else math.nan, len(known))


def _differing(named: Sequence[tuple[str, Run]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By command, the keys whose values are not the same in all its runs; a training's genotype is drawn instead."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for command in dict.fromkeys(run.config.command for _, run in named):
        values = {name: asdict(run.config) for name, run in named if run.config.command == command}
        keys = [key for key in next(iter(values.values())) if key != "genotype"]
        differing = {key: {name: of[key] for name, of in values.items()} for key in keys}
        found[command] = {key: by_run for key, by_run in differing.items() if len(set(map(repr, by_run.values()))) > 1}
    return found


def setting_text(value: object) -> str:
    """A key's value as tables show it."""
    return "none" if value == "" else str(value)


def run_row(name: str, run: Run, measures: Sequence[Measure]) -> tuple[str, ...]:
    """A run's line of the table: name, what it is, and each measure."""
    shown = (_shown(measure, measure.of(run)) for measure in measures)
    return name, ", ".join(filter(None, (run.config.command, run.unfinished))), *shown


def group_row(group: Group, measures: Sequence[Measure]) -> tuple[str, ...]:
    """A group's line: mean, standard deviation and number of its finished runs."""
    done, count = sum(run.finished for run in group.runs), len(group.runs)
    what = f"mean \u00b1 sd ({done})" if done == count else f"mean \u00b1 sd ({done} of {count})"
    shown = (spread_text(measure, group.spreads[measure.key], done) for measure in measures)
    return group_name(group), what if done else "none finished", *shown


def group_name(group: Group) -> str:
    """All names, or the first and the last of many."""
    names = group.names
    return ", ".join(names) if len(names) <= MAX_NAMES else f"{names[0]} ... {names[-1]} ({len(names)} runs)"


def spread_text(measure: Measure, found: Spread, done: int = 0) -> str:
    """`81.20% \u00b1 0.40% (3)`; the number is left out where it is `done`."""
    if not found.n:
        return "none"
    sd = f" \u00b1 {measure.text(found.sd)}" if found.n > 1 else ""
    return f"{measure.text(found.mean)}{sd}" + ("" if found.n == done else f" ({found.n})")


def _shown(measure: Measure, value: float) -> str:
    return measure.text(value) if abs(value) < LARGEST else "none"


def table_rows(made: Comparison) -> tuple[list[tuple[str, ...]], list[int]]:
    """All lines of the table, and the numbers of those that are of groups."""
    rows, strong, measures = [], [], made.measures
    for group in made.groups:
        rows += [run_row(name, run, measures) for name, run in zip(group.names, group.runs, strict=True)]
        if len(group.runs) > 1:
            strong.append(len(rows))
            rows.append(group_row(group, measures))
    return rows, strong
