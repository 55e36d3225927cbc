"""What the networks of a step run: operations and gates, by cell type.

Shape suffixes: E edges, K ranks, O operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..spaces.space import SearchSpace


@dataclass(frozen=True)
class CellPaths:
    """What one network runs in every cell of a type.

    Attributes:
        indices_EK: for each edge the numbers of the operations that exist, integers; -1 stands for none.
        gates_EO: their gates, 0 elsewhere; carries the gradient to alpha.
        shadows: whether backward shall also find the gate gradients of operations that do not exist.
        edges_E: weight of each edge's output in its node's sum, None for 1 each; carries the gradient to beta.
    """

    indices_EK: Tensor
    gates_EO: Tensor
    shadows: bool = False
    edges_E: Tensor | None = None

    @cached_property
    def operations(self) -> tuple[tuple[int, ...], ...]:
        """The same numbers on the host; waits for the device."""
        return tuple(tuple(index for index in row if index >= 0) for row in self.indices_EK.tolist())

    @cached_property
    def gate_values(self) -> list[list[float]]:
        """`scaled_EO` on the host; waits for the device."""
        return self.scaled_EO.tolist()

    @property
    def scaled_EO(self) -> Tensor:
        """The gates times the weights of their edges [E, O]."""
        return self.gates_EO if self.edges_E is None else self.gates_EO * self.edges_E[:, None]

    def leaves(self) -> CellPaths:
        """The same with gates and edges cut from what they were made of, so that a backward ends at them."""
        edges_E = self.edges_E
        return replace(
            self,
            gates_EO=self.gates_EO.detach().requires_grad_(self.gates_EO.requires_grad),
            edges_E=None if edges_E is None else edges_E.detach().requires_grad_(edges_E.requires_grad),
        )


Paths = Mapping[str, CellPaths]


@dataclass(frozen=True, slots=True)
class Sample:
    """One draw.

    Attributes:
        networks: the K sub-graphs, or the one network of mode `union`; paths by cell type.
        indices: sampled operations in rank order, int64 [E, K] by cell type.
        log_probability: log P of the draw under Plackett-Luce, [] (sum over edges and types), for reward
            `leave-one-out` of each sub-graph as if it were drawn alone, [K]; None where no estimator asks for it.
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
