"""BatchNorm, gate and sum of a node's branches, and the one backward pass that yields all their sums.

Shape suffixes: as in `branches`; P pixels of a tile. All branches of a node receive the same gradient dy, so one
pass over dy and the branches' maps finds sum(dy), sum(dy * xhat) and with it the gradient of every gate
(sum over channels of the latter): the formulas are those of `reference.batchnorm`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .branches import Geometry
from .checks import check_branch_maps, check_drop, check_gates, check_maps, check_nodes, check_rows, check_vectors
from .launch import blocks
from .taps import AVG_DIRECT, CODE, GATE, NONE, OUTPUT, SKIP, SOURCE, column


@triton.jit
def source_rows(
    inputs, nodes, source, p, c, mask, input_plane, node_stride,
    I: tl.constexpr, C: tl.constexpr, ROW_STRIDE: tl.constexpr,
):  # fmt: skip
    """[BP, BC] of a state that has the nodes' size."""
    if source < I:
        x = inputs + source * input_plane
        value = tl.load(x + p[:, None] * C + c[None, :], mask=mask, other=0.0)
    else:
        x = nodes + (source - I) * node_stride
        value = tl.load(x + p[:, None] * ROW_STRIDE + c[None, :], mask=mask, other=0.0)
    return value


@triton.jit
def combine_kernel(
    inputs, nodes, z, stats, rows, gates, drop, drop_scale, pixels, count, input_plane, node_stride,
    I: tl.constexpr, C: tl.constexpr, ROW_STRIDE: tl.constexpr, ACCUMULATE: tl.constexpr, DROP: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of pixels x blocks of channels."""
    p = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < C
    mask = (p < pixels)[:, None] & inside[None, :]
    out = nodes + column(rows, 0, OUTPUT) * node_stride + p[:, None] * ROW_STRIDE + c[None, :]
    total = tl.zeros((BP, BC), ACC)
    if ACCUMULATE:
        total += tl.load(out, mask=mask, other=0.0).to(ACC)
    plane = tl.cast(pixels, tl.int64) * C
    for j in range(count):
        code = column(rows, j, CODE)
        if code != NONE:
            gate = tl.load(gates + column(rows, j, GATE)).to(ACC)
            own = j * plane + p[:, None] * C + c[None, :]
            if code == SKIP:
                x = source_rows(
                    inputs, nodes, column(rows, j, SOURCE), p, c, mask, input_plane, node_stride, I, C, ROW_STRIDE
                ).to(ACC)
                if DROP:
                    gate = gate * tl.load(drop_scale + j).to(ACC)
                    x = x * tl.load(drop + own, mask=mask, other=0).to(ACC)
                total += gate * x
            else:
                mean = tl.load(stats + j * (2 * C) + c, mask=inside, other=0.0).to(ACC)
                scale = tl.load(stats + j * (2 * C) + C + c, mask=inside, other=0.0).to(ACC) * gate
                value = tl.load(z + own, mask=mask, other=0.0).to(ACC)
                total += (value - mean[None, :]) * scale[None, :]
    tl.store(out, total.to(nodes.dtype.element_ty), mask=mask)


@triton.jit
def reduce_kernel(
    d_nodes, inputs, nodes, z, stats, rows, drop, partial, pixels, tiles, input_plane, node_stride,
    I: tl.constexpr, C: tl.constexpr, ROW_STRIDE: tl.constexpr, J: tl.constexpr, DROP: tl.constexpr,
    BJ: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, REPEAT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Partials [1 + J, tiles, C]: sum of dy, then for each branch sum of dy * (z - mean); dy is read once.

    Grid: groups of REPEAT tiles x blocks of channels.
    """
    t = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    jj = tl.arange(0, BJ)
    inside = c < C
    d_out = d_nodes + column(rows, 0, OUTPUT) * node_stride
    plane = tl.cast(pixels, tl.int64) * C
    sum_dy = tl.zeros((BC,), ACC)
    sums = tl.zeros((BJ, BC), ACC)
    for i in range(REPEAT):
        p = (tl.cast(t, tl.int64) * REPEAT + i) * BP + tl.arange(0, BP)
        mask = (p < pixels)[:, None] & inside[None, :]
        dy = tl.load(d_out + p[:, None] * ROW_STRIDE + c[None, :], mask=mask, other=0.0).to(ACC)
        sum_dy += tl.sum(dy, 0)
        for j in range(J):
            code = column(rows, j, CODE)
            if code != NONE:
                own = j * plane + p[:, None] * C + c[None, :]
                if code == SKIP:
                    value = source_rows(
                        inputs, nodes, column(rows, j, SOURCE), p, c, mask, input_plane, node_stride, I, C, ROW_STRIDE
                    ).to(ACC)
                    if DROP:
                        value = value * tl.load(drop + own, mask=mask, other=0).to(ACC)
                else:
                    mean = tl.load(stats + j * (2 * C) + c, mask=inside, other=0.0).to(ACC)
                    value = tl.load(z + own, mask=mask, other=0.0).to(ACC) - mean[None, :]
                found = tl.sum(dy * value, 0)
                sums += tl.where(jj[:, None] == j, found[None, :], 0.0)
    tl.store(partial + t * C + c, sum_dy, mask=inside)
    place = partial + ((1 + jj[:, None]) * tiles + t) * C + c[None, :]
    tl.store(place, sums, mask=(jj < J)[:, None] & inside[None, :])


@triton.jit
def sums_kernel(
    partial, stats, rows, drop_scale, sums, d_gates, tiles,
    C: tl.constexpr, DROP: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums of the partials in a fixed order. Grid: branches."""
    j = tl.program_id(0)
    code = column(rows, j, CODE)
    has_norm = (code != NONE) & (code != SKIP) & (code != AVG_DIRECT)
    gate = tl.zeros((1,), ACC)
    for block in range(0, C, BC):
        c = block + tl.arange(0, BC)
        inside = c < C
        sum_dy = tl.zeros((BC,), ACC)
        found = tl.zeros((BC,), ACC)
        for first in range(0, tiles, BT):
            t = first + tl.arange(0, BT)
            mask = (t < tiles)[:, None] & inside[None, :]
            sum_dy += tl.sum(tl.load(partial + t[:, None] * C + c[None, :], mask=mask, other=0.0), 0)
            own = partial + ((1 + j) * tiles + t)[:, None] * C + c[None, :]
            found += tl.sum(tl.load(own, mask=mask, other=0.0), 0)
        rstd = tl.load(stats + j * (2 * C) + C + c, mask=inside, other=0.0).to(ACC)
        found = tl.where(has_norm, found * rstd, found)
        gate += tl.sum(found, 0)
        place = sums + j * (2 * C) + c
        tl.store(place, tl.where(has_norm, sum_dy, 0.0), mask=inside)
        tl.store(place + C, tl.where(has_norm, found, 0.0), mask=inside)
    if DROP:
        if code == SKIP:
            gate = gate * tl.load(drop_scale + j).to(ACC)
    tl.store(d_gates + j + tl.arange(0, 1), gate)


def bn_combine(
    inputs_IBHWC: Tensor, nodes: Tensor, z_JBHWC: Tensor, stats_J2C: Tensor, branches_J8: Tensor, gates_EO: Tensor,
    drop_JBHWC: Tensor | None, drop_scale_J: Tensor | None, geometry: Geometry, *, accumulate: bool,
) -> None:  # fmt: skip
    """See the twin `reference.bn_combine.bn_combine`.

    Raises:
        KernelError: for a tensor of a wrong dtype, device, shape or layout.
    """
    _check(inputs_IBHWC, nodes, z_JBHWC, stats_J2C, branches_J8, drop_JBHWC, drop_scale_J, geometry)
    check_gates(gates_EO, inputs_IBHWC)
    b = blocks("combine", inputs_IBHWC, geometry)
    c = geometry.channels
    dropped = drop_JBHWC is not None
    combine_kernel[(triton.cdiv(geometry.pixels, b.pixels), triton.cdiv(c, b.channels))](
        inputs_IBHWC, nodes, z_JBHWC, stats_J2C, branches_J8, gates_EO, drop_JBHWC if dropped else branches_J8,
        drop_scale_J if dropped else gates_EO, geometry.pixels, branches_J8.shape[0], inputs_IBHWC.stride(0),
        geometry.node_stride, I=geometry.inputs, C=c, ROW_STRIDE=geometry.row_stride, ACCUMULATE=accumulate,
        DROP=dropped, BP=b.pixels, BC=b.channels, ACC=b.acc, num_warps=b.num_warps,
    )  # fmt: skip


def bn_combine_backward(
    d_nodes: Tensor, inputs_IBHWC: Tensor, nodes: Tensor, z_JBHWC: Tensor, stats_J2C: Tensor, branches_J8: Tensor,
    drop_JBHWC: Tensor | None, drop_scale_J: Tensor | None, geometry: Geometry,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(sums_J2C, d_gates_J); see the twin `reference.bn_combine.bn_combine_backward`.

    Raises:
        KernelError: for a tensor of a wrong dtype, device, shape or layout.
    """
    _check(inputs_IBHWC, nodes, z_JBHWC, stats_J2C, branches_J8, drop_JBHWC, drop_scale_J, geometry)
    check_nodes("d_nodes", d_nodes, inputs_IBHWC, geometry)
    b = blocks("reduce", inputs_IBHWC, geometry)
    num, c = branches_J8.shape[0], geometry.channels
    tiles = triton.cdiv(geometry.pixels, b.pixels * b.repeat)
    dropped = drop_JBHWC is not None
    partial = inputs_IBHWC.new_empty(1 + num, tiles, c, dtype=b.wide)
    reduce_kernel[(tiles, triton.cdiv(c, b.channels))](
        d_nodes, inputs_IBHWC, nodes, z_JBHWC, stats_J2C, branches_J8, drop_JBHWC if dropped else branches_J8, partial,
        geometry.pixels, tiles, inputs_IBHWC.stride(0), geometry.node_stride, I=geometry.inputs, C=c,
        ROW_STRIDE=geometry.row_stride, J=num, DROP=dropped, BJ=triton.next_power_of_2(num), BP=b.pixels,
        BC=b.channels, REPEAT=b.repeat, ACC=b.acc, num_warps=b.num_warps,
    )  # fmt: skip
    sums = torch.empty_like(stats_J2C)
    d_gates = stats_J2C.new_empty(num)
    sums_kernel[(num,)](
        partial, stats_J2C, branches_J8, drop_scale_J if dropped else sums, sums, d_gates, tiles, C=c, DROP=dropped,
        BC=b.channels, BT=16, ACC=b.acc, num_warps=4,
    )  # fmt: skip
    return sums, d_gates


def _check(
    inputs_IBHWC: Tensor, nodes: Tensor, z_JBHWC: Tensor, stats_J2C: Tensor, branches_J8: Tensor,
    drop_JBHWC: Tensor | None, drop_scale_J: Tensor | None, geometry: Geometry,
) -> None:  # fmt: skip
    check_maps(inputs_IBHWC, nodes, geometry)
    check_rows(branches_J8, inputs_IBHWC)
    check_branch_maps("z_JBHWC", z_JBHWC, branches_J8, inputs_IBHWC, geometry)
    check_vectors("stats_J2C", stats_J2C, branches_J8, inputs_IBHWC)
    check_drop(drop_JBHWC, drop_scale_J, z_JBHWC)
