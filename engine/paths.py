"""What the networks of a step run: operations and gates, by cell type.

Shape suffixes: E edges, K ranks, O operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .space import SearchSpace


@dataclass(frozen=True)
class CellPaths:
    """What one network runs in every cell of a type.

    Attributes:
        indices_EK: for each edge the numbers of the operations that exist, integers; -1 stands for none.
        gates_EO: their gates, 0 elsewhere; carries the gradient to alpha.
        shadows: whether backward shall also find the gate gradients of operations that do not exist.
    """

    indices_EK: Tensor
    gates_EO: Tensor
    shadows: bool = False

    @cached_property
    def operations(self) -> tuple[tuple[int, ...], ...]:
        """The same numbers on the host; waits for the device."""
        return tuple(tuple(index for index in row if index >= 0) for row in self.indices_EK.tolist())

    @cached_property
    def gate_values(self) -> list[list[float]]:
        """The gates on the host; waits for the device."""
        return self.gates_EO.tolist()


Paths = Mapping[str, CellPaths]


@dataclass(frozen=True, slots=True)
class Sample:
    """One draw.

    Attributes:
        networks: the K sub-graphs, or the one network of mode `union`; paths by cell type.
        indices: sampled operations in rank order, int64 [E, K] by cell type.
        log_probability: log P of the draw under Plackett-Luce, [] (sum over edges and types), or None
            where no estimator asks for it.
    """

    networks: tuple[Paths, ...]
    indices: Mapping[str, Tensor]
    log_probability: Tensor | None


def fixed_paths(space: SearchSpace, chosen: Mapping[str, tuple[tuple[int, ...], ...]], device: torch.device) -> Paths:
    """Paths of a network that is not sampled: the given operations of each edge with gate 1."""
    paths = {}
    for kind, rows in chosen.items():
        width = max(1, *(len(row) for row in rows))
        padded = [(*row, *[-1] * (width - len(row))) for row in rows]
        indices_EK = torch.tensor(padded, device=device)
        gates_EO = torch.zeros(len(rows), space.num_operations, device=device)
        for row, columns in enumerate(rows):
            gates_EO[row, list(columns)] = 1.0
        paths[kind] = CellPaths(indices_EK, gates_EO)
    return paths
