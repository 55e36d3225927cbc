"""`python -m msgdas.bench ranking`: what the losses of a super-net say of cells, before any alpha learns from them.

Alpha rests, so that all sub-graphs are drawn alike and only the weights learn. Then random cells are judged with those
weights, by their loss on images that the weights were trained on and by that on images that they were not: where
neither ranks the cells as the table does, no rule for alpha can. Training loss as a sign of quality: Ru et al.,
"Speedy Performance Estimation for Neural Architecture Search" (NeurIPS 2021), there summed over the steps of a network.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..engine.images.batches import Batch, Batches, split_halves
from ..engine.images.data import load
from ..engine.images.images import DataSet
from ..engine.learning.assembly import build_learner
from ..engine.learning.steps import Learner, Moment
from ..engine.settings.config import SearchConfig, build
from ..engine.settings.schedule import learning_rate
from ..engine.spaces.space import NASBENCH201, ZERO
from . import command
from .nasbench import TAU_OF_PARAMETERS, Table, pairs_of
from .results import provenance
from .rows import append_row, without_paths
from .searches import Settings, loss_of
from .statistics import kendall_tau

JUDGED_IMAGES = 500
# Of the least squares that tell operations apart; cells are fewer than effects would like (ours).
RIDGE = 1.0
BASE_OPERATION = "nor_conv_3x3"


@dataclass(frozen=True, slots=True)
class Judged:
    """Random cells with a super-net's weights, on one set of images.

    Attributes:
        loss: mean over the cells.
        tau: Kendall's tau of minus the loss and the table's accuracy.
        tau_without_none: of the cells among them that have no `none`.
        effects: by operation, its mean effect on the loss in place of a 3x3 convolution (least squares over edges).
    """

    loss: float
    tau: float
    tau_without_none: float
    effects: Mapping[str, float]


def judged(table: Table, indices: NDArray[np.int64], losses: Sequence[float]) -> Judged:
    """What the losses of those cells of the table say of it."""
    minus, accuracy = -np.array(losses), table.test_200[indices]
    operations = [[name for name, _ in pairs_of(table.archs[index])] for index in indices]
    whole = np.array([ZERO not in names for names in operations])
    without = kendall_tau(minus[whole], accuracy[whole]) if whole.sum() > 1 else math.nan
    return Judged(float(-minus.mean()), kendall_tau(minus, accuracy), without, effects_of(operations, -minus))


def effects_of(operations: Sequence[Sequence[str]], losses: NDArray[np.float64]) -> dict[str, float]:
    """Mean effect of each operation in place of a 3x3 convolution, from an additive model of the losses."""
    names = NASBENCH201.operations
    used_CEO = np.array([[[name == one for one in names] for name in cell] for cell in operations], dtype=np.float64)
    x_CJ = used_CEO.reshape(len(operations), -1)
    penalty = RIDGE * np.eye(x_CJ.shape[1])
    effects_J = np.linalg.solve(x_CJ.T @ x_CJ + penalty, x_CJ.T @ (losses - losses.mean()))
    mean_O = effects_J.reshape(-1, len(names)).mean(0)
    base = mean_O[names.index(BASE_OPERATION)]
    return {name: float(value - base) for name, value in zip(names, mean_O, strict=True) if name != BASE_OPERATION}


def config_of(settings: Settings, data: str, *, images: int, seed: int, none_weights: bool = True) -> SearchConfig:
    """A super-net of those settings over so many images a half; it draws two exclusive sub-graphs a step."""
    return build(
        {
            "recipe": "ranking", "space": settings.space, "data": data, "channels": settings.channels,
            "layers": settings.layers, "image": settings.image, "batch": settings.batch, "limit": images,
            "seed": seed, "device": "cpu", "threads": 1, "dbi": "off", "teacher": "none", "none_weights": none_weights,
            **settings.overrides,
        },
        {},
    )  # fmt: skip


def trained(config: SearchConfig, dataset: DataSet, cpu_s: float) -> tuple[Learner, int]:
    """A learner whose weights were trained for so many CPU seconds, one step at least, and its number of steps."""
    learner, _, _ = build_learner(config, torch.device("cpu"), len(dataset.classes))
    indices, _ = split_halves(dataset.labels, seed=config.seed, limit=config.limit)
    spent_s, step = 0.0, 0
    with Batches(dataset, indices, batch=config.batch, seed=config.seed, stream="w", augment=config.augment) as batches:
        while step == 0 or spent_s < cpu_s:
            begin = time.process_time()
            batch = batches.at(step)
            lr = learning_rate(config, int(config.epochs * spent_s / cpu_s))
            learner.weight_step(batch.images_BCHW, batch.labels_B, Moment(step, config.tau_max, lr, 0.0, guided=False))
            step += 1
            spent_s += time.process_time() - begin
    return learner, step


def held(dataset: DataSet, indices: torch.Tensor) -> list[Batch]:
    """The first JUDGED_IMAGES of those images, as cells are judged on them."""
    size = min(250, len(indices))
    with Batches(dataset, indices, batch=size, seed=0, stream="rank", augment=False) as batches:
        return list(batches.sequential(min(JUDGED_IMAGES, len(indices))))


def ranking(table: Table, config: SearchConfig, dataset: DataSet, cpu_s: float, cells: int) -> dict[str, Any]:
    """A row: what the losses of random cells say after so many CPU seconds of training."""
    learner, steps = trained(config, dataset, cpu_s)
    halves = split_halves(dataset.labels, seed=config.seed, limit=config.limit)
    indices = np.random.default_rng(config.seed).choice(len(table.archs), cells, replace=False)
    row: dict[str, Any] = {"kind": "ranking", "steps": steps, "cpu_s": cpu_s, "cells": cells}
    for name, half in zip(("training", "held_out"), halves, strict=True):
        batches = held(dataset, half)
        found = judged(table, indices, [loss_of(learner, table, int(index), batches) for index in indices])
        row[name] = {
            "loss": found.loss, "tau": found.tau, "tau_without_none": found.tau_without_none,
            "effects": dict(found.effects),
        }  # fmt: skip
    row["tau_of_parameters"] = kendall_tau(table.params[indices], table.test_200[indices])
    return {**row, "config": without_paths(config)}


def text(row: Mapping[str, Any]) -> str:
    """A row for the terminal."""
    config = row["config"]
    lines = [
        f"{config['layers']} cells, C={config['channels']}, {config['image']} x {config['image']} pixels, "
        f"{config['limit']} images a half: {row['steps']} steps in {row['cpu_s']:g} CPU seconds",
        f"{'loss on':10} {'mean':>6} {'tau':>6} {'no none':>8}  effect in place of a 3x3 convolution",
    ]
    for name in ("training", "held_out"):
        found = row[name]
        effects = ", ".join(f"{operation} {value:+.3f}" for operation, value in found["effects"].items())
        lines.append(
            f"{name:10} {found['loss']:6.2f} {found['tau']:+6.2f} {found['tau_without_none']:+8.2f}  {effects}"
        )
    return "\n".join([*lines, f"{TAU_OF_PARAMETERS} on the same cells {row['tau_of_parameters']:+.2f}"])


def main(argv: Sequence[str] | None = None) -> int:
    default = Settings()
    made = command.parser("ranking", __doc__)
    made.add_argument("--table", type=Path, required=True, metavar="FILE", help="all cells: see `chance --help`")
    made.add_argument("--data", required=True, help="CIFAR-10 as a search names it: cifar10 or jpeg-npz:FILE")
    command.add_sizes(made, layers=default.layers, channels=default.channels, image=default.image, batch=default.batch)
    made.add_argument("--images", type=int, default=10_000, help="of each half")
    made.add_argument("--minutes", type=float, default=1.0, metavar="M", help="CPU minutes of training (1)")
    made.add_argument("--cells", type=int, default=100, help="that are judged")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--without-none", action="store_true", help="steps on the weights draw no none (none_weights)")
    arguments = made.parse_args(argv)
    settings = Settings(
        channels=arguments.channels, layers=arguments.layers, image=arguments.image, batch=arguments.batch
    )
    torch.set_num_threads(1)
    table = Table.read(arguments.table)
    config = config_of(
        settings, arguments.data, images=arguments.images, seed=arguments.seed, none_weights=not arguments.without_none
    )  # fmt: skip
    row = ranking(table, config, load(config), 60 * arguments.minutes, arguments.cells)
    words = " ".join(
        f"--{name} {getattr(arguments, name)}"
        for name in ("layers", "channels", "image", "batch", "images", "minutes", "cells", "seed")
    )
    words += " --without-none" * arguments.without_none
    row["provenance"] = provenance(f"{command.PROGRAM} ranking {words} --table FILE --data DATA", threads=1)
    if arguments.out is not None:
        append_row(arguments.out, row)
    print(json.dumps(row) if arguments.json else text(row))
    return 0


if __name__ == "__main__":
    sys.exit(command.answer(main))
