"""Gradients of maps through the branches of a node: from the node's gradient to the convolutions' inputs.

Shape suffixes: as in `branches`. The sources' own gradients are gathered by `gather_backward`.

The gradient before a BatchNorm is never a map of its own: it is gate * rstd * (dy - S1 / P - xhat * S2 / P), made
from dy and z as they are loaded (Ioffe and Szegedy 2015).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .branches import Geometry
from .checks import check_branch_maps, check_gates, check_like, check_nodes, check_rows, check_vectors, check_weights
from .errors import KernelError
from .gather import gather_backward
from .launch import blocks
from .taps import (
    CODE,
    CONV1,
    GATE,
    NONE,
    OUTPUT,
    POINT0,
    POINT1,
    SEP3,
    SEP5,
    SKIP,
    TAPS1,
    column,
    four_outputs,
    group_of_four,
    product,
)

__all__ = ["gather_backward", "point_backward", "taps_backward"]


@triton.jit
def norm_grad(dy, dy_stride, z, stats, sums, gate, pixels, p, alive, c, C: tl.constexpr, ACC: tl.constexpr):
    """Gradient before a BatchNorm, [BP, BC]; 0 for pixels and channels that do not exist.

    Args:
        dy, dy_stride: gradient of gate * xhat (without the gate), and the distance of its pixels.
        z: the map before the BatchNorm; its pixels are C apart.
        stats, sums: the branch's [2, C]; (0, 1) and zeros make this gate * dy.
    """
    inside_c = c < C
    mean = tl.load(stats + c, mask=inside_c, other=0.0).to(ACC)
    rstd = tl.load(stats + C + c, mask=inside_c, other=0.0).to(ACC)
    factor = rstd * gate
    slope = -factor * rstd * tl.load(sums + C + c, mask=inside_c, other=0.0).to(ACC) / pixels
    offset = -factor * tl.load(sums + c, mask=inside_c, other=0.0).to(ACC) / pixels - mean * slope
    inside = alive[:, None] & inside_c[None, :]
    dy_tile = tl.load(dy + p[:, None] * dy_stride + c[None, :], mask=inside, other=0.0).to(ACC)
    z_tile = tl.load(z + p[:, None] * C + c[None, :], mask=inside, other=0.0).to(ACC)
    return tl.where(inside, dy_tile * factor[None, :] + z_tile * slope[None, :] + offset[None, :], 0.0)


@triton.jit
def point_kernel(
    d_nodes, v, z, stats, sums, rows, gates, pointwise, u, pixels, node_stride,
    C: tl.constexpr, ROW_STRIDE: tl.constexpr, LAST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
    BN: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of pixels x branches x blocks of the pointwise convolution's input channels."""
    j = tl.program_id(1)
    code = column(rows, j, CODE)
    two_stages = (code == SEP3) | (code == SEP5)
    if (code == NONE) | (code == SKIP):
        return
    if (not LAST) & (not two_stages):
        return
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    ci = tl.program_id(2) * BN + tl.arange(0, BN)
    alive = p < pixels
    plane = tl.cast(j, tl.int64) * pixels * C
    stats += j * (2 * C)
    sums += j * (2 * C)
    if LAST:
        dy = d_nodes + column(rows, j, OUTPUT) * tl.cast(node_stride, tl.int64)
        dy_stride: tl.constexpr = ROW_STRIDE
        gate = tl.load(gates + column(rows, j, GATE)).to(ACC)
    else:
        dy = v + plane
        dy_stride: tl.constexpr = C
        gate = tl.full((), 1.0, ACC)
    if two_stages | (code > SEP5) | (code == CONV1):
        slot = column(rows, j, POINT0)
        if LAST & two_stages:
            slot = column(rows, j, POINT1)
        point = pointwise + tl.cast(slot, tl.int64) * (C * C)
        out = tl.zeros((BP, BN), ACC)
        for block in range(0, C, BC):
            co = block + tl.arange(0, BC)
            dz = norm_grad(dy, dy_stride, z + plane, stats, sums, gate, pixels, p, alive, co, C, ACC)
            there = (co < C)[:, None] & (ci < C)[None, :]
            weight = tl.load(point + co[:, None] * C + ci[None, :], mask=there, other=0.0)
            out = product(dz, weight, out, DOT)
    else:
        out = norm_grad(dy, dy_stride, z + plane, stats, sums, gate, pixels, p, alive, ci, C, ACC)
    place = u + plane + p[:, None] * C + ci[None, :]
    tl.store(place, out.to(u.dtype.element_ty), mask=alive[:, None] & (ci < C)[None, :])


@triton.jit
def _through_relu(v, z1, own, scale, shift, inside, first, second, ACC: tl.constexpr):
    """Mask v by the ReLU, store it and add it to the sums of dy and dy * xhat."""
    xhat = tl.load(z1 + own, mask=inside, other=0.0).to(ACC) * scale[None, :] + shift[None, :]
    kept = tl.where(inside & (xhat > 0), v, 0.0)
    return kept, first + tl.sum(kept, 0), second + tl.sum(kept * xhat, 0)


@triton.jit
def taps_kernel(
    u, z1, stats1, rows, depthwise, v, partial, batch, tiles,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of groups of four pixels x branches x blocks of channels. partial: [J, tiles, 2, C]."""
    tile = tl.program_id(0)
    j = tl.program_id(1)
    code = column(rows, j, CODE)
    if (code != SEP3) & (code != SEP5):
        return
    PER_ROW: tl.constexpr = (W + 3) // 4
    g = tile * BP + tl.arange(0, BP)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    alive = g < batch * H * PER_ROW
    n, h, w = group_of_four(g, PER_ROW, H, 1)
    plane = tl.cast(j, tl.int64) * batch * (H * W * C)
    taps = depthwise + tl.cast(column(rows, j, TAPS1), tl.int64) * C
    u += plane
    if code == SEP3:
        v0, v1, v2, v3 = four_outputs(
            u, C, taps, n, h - 1, w - 1, alive, c, c, c, H, W, C, 3, 1, 1, 1, False, True, False, BP, BC, ACC
        )
    else:
        v0, v1, v2, v3 = four_outputs(
            u, C, taps, n, h - 2, w - 2, alive, c, c, c, H, W, C, 5, 1, 1, 1, False, True, False, BP, BC, ACC
        )
    stats1 += j * (2 * C)
    scale = tl.load(stats1 + C + c, mask=c < C, other=0.0).to(ACC)
    shift = -tl.load(stats1 + c, mask=c < C, other=0.0).to(ACC) * scale
    z1 += plane
    v += plane
    first = tl.zeros((BC,), ACC)
    second = tl.zeros((BC,), ACC)
    for t in tl.static_range(4):
        out = v0
        if t == 1:
            out = v1
        if t == 2:
            out = v2
        if t == 3:
            out = v3
        inside = (alive & (w + t < W))[:, None] & (c < C)[None, :]
        own = ((n * H + h) * W + w + t)[:, None] * C + c[None, :]
        out, first, second = _through_relu(out, z1, own, scale, shift, inside, first, second, ACC)
        tl.store(v + own, out.to(v.dtype.element_ty), mask=inside)
    place = partial + (j * tiles + tile) * (2 * C) + c
    tl.store(place, first, mask=c < C)
    tl.store(place + C, second, mask=c < C)


@triton.jit
def sums_kernel(
    partial, rows, sums, tiles, C: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, ACC: tl.constexpr
):
    """Add the tiles' sums in a fixed order; zeros for branches without an inner BatchNorm. Grid: branches x channels."""
    j = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    code = column(rows, j, CODE)
    first = tl.zeros((BC,), ACC)
    second = tl.zeros((BC,), ACC)
    if (code == SEP3) | (code == SEP5):
        for start in range(0, tiles, BT):
            t = start + tl.arange(0, BT)
            mask = (t < tiles)[:, None] & (c < C)[None, :]
            own = partial + (j * tiles + t)[:, None] * (2 * C) + c[None, :]
            first += tl.sum(tl.load(own, mask=mask, other=0.0), 0)
            second += tl.sum(tl.load(own + C, mask=mask, other=0.0), 0)
    tl.store(sums + j * (2 * C) + c, first, mask=c < C)
    tl.store(sums + j * (2 * C) + C + c, second, mask=c < C)


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
    if v_JBHWC is not None:
        check_branch_maps("v_JBHWC", v_JBHWC, branches_J8, z_JBHWC, geometry)
    elif not last:
        raise KernelError("v_JBHWC", got=None, allowed="a map for the first stage (last=False)")
    u_JBHWC = torch.empty_like(z_JBHWC) if out is None else out
    check_branch_maps("out", u_JBHWC, branches_J8, z_JBHWC, geometry)
    b = blocks("point", z_JBHWC, geometry)
    num, c = branches_J8.shape[0], geometry.channels
    point_kernel[(triton.cdiv(geometry.pixels, b.pixels), num, triton.cdiv(c, b.outputs))](
        d_nodes, z_JBHWC if v_JBHWC is None else v_JBHWC, z_JBHWC, stats_J2C, sums_J2C, branches_J8, gates_EO,
        pointwise_SCC, u_JBHWC, geometry.pixels, geometry.node_stride, C=c, ROW_STRIDE=geometry.row_stride, LAST=last,
        BP=b.pixels, BC=b.channels, BN=b.outputs, ACC=b.acc, DOT=b.dot, num_warps=b.num_warps,
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
    b = blocks("taps", u_JBHWC, geometry)
    num, c, height, width = branches_J8.shape[0], geometry.channels, geometry.out_height, geometry.out_width
    tiles = triton.cdiv(geometry.batch * height * triton.cdiv(width, 4), b.pixels)
    v_JBHWC = torch.empty_like(u_JBHWC)
    partial = torch.empty(num, tiles, 2, c, dtype=b.wide, device=u_JBHWC.device)
    sums1 = torch.empty(num, 2, c, dtype=b.wide, device=u_JBHWC.device)
    taps_kernel[(tiles, num, triton.cdiv(c, b.channels))](
        u_JBHWC, z1_JBHWC, stats1_J2C, branches_J8, depthwise_TC, v_JBHWC, partial, geometry.batch, tiles, C=c,
        H=height, W=width, BP=b.pixels, BC=b.channels, ACC=b.acc, num_warps=b.num_warps,
    )  # fmt: skip
    sums_kernel[(num, triton.cdiv(c, 16))](
        partial, branches_J8, sums1, tiles, C=c, BC=16, BT=64, ACC=b.acc, num_warps=4
    )  # fmt: skip
    return v_JBHWC, sums1
