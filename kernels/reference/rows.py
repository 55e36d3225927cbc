"""The branch table read on the host, and the tensors that its rows name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..branches import (
    CODE,
    DIL3,
    DIL5,
    DILATION,
    GATE,
    OUTPUT,
    POINT0,
    SEP3,
    SEP5,
    SIDE,
    SOURCE,
    STAGES,
    TAPS0,
    Geometry,
)

SEPARABLE = (SEP3, SEP5, DIL3, DIL5)


@dataclass(frozen=True, slots=True)
class Row:
    """One branch.

    Attributes:
        number: its place among the launch's branches.
        code, source, output, gate: see `branches`.
        taps, points: first rows and slots of its two stages.
        stride: of its edge.
    """

    number: int
    code: int
    source: int
    output: int
    gate: int
    taps: tuple[int, int]
    points: tuple[int, int]
    stride: int

    @property
    def stages(self) -> int:
        return STAGES.get(self.code, 0)

    def depthwise(self, depthwise_TC: Tensor, stage: int) -> Tensor:
        """[C, 1, k, k] view of the taps of a stage."""
        side, start = SIDE[self.code], self.taps[stage]
        rows = depthwise_TC[start : start + side * side]
        return rows.view(side, side, -1).permute(2, 0, 1).unsqueeze(1)

    def dilation(self) -> int:
        return DILATION[self.code]


def rows_of(branches_J8: Tensor, geometry: Geometry) -> Iterator[Row]:
    """The rows of a launch."""
    for number, row in enumerate(branches_J8.tolist()):
        stride = geometry.stride if row[SOURCE] < geometry.inputs else 1
        yield Row(
            number, row[CODE], row[SOURCE], row[OUTPUT], row[GATE], (row[TAPS0], row[TAPS0 + 1]),
            (row[POINT0], row[POINT0 + 1]), stride,
        )  # fmt: skip


def node_map(nodes: Tensor, node: int, geometry: Geometry) -> Tensor:
    """[B, H', W', C] view of one node in either layout."""
    if nodes.dim() == 5:
        return nodes[node]
    return nodes[..., node * geometry.channels : (node + 1) * geometry.channels]


def source_map(inputs_IBHWC: Tensor, nodes: Tensor, source: int, geometry: Geometry) -> Tensor:
    """The map of a state: an input or a node."""
    if source < geometry.inputs:
        return inputs_IBHWC[source]
    return node_map(nodes, source - geometry.inputs, geometry)
