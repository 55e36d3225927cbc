"""`python -m msgdas.bench table`: alpha learned on NAS-Bench-201's table instead of on a super-net, in seconds.

The draw, the score estimator and Adam are the search's own (`Learner.alpha_update`); only the loss of a sampled
sub-graph comes from the table. It is the logarithm of the validation error after 12 epochs: the noisy figure that a
search could have measured, where the cell that comes out is judged by the test accuracy after 200 epochs. The
logarithm, ours, keeps good cells apart that differ by tenths of a point beside bad ones that differ by tens.

Two cells come out of each search: the one that alpha says (`derived`), and the one with the best validation accuracy
of all that were evaluated (`chosen`), as NATS-Bench judges the methods that it compares. Random search chooses the
same way among as many random cells. A test of the machinery: no image is looked at.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..engine.learning.assembly import build_learner
from ..engine.learning.passes import Feed, Passes
from ..engine.learning.steps import Learner, Moment
from ..engine.settings.config import SearchConfig, build
from ..engine.spaces.derive import derive
from ..engine.spaces.space import NASBENCH201
from ..engine.supernet.paths import Sample
from . import command
from .nasbench import CELLS, Found, Table, pairs_of
from .rows import append_row
from .statistics import summary

EVALUATIONS = 300
# Developed on seeds 200 to 219 at 300 evaluations; 0.03 to 0.06 were within the noise of each other.
ALPHA_LR = 0.04


@dataclass(frozen=True, slots=True)
class TableSearch:
    """What one search came to.

    Attributes:
        seed: of alpha and the draws.
        evaluations: sub-graphs that were looked up.
        derived: the cell that alpha says.
        chosen: the evaluated cell of the best validation accuracy after 12 epochs.
    """

    seed: int
    evaluations: int
    derived: Found
    chosen: Found


class TablePasses(Passes):
    """Passes whose losses are the table's; no network runs.

    Attributes:
        seen: indices of the cells looked up, in order.
    """

    def __init__(self, learner: Learner, table: Table) -> None:
        super().__init__(learner.config, learner.net, learner.guidance, all_gradients=False)
        self.table_losses = torch.from_numpy(np.log1p(-table.val_12 / 100))
        self.indices = _indices_by_columns(table)
        self.seen: list[int] = []

    def losses(self, feed: Feed, sample: Sample, *, dropped: bool) -> Tensor:
        """Logarithm of each sub-graph's validation error [K]."""
        found = [self.indices[tuple(row[0] for row in paths["cell"].operations)] for paths in sample.networks]
        self.seen += found
        return self.table_losses[found]


def _indices_by_columns(table: Table) -> dict[tuple[int, ...], int]:
    """Numbers of the cells by their operations' columns in alpha, edge by edge."""
    columns = {name: column for column, name in enumerate(NASBENCH201.operations)}
    return {tuple(columns[name] for name, _ in pairs_of(arch)): index for index, arch in enumerate(table.archs)}


def table_config(seed: int, *, k: int = 1, alpha_lr: float = ALPHA_LR, reward: str = "mean") -> SearchConfig:
    """The configuration of a search on the table; its network is as small as can be, since it never runs."""
    size = {"space": "nasbench201", "channels": 2, "layers": 3, "image": 4, "batch": 2}
    return build(
        {
            **size, "recipe": "table", "k": k, "mode": "subgraphs", "gate": "score", "alpha_lr": alpha_lr,
            "alpha_weight_decay": 0.0, "dbi": "off", "teacher": "none", "seed": seed, "impl": "reference",
            "reward": reward,
        },
        {},
    )  # fmt: skip


def table_search(table: Table, config: SearchConfig, evaluations: int = EVALUATIONS) -> TableSearch:
    """Search until so many sub-graphs were looked up; the same seed gives the same cells."""
    learner, _, _ = build_learner(config, torch.device("cpu"), 10)
    passes = learner.passes = TablePasses(learner, table)
    images, labels = torch.zeros(config.batch, 3, config.image, config.image), torch.zeros(config.batch).long()
    step = 0
    while len(passes.seen) < evaluations:
        learner.alpha_step(images, labels, Moment(step, tau=1.0, lr=config.lr, drop_rate=0.0, guided=False))
        step += 1
    genotype = derive(NASBENCH201, {kind: alpha.tolist() for kind, alpha in learner.sampler.alpha.items()})
    return TableSearch(config.seed, len(passes.seen), table.look_up(genotype), _best_validated(table, passes.seen))


def random_search(table: Table, seed: int, evaluations: int = EVALUATIONS) -> Found:
    """The cell of the best validation accuracy after 12 epochs among that many random ones."""
    return _best_validated(table, np.random.default_rng(seed).integers(0, CELLS, evaluations))


def _best_validated(table: Table, indices: Sequence[int] | np.ndarray) -> Found:
    return table.at(max(map(int, indices), key=lambda index: float(table.val_12[index])))


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.parser("table", __doc__)
    parser.add_argument("--table", type=Path, required=True, metavar="FILE", help="all cells: see `chance --help`")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS)
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--alpha-lr", type=float, default=ALPHA_LR)
    parser.add_argument("--reward", default="mean", help="of the score estimator; all but mean need a k of 2 or more")
    arguments = parser.parse_args(argv)
    table = Table.read(arguments.table)
    torch.set_num_threads(1)
    found = []
    for seed in arguments.seeds:
        config = table_config(seed, k=arguments.k, alpha_lr=arguments.alpha_lr, reward=arguments.reward)
        result = table_search(table, config, arguments.evaluations)
        found.append((result, random_search(table, seed, arguments.evaluations)))
        row = {
            "kind": "table", **asdict(result), "random": asdict(found[-1][1]), "k": arguments.k,
            "alpha_lr": arguments.alpha_lr, "reward": arguments.reward,
        }  # fmt: skip
        if arguments.out is not None:
            append_row(arguments.out, row)
        if arguments.json:
            print(json.dumps(row), flush=True)
    if not arguments.json:
        _print(table, found, arguments.evaluations)
    return 0


def _print(table: Table, found: Sequence[tuple[TableSearch, Found]], evaluations: int) -> None:
    chance, top = table.expected_best(evaluations), table.top_threshold()
    columns = {
        "derived from alpha": [result.derived.accuracy for result, _ in found],
        "best of those evaluated": [result.chosen.accuracy for result, _ in found],
        "best of random cells": [random.accuracy for _, random in found],
    }
    print(f"{evaluations} evaluations; expected best of as many random cells {chance:.2f}, best 1 % from {top:.2f}")
    print(f"{'cell':26} {'test accuracy after 200 epochs':44} {'> chance':>9} {'best 1 %':>9}")
    for name, values in columns.items():
        better, best = (sum(value > limit for value in values) for limit in (chance, top - 1e-9))
        print(f"{name:26} {summary(values)!s:44} {better:4} of {len(values)} {best:4} of {len(values)}")


if __name__ == "__main__":
    sys.exit(command.answer(main))
