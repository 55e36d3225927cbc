"""A cell by the kernels that read on the device what was sampled: its shape is the same for every sample.

Shape suffixes: as in `kernels.branches`. The same policies as in `cell`, as far as kernels can keep them:
    all    each branch's output before its BatchNorm, the nodes and the prepared inputs; the first stage of
           sep_conv is computed again
    bn     the same without the prepared inputs
    nodes  the nodes and the prepared inputs
    min    the nodes

Branches of a node run in groups: large ones forward, where a group lives for a moment beside nothing else, small
ones backward, where the cell's gradients live too and the group's maps decide the step's peak.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...kernels import branches as codes
from ...kernels import library as ops
from ...kernels.branches import Geometry
from ..spaces.space import CellLayer
from .operation import Drop

# Rows of the branch table in one launch (ours: the peak of a step is then that of the plain path at most).
FORWARD_ROWS, BACKWARD_ROWS = 12, 4


@dataclass(frozen=True, slots=True)
class FusedCall:
    """One pass through one cell, everything that is not a tensor.

    Attributes:
        layer: the cell in its place.
        index: its number in the network, for the noise of Dropblock-Identity.
        ranks: K, branches of an edge.
        two_stages: whether the space has operations of two stages.
        preprocess: slices of the inputs' weights among the tensors that follow the inputs.
        policy: see the module's docstring.
        drop: Dropblock-Identity of this pass, or None.
    """

    layer: CellLayer
    index: int
    ranks: int
    two_stages: bool
    preprocess: tuple[slice, ...]
    policy: str
    drop: Drop | None

    def rows_of(self, node: int) -> tuple[int, int]:
        """First and last + 1 row of a node's branches; edges are in the order of their targets."""
        targets = [edge.target - self.layer.spec.inputs for edge in self.layer.spec.edges]
        first = targets.index(node)
        return first * self.ranks, (first + targets.count(node)) * self.ranks

    def groups(self, node: int, size: int) -> Iterator[tuple[int, int]]:
        """A node's rows in launches of at most `size`, as even as they can be."""
        first, last = self.rows_of(node)
        for low, high in _evenly(last - first, size):
            yield first + low, first + high


@dataclass(slots=True)
class _Group:
    """What forward leaves of one launch."""

    first: int
    last: int
    stats_J2C: Tensor
    stats1_J2C: Tensor | None
    z_JBHWC: Tensor | None


class FusedCellFunction(torch.autograd.Function):
    """apply(call, branches, gates_EO, *inputs, *weights) -> [B, H', W', C * len(concat)].

    `branches` are all rows of the sample, int32 [E * K, COLUMNS]; `weights` the cell's three arenas and the
    weights of its preprocessing. The gradient handed to backward is overwritten, as in `cell`.
    """

    @staticmethod
    def forward(ctx: Any, call: FusedCall, branches: Tensor, gates_EO: Tensor, *tensors: Tensor) -> Tensor:
        num_inputs = call.layer.spec.inputs
        inputs, weights = tensors[:num_inputs], tensors[num_inputs:]
        prepared, input_stats = _prepare(call, inputs, weights, None)
        geometry = _geometry(call, prepared)
        nodes = _empty_nodes(call, prepared, geometry)
        walk = _Launches(call, geometry, prepared, nodes, branches, gates_EO, weights)
        keep_z = call.policy in ("all", "bn")
        groups: list[_Group] = []
        for node in range(geometry.nodes):
            for number, (first, last) in enumerate(call.groups(node, FORWARD_ROWS)):
                group = walk.forward(first, last, accumulate=number > 0)
                if not keep_z:
                    group.z_JBHWC = None
                groups.append(group)
                del group
        ctx.call, ctx.groups, ctx.input_stats = call, groups, input_stats
        ctx.prepared = prepared if call.policy in ("all", "nodes") and call.preprocess else None
        ctx.need_w = any(ctx.needs_input_grad[3 + num_inputs :])
        ctx.save_for_backward(*inputs, nodes, branches, gates_EO, *weights)
        return nodes if _side_by_side(call) else nodes[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Any, ...]:
        call: FusedCall = ctx.call
        num_inputs = call.layer.spec.inputs
        inputs, (nodes, branches, gates_EO, *weights) = ctx.saved_tensors[:num_inputs], ctx.saved_tensors[num_inputs:]
        need_gates, need_inputs = ctx.needs_input_grad[2], ctx.needs_input_grad[3 : 3 + num_inputs]
        prepared, ctx.prepared = ctx.prepared, None
        if prepared is None:
            prepared = _prepare(call, inputs, weights, ctx.input_stats)[0]
        geometry = _geometry(call, prepared)
        walk = _Launches(call, geometry, prepared, nodes, branches, gates_EO, weights)
        want_inputs = any(need_inputs) or (bool(call.preprocess) and ctx.need_w)
        grads = _Grads(walk, d_out, want_inputs, ctx.need_w)
        d_gates_J = gates_EO.new_zeros(len(branches)) if need_gates else None
        for group in reversed(ctx.groups):
            for part in _parts(group):
                walk.backward(part, grads, d_gates_J)
            group.z_JBHWC = None
        d_gates = None if d_gates_J is None else _scatter_gates(d_gates_J, branches, gates_EO)
        weight_grads: list[Tensor | None] = [*grads.arenas, *[None] * (len(weights) - 3)]
        d_inputs = grads.inputs
        del walk, grads
        input_grads = _inputs_backward(ctx, prepared, d_inputs, inputs, weights, need_inputs, weight_grads)
        return (None, None, d_gates, *input_grads, *weight_grads)


class _Grads:
    """Gradient buffers of one backward pass, filled by the launches."""

    def __init__(self, walk: _Launches, d_out: Tensor, want_inputs: bool, need_w: bool) -> None:
        self.nodes = d_out.contiguous()
        if not _side_by_side(walk.call):
            self.nodes = torch.zeros_like(walk.nodes)
            self.nodes[-1].copy_(d_out)
        self.inputs = torch.zeros_like(walk.inputs) if want_inputs else None
        self.arenas: list[Tensor | None] = [torch.zeros_like(arena) if need_w else None for arena in walk.arenas]


class _Launches:
    """One cell's tensors and the order in which the kernels are launched on them."""

    def __init__(
        self, call: FusedCall, geometry: Geometry, inputs: Tensor, nodes: Tensor, branches: Tensor, gates_EO: Tensor,
        weights: Sequence[Tensor],
    ) -> None:  # fmt: skip
        self.call, self.geometry = call, geometry
        self.inputs, self.nodes, self.branches, self.gates_EO = inputs, nodes, branches, gates_EO
        self.arenas = (weights[0], weights[1], weights[2])

    def _stage(
        self, rows: Tensor, z1: Tensor | None, stats1: Tensor | None, stats: Tensor | None, *, last: bool
    ) -> tuple[Tensor, Tensor]:
        return ops.grouped_stage(
            self.inputs, self.nodes, rows, *self.arenas, z1, stats1, self.geometry, last=last, stats_J2C=stats
        )

    def _mask(self, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
        drop = self.call.drop
        if drop is None:
            return None, None
        return ops.drop_mask(rows, drop.clock, self.call.index, drop.rate, self.geometry, kind=drop.kind)

    def forward(self, first: int, last: int, *, accumulate: bool) -> _Group:
        """Run some branches of a node and add them to it."""
        rows = self.branches[first:last]
        z1, stats1 = self._stage(rows, None, None, None, last=False) if self.call.two_stages else (None, None)
        z, stats = self._stage(rows, z1, stats1, None, last=True)
        del z1
        ops.bn_combine(
            self.inputs, self.nodes, z, stats, rows, self.gates_EO, *self._mask(rows), self.geometry,
            accumulate=accumulate,
        )  # fmt: skip
        return _Group(first, last, stats, stats1, z)

    def backward(self, group: _Group, grads: _Grads, d_gates_J: Tensor | None) -> None:
        """Send a node's gradient through some of its branches."""
        rows, geometry = self.branches[group.first : group.last], self.geometry
        z1, z, stats, stats1 = None, group.z_JBHWC, group.stats_J2C, group.stats1_J2C
        if self.call.two_stages:
            z1, _ = self._stage(rows, None, None, stats1, last=False)
        if z is None:
            z, _ = self._stage(rows, z1, stats1, stats, last=True)
        mask = self._mask(rows)
        sums, d_gates = ops.bn_combine_backward(grads.nodes, self.inputs, self.nodes, z, stats, rows, *mask, geometry)
        if d_gates_J is not None:
            d_gates_J[group.first : group.last] = d_gates
        _, pointwise, dense = self.arenas
        u = ops.point_backward(
            grads.nodes, None, z, stats, sums, rows, self.gates_EO, pointwise, dense, geometry, last=True
        )
        self._weight_grads(grads, None, z, stats, sums, u, z1, stats1, rows, last=True)
        del z
        group.z_JBHWC = None
        if z1 is not None:
            assert stats1 is not None
            v, sums1 = ops.taps_backward(u, z1, stats1, rows, self.arenas[0], geometry)
            ops.point_backward(
                grads.nodes, v, z1, stats1, sums1, rows, self.gates_EO, pointwise, dense, geometry, last=False, out=u
            )
            self._weight_grads(grads, v, z1, stats1, sums1, u, None, None, rows, last=False)
            del v
        del z1
        ops.gather_backward(
            grads.nodes, u, self.inputs, self.nodes, rows, self.gates_EO, *self.arenas, *mask, grads.inputs, geometry
        )

    def _weight_grads(
        self, grads: _Grads, v: Tensor | None, z: Tensor, stats: Tensor, sums: Tensor, u: Tensor, z1: Tensor | None,
        stats1: Tensor | None, rows: Tensor, *, last: bool,
    ) -> None:  # fmt: skip
        d_depthwise, d_pointwise, d_dense = grads.arenas
        if d_depthwise is None or d_pointwise is None or d_dense is None:
            return
        ops.stage_weight_grads(
            grads.nodes, v, z, stats, sums, u, self.inputs, self.nodes, z1, stats1, rows, self.gates_EO,
            self.arenas[0], d_depthwise, d_pointwise, d_dense, self.geometry, last=last,
        )  # fmt: skip


def _evenly(total: int, size: int) -> list[tuple[int, int]]:
    """(first, last + 1) of stretches of at most `size`, as even as they can be."""
    count = -(-total // size)
    return [(total * number // count, total * (number + 1) // count) for number in range(count)]


def _parts(group: _Group) -> Iterator[_Group]:
    """The group in launches of backward's size, the last first; slices of kept maps are views."""
    for low, high in reversed(_evenly(group.last - group.first, BACKWARD_ROWS)):
        z = None if group.z_JBHWC is None else group.z_JBHWC[low:high]
        stats1 = None if group.stats1_J2C is None else group.stats1_J2C[low:high]
        yield _Group(group.first + low, group.first + high, group.stats_J2C[low:high], stats1, z)


def _side_by_side(call: FusedCall) -> bool:
    """Whether the output is all nodes joined on channels (DARTS), not the last node alone."""
    spec = call.layer.spec
    every = tuple(range(spec.inputs, spec.num_states))
    assert spec.concat in (every, every[-1:]), "the kernels know these two kinds of output"
    return spec.concat == every and len(every) > 1


def _geometry(call: FusedCall, prepared_IBHWC: Tensor) -> Geometry:
    spec = call.layer.spec
    num_inputs, batch, height, width, channels = prepared_IBHWC.shape
    stride = 2 if spec.reduction else 1
    out_height, out_width = -(-height // stride), -(-width // stride)
    num_nodes = spec.num_states - spec.inputs
    if _side_by_side(call):
        node_stride, row_stride = channels, channels * num_nodes
    else:
        node_stride, row_stride = batch * out_height * out_width * channels, channels
    return Geometry(
        batch, height, width, channels, out_height, out_width, num_inputs, num_nodes, stride, node_stride, row_stride
    )


def _empty_nodes(call: FusedCall, like: Tensor, geometry: Geometry) -> Tensor:
    shape = (geometry.batch, geometry.out_height, geometry.out_width)
    if _side_by_side(call):
        return like.new_empty(*shape, geometry.channels * geometry.nodes)
    return like.new_empty(geometry.nodes, *shape, geometry.channels)


def _prepare(
    call: FusedCall, inputs: Sequence[Tensor], weights: Sequence[Tensor], stats: list[Tensor] | None
) -> tuple[Tensor, list[Tensor]]:
    """The cell's prepared inputs [I, B, H, W, C] and the statistics [2, C] of each."""
    if not call.preprocess:
        return inputs[0].contiguous()[None], []
    batch, height, width = inputs[-1].shape[:3]
    prepared = inputs[-1].new_empty(len(inputs), batch, height, width, call.layer.channels)
    found = []
    for number, (x, place) in enumerate(zip(inputs, call.preprocess, strict=True)):
        own = weights[place]
        second = own[1] if len(own) == 2 else None
        found.append(ops.prepare_into(x, own[0], second, prepared[number], None if stats is None else stats[number]))
    return prepared, found


def _inputs_backward(
    ctx: Any, prepared: Tensor, d_prepared: Tensor | None, inputs: Sequence[Tensor], weights: Sequence[Tensor],
    need_inputs: Sequence[bool], weight_grads: list[Tensor | None],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of the inputs; fills in those of the preprocessing's weights."""
    call: FusedCall = ctx.call
    if d_prepared is None:
        return [None] * len(inputs)
    if not call.preprocess:
        return [d_prepared[0] if need_inputs[0] else None]
    found: list[Tensor | None] = []
    for number, place in enumerate(call.preprocess):
        own = weights[place]
        dx, dw = ops.prepare_backward(
            d_prepared[number], prepared[number], inputs[number], own[0], own[1] if len(own) == 2 else None,
            ctx.input_stats[number], need_x=need_inputs[number], need_w=ctx.need_w,
        )  # fmt: skip
        found.append(dx if need_inputs[number] else None)
        if ctx.need_w:
            weight_grads[place] = dw.split([len(weight) for weight in own])
    return found


def _scatter_gates(d_gates_J: Tensor, branches: Tensor, gates_EO: Tensor) -> Tensor:
    """Gate gradients of the rows at their places; rows without a gate go to a place that is cut off."""
    size = gates_EO.numel()
    place_J = branches[:, codes.GATE].long()
    place_J = torch.where(place_J < 0, size, place_J)
    return d_gates_J.new_zeros(size + 1).scatter(0, place_J, d_gates_J)[:size].view_as(gates_EO)
