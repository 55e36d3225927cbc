"""The weights of a cell's operations as a few arenas, and each operation's tensors as views of them.

Kernels find a sampled operation's weights by a row or slot number that they read in device memory, so all
operations of a cell share one tensor of each kind; an optimizer, too, has a few large tensors instead of
hundreds of small ones. The layout is that of `kernels.branches`:

    depthwise_TC    k * k rows for each depthwise convolution
    pointwise_SCC   one slot for each 1x1 convolution, [out, in]; a FactorizedReduce has its two halves in one
    dense_D9CC      one slot for each 3x3 convolution, [tap, in, out]

Weights of any other shape (an `ops.ModuleOperation` may have any) are parameters of their own.
Shape suffixes: T taps, S and D slots, C channels, E edges, O operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..spaces.space import CellLayer, Edge
from .operation import Operation, Shape
from .ops import operation_at

DEPTHWISE, POINTWISE, DENSE, EXTRA = range(4)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one weight tensor of an operation lies.

    Attributes:
        arena: number of the arena, or EXTRA + n for the n-th parameter of its own.
        start, stop: its rows of the depthwise arena, or its slot (stop = start + 1).
        shape, strides, offset: of the weight as a view of its arena, in elements.
    """

    arena: int
    start: int
    stop: int
    shape: Shape
    strides: Shape
    offset: int

    def view(self, arenas: Sequence[Any]) -> Tensor:
        """The weight in its convolution's own shape, without a copy and without autograd."""
        arena = arenas[self.arena]
        if self.arena >= EXTRA:
            return arena
        return arena.as_strided(self.shape, self.strides, arena.storage_offset() + self.offset)


Places = tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Places of all operations of a cell, the same for all cells of a type.

    Attributes:
        channels: C.
        rows, slots, dense_slots: T, S, D.
        extra_shapes: of the parameters outside the arenas.
        places: by edge and operation, in the space's order.
        owners: for each arena, the flattened (edge, operation) number of every row or slot; the parameters
            outside the arenas follow, one number each.
    """

    channels: int
    rows: int
    slots: int
    dense_slots: int
    extra_shapes: tuple[Shape, ...]
    places: tuple[tuple[Places, ...], ...]
    owners: tuple[tuple[int, ...], ...]

    @property
    def arena_shapes(self) -> tuple[Shape, ...]:
        c = self.channels
        return (self.rows, c), (self.slots, c, c), (self.dense_slots, 9, c, c)


class _Builder:
    """Hands out rows and slots in the order of the operations."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.owners: list[list[int]] = [[], [], []]
        self.extra_shapes: list[Shape] = []
        self.extra_owners: list[int] = []

    def places(self, owner: int, shapes: Sequence[Shape]) -> Places:
        found: list[Place] = []
        for shape in shapes:
            found.append(self._place(owner, shape, found))
        return tuple(found)

    def _place(self, owner: int, shape: Shape, before: Sequence[Place]) -> Place:
        c = self.channels
        if len(shape) == 4 and shape[:2] == (c, 1) and shape[2] == shape[3]:
            start, side = len(self.owners[DEPTHWISE]), shape[2]
            self.owners[DEPTHWISE] += [owner] * (side * side)
            strides = (1, side * side * c, side * c, c)
            return Place(DEPTHWISE, start, start + side * side, shape, strides, start * c)
        if shape == (c, c) or shape == (c, c, 1, 1):
            slot = self._slot(POINTWISE, owner)
            return Place(POINTWISE, slot, slot + 1, shape, (c, 1, 1, 1)[: len(shape)], slot * c * c)
        if shape == (c // 2, c):
            first = bool(before) and before[-1].shape == shape and len(before) % 2 == 1
            slot = before[-1].start if first else self._slot(POINTWISE, owner)
            return Place(POINTWISE, slot, slot + 1, shape, (c, 1), slot * c * c + first * (c // 2) * c)
        if shape == (c, c, 3, 3):
            slot = self._slot(DENSE, owner)
            return Place(DENSE, slot, slot + 1, shape, (1, c, 3 * c * c, c * c), slot * 9 * c * c)
        self.extra_shapes.append(shape)
        self.extra_owners.append(owner)
        number = len(self.extra_shapes) - 1
        return Place(EXTRA + number, number, number + 1, shape, (), 0)

    def _slot(self, arena: int, owner: int) -> int:
        self.owners[arena].append(owner)
        return len(self.owners[arena]) - 1


def layout_of(
    layer: CellLayer, names: Sequence[str], operations: Mapping[str, Operation], *, partial: int = 1
) -> Layout:
    """Where the weights of each operation of `layer` lie; operations see 1 / partial of its channels."""
    channels = layer.channels // partial
    builder = _Builder(channels)
    places = tuple(
        tuple(
            builder.places(
                row * len(names) + column,
                operation_at(operations, name, edge.stride, shortcut=edge.shortcut).weight_shapes(
                    channels_into(layer, edge) // partial, channels, edge.stride
                ),
            )
            for column, name in enumerate(names)
        )
        for row, edge in enumerate(layer.spec.edges)
    )
    rows, slots, dense_slots = (len(owner) for owner in builder.owners)
    owners = tuple(tuple(owner) for owner in (*builder.owners, *([owner] for owner in builder.extra_owners)))
    return Layout(channels, rows, slots, dense_slots, tuple(builder.extra_shapes), places, owners)


def channels_into(layer: CellLayer, edge: Edge) -> int:
    """Channels of the state that an edge reads."""
    outside = edge.source < layer.spec.inputs and not layer.spec.preprocess
    return layer.channels_in[edge.source] if outside else layer.channels


class CellWeights(nn.Module):
    """Parameters of one cell: the three arenas, those outside them, and the preprocessing's.

    Args:
        layout: of the arenas.
        values: for each parameter of an operation in the layout's order, its initial value.
        preprocess: one or two weights [out, in] for each input.
    """

    def __init__(self, layout: Layout, values: Sequence[Tensor], preprocess: Sequence[Sequence[nn.Parameter]]) -> None:
        super().__init__()
        self.layout = layout
        dtype = values[0].dtype if values else torch.float32
        arenas = [torch.zeros(shape, dtype=dtype) for shape in layout.arena_shapes]
        arenas += [torch.zeros(shape, dtype=dtype) for shape in layout.extra_shapes]
        every = [place for edge in layout.places for places in edge for place in places]
        for place, value in zip(every, values, strict=True):
            place.view(arenas).copy_(value)
        self.preprocess = nn.ModuleList(nn.ParameterList(group) for group in preprocess)
        self.depthwise_TC, self.pointwise_SCC, self.dense_D9CC = (nn.Parameter(arena) for arena in arenas[:EXTRA])
        self.extra = nn.ParameterList(nn.Parameter(arena) for arena in arenas[EXTRA:])
        for number, owners in enumerate(layout.owners):
            self.register_buffer(f"owners_{number}", torch.tensor(owners, dtype=torch.int64), persistent=False)

    def arenas(self) -> list[Tensor]:
        """All parameters of the operations, in the order of `Place.arena`."""
        return [self.depthwise_TC, self.pointwise_SCC, self.dense_D9CC, *self.extra]

    def masks(self, indices_EK: Tensor, num_operations: int) -> list[Tensor]:
        """For each arena 1 on the rows and slots of the given operations, 0 elsewhere; broadcasts over the arena."""
        one = self.depthwise_TC.new_ones(())
        used_EO = one.new_zeros(len(indices_EK), num_operations).scatter(
            1, indices_EK.long(), one.expand(indices_EK.shape)
        )
        arenas = self.arenas()
        masks = []
        for number, arena in enumerate(arenas):
            used = used_EO.flatten()[getattr(self, f"owners_{number}")]
            masks.append(used.view(-1, *[1] * (arena.dim() - 1)) if number < EXTRA else used[0])
        return masks

    def preprocess_groups(self) -> list[tuple[Tensor, ...]]:
        """The weights of each input."""
        groups: list[nn.ParameterList] = list(self.preprocess)  # type: ignore[arg-type]
        return [tuple(group) for group in groups]


def differentiable_views(layout: Layout, arenas: Sequence[Tensor]) -> list[list[tuple[Tensor, ...]]]:
    """Every weight by edge and operation, under autograd: the arenas are cut once, so that backward joins once."""
    taps = list(arenas[DEPTHWISE].split(_row_counts(layout)))
    slots = list(arenas[POINTWISE].unbind())
    dense = list(arenas[DENSE].unbind())

    def view(place: Place) -> Tensor:
        if place.arena == DEPTHWISE:
            side = place.shape[2]
            return taps.pop(0).view(side, side, layout.channels).permute(2, 0, 1).unsqueeze(1)
        if place.arena == POINTWISE:
            slot, half = slots[place.start], layout.channels // 2
            if place.shape[0] != half or layout.channels == 1:
                return slot.view(place.shape)
            return slot[half:] if place.offset % (layout.channels**2) else slot[:half]
        if place.arena == DENSE:
            return dense[place.start].view(3, 3, layout.channels, layout.channels).permute(3, 2, 0, 1)
        return arenas[place.arena]

    return [[tuple(view(place) for place in places) for places in edge] for edge in layout.places]


def _row_counts(layout: Layout) -> list[int]:
    every = (place for edge in layout.places for places in edge for place in places)
    return [place.stop - place.start for place in every if place.arena == DEPTHWISE]
