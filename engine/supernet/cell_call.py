"""One pass through a cell as data: which operations run where, with which weights; `cell` and `autograd_net` run it.

Shape suffixes: B batch, H height, W width, C channels, E edges, O operations; maps are NHWC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...kernels.primitives import Reference
from ..spaces.space import CellLayer, Edge
from .operation import Drop, Operation
from .weights import Places


@dataclass(frozen=True, slots=True)
class Branch:
    """One operation on one edge.

    Attributes:
        row, column: its gate's place in gates_EO.
        edge: of the cell.
        operation: what runs.
        places: of its weights in the cell's arenas.
    """

    row: int
    column: int
    edge: Edge
    operation: Operation
    places: Places


@dataclass(frozen=True, slots=True)
class Shortcut:
    """An edge whose source is added to its target, see `Edge`.

    Attributes:
        edge: of the cell.
        row: its number among all rows of alpha.
        column: of the operation that leaves the layer out, where it was sampled: Dropblock-Identity then acts on as
            much of the shortcut as that operation's gate says, all of it in a sub-graph (ours).
    """

    edge: Edge
    row: int
    column: int | None

    def factor(self, drop: Drop | None, index: int, gates_EO: Any, x_BHWC: Tensor) -> Tensor | None:
        """What the source is multiplied by, None for 1; `index` is the cell's number, gates are read on the host."""
        if drop is None or self.column is None:
            return None
        gates = gates_EO[self.row]
        gate = float(gates[self.column])
        return drop.mask(x_BHWC, index, self.row * len(gates) + self.column).mul_(gate).add_(1 - gate)


@dataclass(frozen=True, slots=True)
class CellCall:
    """One pass through one cell, everything that is not a tensor.

    Attributes:
        layer: the cell in its place.
        index: its number in the network, for the seeds of Dropblock-Identity.
        branches: the sampled operations, by edge; `none` is left out.
        shadows: operations not sampled whose gate gradients are wanted all the same; they run without
            autograd in backward and leave nothing behind.
        preprocess: for each input the slice of its weights among the tensors that follow the inputs; empty
            where the space has no preprocessing.
        policy: see `cell`.
        drop: Dropblock-Identity of this pass, or None.
        gates: values of gates_EO on the host; the plain path has no use for them.
        kernels: what computes.
        shortcuts: of the cell's edges.
    """

    layer: CellLayer
    index: int
    branches: tuple[Branch, ...]
    shadows: tuple[Branch, ...]
    preprocess: tuple[slice, ...]
    policy: str
    drop: Drop | None
    gates: list[list[float]] | None
    kernels: Reference
    shortcuts: tuple[Shortcut, ...] = ()
