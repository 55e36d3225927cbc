"""A run folder as the pages show it: a search or a training, made from its files alone. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import EngineError, GenotypeError
from ..run.history import Course, Epoch, History, TrainEpoch, TrainHistory
from ..run.rundir import CONFIG, COST, ENVIRONMENT, GENOTYPE, RunFolder, is_training, read_object
from ..settings import config as search_config
from ..settings import train_config
from ..settings.config import SearchConfig
from ..settings.train_config import TrainConfig
from ..spaces.costs import NetworkSize
from ..spaces.counting import Cost, count
from ..spaces.derive import skip_count
from ..spaces.genotype import Genotype
from .cost import MeasuredCost
from .sizes import USUAL_SIZES

CLASSES = {"fashion-mnist-mini": 10, "fashion-mnist": 10, "cifar10": 10, "cifar100": 100}
MAX_TRAININGS = 64


@dataclass(frozen=True, slots=True)
class Subject:
    """A run.

    Attributes:
        genotype: of a search the answer, or the last epoch's cell, or None before the first; of a training its own.
        environment: of environment.json, {} where it cannot be read.
    """

    path: Path
    config: SearchConfig | TrainConfig
    history: Course
    genotype: Genotype | None
    environment: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return self.history.finished

    @property
    def unfinished(self) -> str:
        """`unfinished: 1 of 6 epochs`, "" for a finished run."""
        done = f"unfinished: {len(self.history.epochs)} of {self.config.epochs} epochs"
        return "" if self.finished else done

    @property
    def classes(self) -> int | None:
        """Number of classes, None where nothing tells it."""
        return self.history.classes or self.config.num_classes or CLASSES.get(self.config.data)

    @property
    def chance(self) -> float:
        """Accuracy of guessing, 0 to 1; NaN where the number of classes is not known."""
        return 1 / self.classes if self.classes else math.nan

    @property
    def skips(self) -> Mapping[str, int]:
        """Skip-connects per kind of cell; {} without a genotype."""
        return {} if self.genotype is None else skip_count(self.genotype)

    @property
    def usual_cost(self) -> tuple[NetworkSize, Cost] | None:
        """At the usual size of its family, where every network of the family can be compared."""
        if self.genotype is None:
            return None
        size = USUAL_SIZES[self.genotype.space]
        return size, count(self.genotype, **asdict(size))


@dataclass(frozen=True, slots=True)
class SearchRun(Subject):
    """A search.

    Attributes:
        is_answer: whether the genotype is the finished search's.
        trouble: why genotype.json could not be read, else "".
    """

    config: SearchConfig
    history: History
    is_answer: bool
    trouble: str

    @property
    def accuracy(self) -> float:
        """Validation accuracy of the genotype by the super-net's weights, 0 to 1; NaN where not known."""
        if self.is_answer and self.config.choose == "supernet":
            return _share(self.history.chosen_accuracy)
        return _share(self.last.val_accuracy if self.last else math.nan)

    @property
    def finished(self) -> bool:
        return self.is_answer and self.history.finished

    @property
    def last(self) -> Epoch | None:
        return self.history.epochs[-1] if self.history.epochs else None


@dataclass(frozen=True, slots=True)
class TrainRun(Subject):
    """A training.

    Attributes:
        measured: what cost.json tells of its network, None where it is missing or damaged.
    """

    config: TrainConfig
    history: TrainHistory
    genotype: Genotype
    measured: MeasuredCost | None

    @property
    def accuracy(self) -> float:
        """Of the test images after the last epoch, 0 to 1; NaN where there is none."""
        return _share(self.last.val_accuracy if self.last else math.nan)

    @property
    def last(self) -> TrainEpoch | None:
        return self.history.epochs[-1] if self.history.epochs else None

    @property
    def size(self) -> NetworkSize:
        """Of the network that it trains; without known classes, with those of the family's usual size."""
        config, usual = self.config, USUAL_SIZES[self.genotype.space]
        return NetworkSize(config.channels, config.layers, config.image, self.classes or usual.classes, config.stem)

    @property
    def cost(self) -> Cost:
        """Of the network that it trains."""
        return count(self.genotype, **asdict(self.size))


def _share(value: float) -> float:
    return value if 0 <= value <= 1 else math.nan


def read_run(path: Path) -> SearchRun | TrainRun:
    """The search or the training in a run folder.

    Raises:
        EngineError: RunFolderError, ConfigError or GenotypeError, where it is no run folder of this version.
    """
    return _read_training(path) if is_training(path) else _read_search(path)


def _read_search(path: Path) -> SearchRun:
    folder = RunFolder.open(path, search_config.from_json)
    history = History.of(folder.config, folder.read_metrics())
    genotype, trouble = None, ""
    if (path / GENOTYPE).exists():
        try:
            genotype = Genotype.load(path / GENOTYPE)
        except GenotypeError as error:
            trouble = str(error)
    told = [epoch.genotype for epoch in history.epochs if epoch.genotype is not None]
    return SearchRun(
        path=path, config=folder.config, history=history, genotype=genotype or (told[-1] if told else None),
        environment=read_object(path / ENVIRONMENT), is_answer=genotype is not None, trouble=trouble,
    )  # fmt: skip


def _read_training(path: Path) -> TrainRun:
    folder = RunFolder.open(path, train_config.from_json)
    history = TrainHistory.of(folder.config, folder.read_metrics())
    return TrainRun(
        path=path, config=folder.config, history=history, genotype=folder.config.cells,
        environment=read_object(path / ENVIRONMENT), measured=MeasuredCost.stored(read_object(path / COST)),
    )  # fmt: skip


def trainings_in(path: Path) -> tuple[list[TrainRun], list[str]]:
    """Trainings in the folders of a search's run folder, by name, and why others cannot be read."""
    found, troubles = [], []
    try:
        folders = sorted(entry for entry in path.iterdir() if (entry / CONFIG).is_file())[:MAX_TRAININGS]
    except OSError:
        folders = []
    for folder in folders:
        try:
            run = read_run(folder)
        except EngineError as error:
            troubles.append(f"{folder.name}: {str(error).replace(str(path), path.name)}")
            continue
        if isinstance(run, TrainRun):
            found.append(run)
    return found, troubles
