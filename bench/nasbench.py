"""`python -m msgdas.bench chance`: what NAS-Bench-201's table says of its 15,625 cells, and what chance would find.

The table is a file of the user's, CSV or CSV.GZ, one row per cell with the columns in COLUMNS: accuracies are
CIFAR-10 percentages of the stand-alone network (C=16, five cells per stage), after 200 epochs (test) and after 12
(validation and test), each a mean over the benchmark's training seeds (Dong and Yang, ICLR 2020; Dong et al.,
NATS-Bench, TPAMI 2021). The index is NATS-Bench's.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from ..engine.errors import DataError
from ..engine.spaces.genotype import Genotype, from_arch
from ..engine.spaces.space import NASBENCH201, SKIP
from . import command
from .rows import append_row
from .statistics import kendall_tau

COLUMNS = ("index", "arch", "c10_test_200", "c10_val_12", "c10_test_12", "params_c10")
CELLS = NASBENCH201.num_operations ** len(NASBENCH201.cells[0].edges)
TOP_SHARE = 0.01
TAU_OF_PARAMETERS = "Kendall's tau of the number of parameters"
CONVOLUTIONS = ("nor_conv_1x1", "nor_conv_3x3")

Cell = tuple[str, ...]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Found:
    """A cell as the table knows it.

    Attributes:
        index: NATS-Bench's number.
        arch: NAS-Bench-201's string.
        accuracy: CIFAR-10 test accuracy after 200 epochs, percent.
        rank: 1 for the best; equal accuracies share the better rank.
        regret: percentage points below the best cell.
        params: parameters of the stand-alone network.
    """

    index: int
    arch: str
    accuracy: float
    rank: int
    regret: float
    params: int


class Table:
    """All cells of NAS-Bench-201 on CIFAR-10, sorted by index.

    Attributes:
        archs: their strings.
        test_200, val_12, test_12: accuracies [CELLS], percent, by number of epochs.
        params: parameters of the stand-alone network, int64 [CELLS].
    """

    def __init__(
        self, archs: Sequence[str], test_200: Floats, val_12: Floats, test_12: Floats, params: NDArray[np.int64]
    ) -> None:
        self.archs, self.test_200, self.val_12, self.test_12, self.params = archs, test_200, val_12, test_12, params
        self._index = {arch: index for index, arch in enumerate(archs)}
        self._sorted = np.sort(test_200)

    @classmethod
    def read(cls, path: Path) -> Table:
        """The table in a CSV file, plain or gzipped.

        Raises:
            DataError: for a file that cannot be read or is not the whole table.
        """
        try:
            with _opened(path) as file:
                reader = csv.DictReader(file)
                missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
                if missing:
                    raise _no_table(path, f"no column {missing[0]}")
                rows = sorted(reader, key=lambda row: int(row["index"]))
            columns = {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS if name != "arch"}
        except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
            raise _no_table(path, str(error)) from None
        except (TypeError, ValueError) as error:
            raise _no_table(path, f"a value that is no number: {error}") from None
        archs = [row["arch"] for row in rows]
        if len(rows) != CELLS or len(set(archs)) != CELLS or not (columns["index"] == np.arange(CELLS)).all():
            raise _no_table(path, f"{len(rows)} rows, {len(set(archs))} different cells")
        if not all(np.isfinite(values).all() for values in columns.values()):
            raise _no_table(path, "a value that is not finite")
        return cls(
            archs, columns["c10_test_200"], columns["c10_val_12"], columns["c10_test_12"],
            columns["params_c10"].astype(np.int64),
        )  # fmt: skip

    def index_of(self, genotype: Genotype) -> int:
        """NATS-Bench's number of a cell of space nasbench201; DataError for a genotype of another space."""
        if genotype.space != NASBENCH201.name:
            raise DataError(
                "the table knows cells of one space", got=genotype.space, allowed=NASBENCH201.name,
                next="--space nasbench201",
            )  # fmt: skip
        return self._index[genotype.arch]

    def look_up(self, genotype: Genotype) -> Found:
        """What the table says of a cell; DataError for a genotype of another space."""
        return self.at(self.index_of(genotype))

    def at(self, index: int) -> Found:
        """What the table says of the cell with that number."""
        accuracy = float(self.test_200[index])
        rank = CELLS - int(np.searchsorted(self._sorted, accuracy, side="right")) + 1
        regret = float(self._sorted[-1]) - accuracy
        return Found(index, self.archs[index], accuracy, rank, regret, int(self.params[index]))

    def top_threshold(self, share: float = TOP_SHARE) -> float:
        """The accuracy at which the best `share` of all cells begins."""
        return float(self._sorted[CELLS - max(1, round(share * CELLS))])

    def expected_best(self, m: int) -> float:
        """Expected accuracy of the best of m cells drawn with replacement.

        Order statistics of the sorted accuracies a_1 <= ... <= a_N: sum_i a_i ((i / N)^m - ((i - 1) / N)^m).
        """
        assert m >= 1
        at_most = (np.arange(CELLS + 1) / CELLS) ** m
        return float((self._sorted * np.diff(at_most)).sum())

    def indices_of(self, operations: Collection[str]) -> NDArray[np.int64]:
        """Numbers of all cells that use only those operations."""
        used = ({name for name, _ in pairs_of(arch)} for arch in self.archs)
        return np.array([index for index, names in enumerate(used) if names <= set(operations)])


def pairs_of(arch: str) -> tuple[tuple[str, int], ...]:
    """(operation, input) of each edge of a cell's string, in the order of alpha's rows."""
    return from_arch(arch).cell("cell").pairs


def genotype_of(cell: Cell) -> Genotype:
    """The genotype with those operations, one for each edge in the order of alpha's rows."""
    edges = NASBENCH201.cells[0].edges
    nodes: dict[int, str] = {}
    for operation, edge in zip(cell, edges, strict=True):
        nodes[edge.target] = nodes.get(edge.target, "|") + f"{operation}~{edge.source}|"
    return from_arch("+".join(nodes.values()))


def yardsticks(table: Table) -> dict[str, float]:
    """What a search has to be held against, by name; accuracies in percent."""
    with_skips = table.test_200[table.indices_of((*CONVOLUTIONS, SKIP))]
    return {
        "best cell": float(table.test_200.max()),
        "best 1 % begin at": table.top_threshold(),
        "a random cell": float(table.test_200.mean()),
        "a random cell, sd": float(table.test_200.std()),
        **{f"expected best of {m} random cells": table.expected_best(m) for m in (5, 10, 25, 50, 100, 300, 500)},
        "every edge 3x3": table.look_up(genotype_of(("nor_conv_3x3",) * 6)).accuracy,
        "1x1 or 3x3 by a coin on each edge": float(table.test_200[table.indices_of(CONVOLUTIONS)].mean()),
        "1x1, 3x3 or skip by lot on each edge": float(with_skips.mean()),
        "1x1, 3x3 or skip by lot, sd": float(with_skips.std()),
        "most parameters": float(table.test_200[int(table.params.argmax())]),
        TAU_OF_PARAMETERS: kendall_tau(table.params, table.test_200),
    }


def _opened(path: Path) -> TextIO:
    with open(path, "rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    if gzipped:
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return open(path, encoding="utf-8", newline="")


def _no_table(path: Path, got: str) -> DataError:
    return DataError(
        f"{path} is not NAS-Bench-201's table", got=got[:120],
        allowed=f"CSV or CSV.GZ, {CELLS} rows, columns {', '.join(COLUMNS)}", next="--table FILE",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.parser("chance", __doc__)
    parser.add_argument("--table", type=Path, required=True, metavar="FILE", help="CSV or CSV.GZ of all cells")
    arguments = parser.parse_args(argv)
    found = yardsticks(Table.read(arguments.table))
    if arguments.out is not None:
        append_row(arguments.out, {"kind": "chance", **found})
    if arguments.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        print(f"{name:44} {value:8.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(command.answer(main))
