"""Gradients of maps through the branches of a node: pointwise convolution, inner BatchNorm, and to the sources.

Shape suffixes: as in `branches`. Nothing is summed by atomics: a program owns what it writes, and a source's
gradient is gathered by the program that owns its tile, from all branches that read it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .branches import Geometry
from .checks import (
    check_branch_maps,
    check_gates,
    check_nodes,
    check_rows,
    check_slots,
    check_vectors,
)
from .launch import all_registers, blocks
from .taps import (
    AVG_DIRECT,
    CODE,
    CONV1,
    DIL3,
    DIL5,
    NONE,
    POINT0,
    POINT1,
    SEP3,
    SEP5,
    SKIP,
    TAPS1,
    column,
    four_outputs,
    group_of_four,
    load_pixel,
    pixels_grad,
    product,
    row_gradient,
    store_row,
)


@triton.jit
def point_kernel(
    d_nodes, v, z, stats, sums, rows, gates, pointwise, u, pixels, node_stride,
    C: tl.constexpr, ROW_STRIDE: tl.constexpr, LAST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
    BN: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of pixels x branches x blocks of channels of u."""
    j = tl.program_id(1)
    code = column(rows, j, CODE)
    if (code == NONE) | (code == SKIP):
        return
    two_stages = (code == SEP3) | (code == SEP5)
    if (not LAST) & (not two_stages):
        return
    p = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    n = tl.program_id(2) * BN + tl.arange(0, BN)
    alive = p < pixels
    plane = tl.cast(pixels, tl.int64) * C
    dy, gate = row_gradient(rows, j, d_nodes, v, gates, node_stride, plane, LAST, ACC)
    own_z = z + j * plane
    DY_STRIDE: tl.constexpr = ROW_STRIDE if LAST else C
    own_stats = stats + j * (2 * C)
    own_sums = sums + j * (2 * C)
    through = two_stages | (code == DIL3) | (code == DIL5) | (code == CONV1)
    total = tl.zeros((BP, BN), ACC)
    if through:
        slot = column(rows, j, POINT0)
        if LAST & two_stages:
            slot = column(rows, j, POINT1)
        weights = pointwise + tl.cast(slot, tl.int64) * (C * C)
        for block in range(0, C, BC):
            c = block + tl.arange(0, BC)
            dz = pixels_grad(dy, DY_STRIDE, own_z, own_stats, own_sums, gate, pixels, p, alive, c, C, ACC)
            inside = (c < C)[:, None] & (n < C)[None, :]
            weight = tl.load(weights + c[:, None] * C + n[None, :], mask=inside, other=0.0)
            total = product(dz, weight, total, DOT)
    else:
        if code == AVG_DIRECT:
            mask = alive[:, None] & (n < C)[None, :]
            total += gate * tl.load(dy + p[:, None] * DY_STRIDE + n[None, :], mask=mask, other=0.0).to(ACC)
        else:
            total += pixels_grad(dy, DY_STRIDE, own_z, own_stats, own_sums, gate, pixels, p, alive, n, C, ACC)
    out = u + j * plane + p[:, None] * C + n[None, :]
    tl.store(out, total.to(u.dtype.element_ty), mask=alive[:, None] & (n < C)[None, :])


@triton.jit
def _masked_row(a, z1, mean, rstd, n, h, w, alive, c, H, W, C: tl.constexpr, ACC: tl.constexpr):
    """(gradient where the inner activation is positive, the same times xhat) of one output each."""
    value = load_pixel(z1, C, n, h, w, alive, c, H, W, C, ACC)
    xhat = (value - mean[None, :]) * rstd[None, :]
    inside = (alive & (w < W))[:, None] & (c < C)[None, :]
    a = tl.where(inside & (xhat > 0), a, 0.0)
    return a, a * xhat


@triton.jit
def inner_kernel(
    u, z1, stats1, rows, depthwise, v, partial, batch, tiles,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Flipped taps and the inner ReLU of sep_conv. Grid: tiles x branches x blocks of channels."""
    tile = tl.program_id(0)
    j = tl.program_id(1)
    code = column(rows, j, CODE)
    if (code != SEP3) & (code != SEP5):
        return
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    inside = c < C
    PER_ROW: tl.constexpr = (W + 3) // 4
    g = tile * BP + tl.arange(0, BP)
    alive = g < batch * H * PER_ROW
    n, h, w = group_of_four(g, PER_ROW, H, 1)
    plane = j * (tl.cast(batch, tl.int64) * (H * W * C))
    taps = depthwise + tl.cast(column(rows, j, TAPS1), tl.int64) * C
    none = tl.zeros((BC,), ACC)
    if code == SEP3:
        a0, a1, a2, a3 = four_outputs(
            u + plane, C, taps, n, h - 1, w - 1, alive, c, none, none, H, W,
            C, 3, 1, 1, 1, 1, False, True, False, BP, BC, ACC,
        )  # fmt: skip
    else:
        a0, a1, a2, a3 = four_outputs(
            u + plane, C, taps, n, h - 2, w - 2, alive, c, none, none, H, W,
            C, 5, 1, 1, 1, 1, False, True, False, BP, BC, ACC,
        )  # fmt: skip
    mean = tl.load(stats1 + j * (2 * C) + c, mask=inside, other=0.0).to(ACC)
    rstd = tl.load(stats1 + j * (2 * C) + C + c, mask=inside, other=0.0).to(ACC)
    a0, b0 = _masked_row(a0, z1 + plane, mean, rstd, n, h, w, alive, c, H, W, C, ACC)
    a1, b1 = _masked_row(a1, z1 + plane, mean, rstd, n, h, w + 1, alive, c, H, W, C, ACC)
    a2, b2 = _masked_row(a2, z1 + plane, mean, rstd, n, h, w + 2, alive, c, H, W, C, ACC)
    a3, b3 = _masked_row(a3, z1 + plane, mean, rstd, n, h, w + 3, alive, c, H, W, C, ACC)
    store_row(v + plane, n, h, w, alive, c, a0, H, W, C)
    store_row(v + plane, n, h, w + 1, alive, c, a1, H, W, C)
    store_row(v + plane, n, h, w + 2, alive, c, a2, H, W, C)
    store_row(v + plane, n, h, w + 3, alive, c, a3, H, W, C)
    place = partial + (j * tiles + tile) * (2 * C) + c
    tl.store(place, tl.sum(a0 + a1 + a2 + a3, 0), mask=inside)
    tl.store(place + C, tl.sum(b0 + b1 + b2 + b3, 0), mask=inside)


@triton.jit
def inner_sums_kernel(
    partial, rows, sums, tiles, C: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, ACC: tl.constexpr
):
    """Sums of the inner partials in a fixed order. Grid: branches x blocks of channels."""
    j = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    code = column(rows, j, CODE)
    first_sum = tl.zeros((BC,), ACC)
    second_sum = tl.zeros((BC,), ACC)
    if (code == SEP3) | (code == SEP5):
        for first in range(0, tiles, BT):
            t = first + tl.arange(0, BT)
            mask = (t < tiles)[:, None] & (c < C)[None, :]
            own = partial + (j * tiles + t)[:, None] * (2 * C) + c[None, :]
            first_sum += tl.sum(tl.load(own, mask=mask, other=0.0), 0)
            second_sum += tl.sum(tl.load(own + C, mask=mask, other=0.0), 0)
    tl.store(sums + j * (2 * C) + c, first_sum, mask=c < C)
    tl.store(sums + j * (2 * C) + C + c, second_sum, mask=c < C)


def point_backward(
    d_nodes: Tensor, v_JBHWC: Tensor | None, z_JBHWC: Tensor, stats_J2C: Tensor, sums_J2C: Tensor,
    branches_J8: Tensor, gates_EO: Tensor, pointwise_SCC: Tensor, dense_D9CC: Tensor, geometry: Geometry, *,
    last: bool, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """u_JBHWC; see the twin `reference.stage_backward.point_backward`.

    Raises:
        KernelError: for a tensor of a wrong dtype, device, shape or layout.
    """
    check_rows(branches_J8, z_JBHWC)
    check_branch_maps("z_JBHWC", z_JBHWC, branches_J8, z_JBHWC, geometry)
    check_nodes("d_nodes", d_nodes, z_JBHWC, geometry)
    check_vectors("stats_J2C", stats_J2C, branches_J8, z_JBHWC)
    check_vectors("sums_J2C", sums_J2C, branches_J8, z_JBHWC)
    check_gates(gates_EO, z_JBHWC)
    check_slots("pointwise_SCC", pointwise_SCC, (geometry.channels,) * 2, z_JBHWC)
    check_slots("dense_D9CC", dense_D9CC, (9, geometry.channels, geometry.channels), z_JBHWC)
    if v_JBHWC is not None:
        check_branch_maps("v_JBHWC", v_JBHWC, branches_J8, z_JBHWC, geometry)
    u_JBHWC = torch.empty_like(z_JBHWC) if out is None else out
    check_branch_maps("out", u_JBHWC, branches_J8, z_JBHWC, geometry)
    b = blocks("point", z_JBHWC, geometry)
    num, c = branches_J8.shape[0], geometry.channels
    point_kernel[(triton.cdiv(geometry.pixels, b.pixels), num, triton.cdiv(c, b.outputs))](
        d_nodes, z_JBHWC if v_JBHWC is None else v_JBHWC, z_JBHWC, stats_J2C, sums_J2C, branches_J8, gates_EO,
        pointwise_SCC, u_JBHWC, geometry.pixels, geometry.node_stride, C=c, ROW_STRIDE=geometry.row_stride, LAST=last,
        BP=b.pixels, BC=b.channels, BN=b.outputs, ACC=b.acc, DOT=b.dot, num_warps=b.num_warps, **all_registers(),
    )  # fmt: skip
    return u_JBHWC


def taps_backward(
    u_JBHWC: Tensor, z1_JBHWC: Tensor, stats1_J2C: Tensor, branches_J8: Tensor, depthwise_TC: Tensor,
    geometry: Geometry,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(v_JBHWC, sums1_J2C); see the twin `reference.stage_backward.taps_backward`.

    Raises:
        KernelError: for a tensor of a wrong dtype, device, shape or layout.
    """
    check_rows(branches_J8, u_JBHWC)
    check_branch_maps("u_JBHWC", u_JBHWC, branches_J8, u_JBHWC, geometry)
    check_branch_maps("z1_JBHWC", z1_JBHWC, branches_J8, u_JBHWC, geometry)
    check_vectors("stats1_J2C", stats1_J2C, branches_J8, u_JBHWC)
    check_slots("depthwise_TC", depthwise_TC, (geometry.channels,), u_JBHWC)
    b = blocks("taps", u_JBHWC, geometry)
    num, c = branches_J8.shape[0], geometry.channels
    tiles = triton.cdiv(geometry.batch * geometry.out_height * triton.cdiv(geometry.out_width, 4), b.pixels)
    v_JBHWC = torch.empty_like(u_JBHWC)
    partial = u_JBHWC.new_empty(num, tiles, 2, c, dtype=b.wide)
    inner_kernel[(tiles, num, triton.cdiv(c, b.channels))](
        u_JBHWC, z1_JBHWC, stats1_J2C, branches_J8, depthwise_TC, v_JBHWC, partial, geometry.batch, tiles,
        C=c, H=geometry.out_height, W=geometry.out_width, BP=b.pixels, BC=b.channels, ACC=b.acc,
        num_warps=b.num_warps, **all_registers(),
    )  # fmt: skip
    sums = torch.empty_like(stats1_J2C)
    inner_sums_kernel[(num, triton.cdiv(c, b.channels))](
        partial, branches_J8, sums, tiles, C=c, BC=b.channels, BT=8, ACC=b.acc, num_warps=4
    )
    return v_JBHWC, sums
