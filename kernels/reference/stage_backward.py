"""Gradients of maps through the branches of a node in plain PyTorch: the twin of `kernels.stage_backward`.

Shape suffixes: as in `kernels.branches`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..branches import AVG, AVG_DIRECT, CONV1, CONV3, MAX, NONE, REDUCE, SKIP, Geometry
from . import batchnorm, conv, pooling
from .grouped_stage import dense_weight, inner_activation, wide
from .rows import SEPARABLE, Row, node_map, rows_of, source_map


def output_grad(
    row: Row, d_nodes: Tensor, z_JBHWC: Tensor, stats_J2C: Tensor, sums_J2C: Tensor, gates_EO: Tensor,
    geometry: Geometry,
) -> Tensor:  # fmt: skip
    """dz of a branch's last BatchNorm."""
    dtype = wide(z_JBHWC.dtype)
    dy = node_map(d_nodes, row.output, geometry).to(dtype)
    gate = gates_EO.flatten()[row.gate]
    if row.code == AVG_DIRECT:
        return gate * dy
    return norm_grad(dy, z_JBHWC[row.number].to(dtype), stats_J2C[row.number], sums_J2C[row.number], gate)


def norm_grad(dy: Tensor, z: Tensor, stats_2C: Tensor, sums_2C: Tensor, scale: float | Tensor) -> Tensor:
    stats = (stats_2C[0], stats_2C[1])
    return batchnorm.input_grad(dy, z, stats, sums_2C[0], sums_2C[1], scale, overwrite_z=False)


def inner_grad(row: Row, v_JBHWC: Tensor | None, z1_JBHWC: Tensor, stats1_J2C: Tensor, sums1_J2C: Tensor) -> Tensor:
    """dz1 of a sep_conv's inner BatchNorm."""
    assert v_JBHWC is not None
    dtype = wide(z1_JBHWC.dtype)
    n = row.number
    return norm_grad(v_JBHWC[n].to(dtype), z1_JBHWC[n].to(dtype), stats1_J2C[n], sums1_J2C[n], 1.0)


def point_backward(
    d_nodes: Tensor, v_JBHWC: Tensor | None, z_JBHWC: Tensor, stats_J2C: Tensor, sums_J2C: Tensor,
    branches_J8: Tensor, gates_EO: Tensor, pointwise_SCC: Tensor, dense_D9CC: Tensor, geometry: Geometry, *,
    last: bool, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """u_JBHWC: gradient of what a stage's pointwise convolution reads; dz itself where it reads a state.

    Args:
        last: True for the last or only stage of every branch; False for the first stage of sep_conv, where z,
            stats and sums are those of its inner BatchNorm and v is that BatchNorm's output's gradient.
        out: written to and returned, else a new tensor; planes of other branches are left as they are.
    """
    u_JBHWC = torch.empty_like(z_JBHWC) if out is None else out
    for row in rows_of(branches_J8, geometry):
        if row.code in (NONE, SKIP) or (not last and row.stages < 2):
            continue
        if last:
            dz = output_grad(row, d_nodes, z_JBHWC, stats_J2C, sums_J2C, gates_EO, geometry)
        else:
            dz = inner_grad(row, v_JBHWC, z_JBHWC, stats_J2C, sums_J2C)
        if row.code in SEPARABLE or row.code == CONV1:
            slot = row.points[1] if last and row.stages == 2 else row.points[0]
            dz = conv.pointwise_input_grad(dz, pointwise_SCC[slot].to(dz.dtype))
        u_JBHWC[row.number] = dz.to(u_JBHWC.dtype)
    return u_JBHWC


def taps_backward(
    u_JBHWC: Tensor, z1_JBHWC: Tensor, stats1_J2C: Tensor, branches_J8: Tensor, depthwise_TC: Tensor,
    geometry: Geometry,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(v_JBHWC, sums1_J2C): gradient of sep_conv's inner BatchNorm's output, the ReLU included, and its sums."""
    v_JBHWC = torch.empty_like(u_JBHWC)
    sums1 = torch.zeros_like(stats1_J2C)
    dtype = wide(u_JBHWC.dtype)
    for row in rows_of(branches_J8, geometry):
        if row.stages < 2:
            continue
        weight = row.depthwise(depthwise_TC, 1).to(dtype)
        a = inner_activation(row, z1_JBHWC, stats1_J2C)
        da, _ = conv.depthwise_grads(
            u_JBHWC[row.number].to(dtype), a, weight, row.dilation(), 1, need_x=True, need_w=False
        )
        assert da is not None
        v = da * (a > 0)
        stats = (stats1_J2C[row.number, 0], stats1_J2C[row.number, 1])
        sums1[row.number, 0] = batchnorm.sum_rows(v)
        sums1[row.number, 1] = batchnorm.sum_dy_xhat(v, z1_JBHWC[row.number].to(dtype), stats, sums1[row.number, 0])
        v_JBHWC[row.number] = v.to(v_JBHWC.dtype)
    return v_JBHWC, sums1


def gather_backward(
    d_nodes: Tensor, u_JBHWC: Tensor, inputs_IBHWC: Tensor, nodes: Tensor, branches_J8: Tensor, gates_EO: Tensor,
    depthwise_TC: Tensor, pointwise_SCC: Tensor, dense_D9CC: Tensor, drop_JBHWC: Tensor | None,
    drop_scale_J: Tensor | None, d_inputs_IBHWC: Tensor | None, geometry: Geometry,
) -> None:  # fmt: skip
    """Add every branch's gradient to that of its source; inputs are left out where d_inputs is None."""
    dtype = wide(inputs_IBHWC.dtype)
    rows = [row for row in rows_of(branches_J8, geometry) if row.code != NONE]
    for source in sorted({row.source for row in rows}):
        if source < geometry.inputs and d_inputs_IBHWC is None:
            continue
        own = [row for row in rows if row.source == source]
        x = source_map(inputs_IBHWC, nodes, source, geometry).to(dtype)
        target = source_map(inputs_IBHWC if d_inputs_IBHWC is None else d_inputs_IBHWC, d_nodes, source, geometry)
        total = target.to(dtype)
        for row in own:
            if row.code == SKIP:
                dy = node_map(d_nodes, row.output, geometry).to(dtype) * gates_EO.flatten()[row.gate]
                if drop_JBHWC is not None and drop_scale_J is not None:
                    dy = dy * (drop_JBHWC[row.number] * drop_scale_J[row.number])
                total = total + dy
                continue
            u = u_JBHWC[row.number].to(dtype)
            total = total + _source_grad(row, u, x, depthwise_TC, pointwise_SCC, dense_D9CC)
        target.copy_(total)


def _source_grad(
    row: Row, u: Tensor, x: Tensor, depthwise_TC: Tensor, pointwise_SCC: Tensor, dense_D9CC: Tensor
) -> Tensor:
    """Gradient of a state through the first convolution or the pool of a branch."""
    if row.code == MAX:
        return pooling.max_pool_input_grad(u, x, row.stride)
    if row.code in (AVG, AVG_DIRECT):
        return pooling.avg_pool_input_grad(u, x, row.stride)
    alive = x > 0
    if row.code == CONV1:
        return u * alive
    if row.code == CONV3:
        weight = dense_weight(row, dense_D9CC).to(u.dtype)
        da, _ = conv.conv_grads(u, torch.relu(x), weight, 1, need_x=True, need_w=False)
        assert da is not None
        return da * alive
    if row.code == REDUCE:
        weight = pointwise_SCC[row.points[0]].to(u.dtype)
        half = weight.shape[0] // 2
        dx = torch.zeros_like(x)
        for number, phase in enumerate(conv.phases_of_reduction(dx)):
            part = slice(number * half, (number + 1) * half)
            phase.copy_(conv.pointwise_input_grad(u[..., part], weight[part]))
        return dx * alive
    weight = row.depthwise(depthwise_TC, 0).to(u.dtype)
    da, _ = conv.depthwise_grads(u, torch.relu(x), weight, row.dilation(), row.stride, need_x=True, need_w=False)
    assert da is not None
    return da * alive
