"""Which row of the kernels' branch table each operation of a cell has.

Rows depend on the cell's type only: all cells of a type lay their arenas out alike. See `kernels.branches`.
Shape suffixes: E edges, K ranks, O operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...kernels import branches as codes
from ..errors import ConfigError
from ..spaces.space import CellLayer
from .operation import Operation
from .ops import AveragePool, DepthwiseSeparable, FactorizedReduce, NormalisedPool, ReluConv, Skip, Zero, operation_at
from .weights import DEPTHWISE, Places, layout_of

SEPARABLE = {
    (codes.SIDE[code], codes.DILATION[code], codes.STAGES[code]): code
    for code in (codes.SEP3, codes.SEP5, codes.DIL3, codes.DIL5)
}


def code_of(name: str, operation: Operation) -> int:
    """The kernels' number of an operation.

    Raises:
        ConfigError: for an operation that has no kernel.
    """
    if isinstance(operation, Zero):
        return codes.NONE
    if isinstance(operation, Skip):
        return codes.SKIP
    if isinstance(operation, AveragePool):
        return codes.AVG_DIRECT
    if isinstance(operation, NormalisedPool):
        return codes.MAX if operation.kind == "max" else codes.AVG
    if isinstance(operation, FactorizedReduce):
        return codes.REDUCE
    if isinstance(operation, ReluConv) and operation.side in (1, 3):
        return codes.CONV1 if operation.side == 1 else codes.CONV3
    if isinstance(operation, DepthwiseSeparable):
        code = SEPARABLE.get((operation.side, operation.dilation, operation.stages))
        if code is not None:
            return code
    raise ConfigError(
        "an operation without a kernel", got=name, allowed="the operations of the spaces' own tables",
        next='impl="reference"',
    )  # fmt: skip


def table_rows(layer: CellLayer, names: Sequence[str], operations: Mapping[str, Operation]) -> Tensor:
    """int32 [E, O + 1, COLUMNS]: the row of every operation on every edge; the last one is `nothing here`."""
    layout = layout_of(layer, names, operations)
    table = torch.full((len(layer.spec.edges), len(names) + 1, codes.COLUMNS), -1, dtype=torch.int32)
    for row, edge in enumerate(layer.spec.edges):
        table[row, :, codes.SOURCE] = edge.source
        table[row, :, codes.OUTPUT] = edge.target - layer.spec.inputs
        table[row, -1, codes.CODE] = codes.NONE
        for column, name in enumerate(names):
            code = code_of(name, operation_at(operations, name, edge.stride))
            table[row, column, codes.CODE] = code
            table[row, column, codes.GATE] = -1 if code == codes.NONE else row * len(names) + column
            _write_places(table[row, column], layout.places[row][column])
    return table


def _write_places(row: Tensor, places: Places) -> None:
    """Depthwise rows go to TAPS, all other weights to POINT, in the order of the stages."""
    taps = [place.start for place in places if place.arena == DEPTHWISE]
    points = list(dict.fromkeys(place.start for place in places if place.arena != DEPTHWISE))
    for column, start in zip((codes.TAPS0, codes.TAPS1), taps, strict=False):
        row[column] = start
    for column, start in zip((codes.POINT0, codes.POINT1), points, strict=False):
        row[column] = start


def branches_of(table_EO8: Tensor, indices_EK: Tensor) -> Tensor:
    """int32 [E * K, COLUMNS], the rows of a sample in the order of edges and ranks; index -1 is `nothing here`."""
    num_edges, _, columns = table_EO8.shape
    chosen_EK = torch.where(indices_EK < 0, table_EO8.shape[1] - 1, indices_EK).long()
    index = chosen_EK[:, :, None].expand(-1, -1, columns)
    return table_EO8.gather(1, index).view(num_edges * indices_EK.shape[1], columns)
