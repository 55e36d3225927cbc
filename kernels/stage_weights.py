"""Weight gradients of a stage: partial sums over fixed groups of tiles, then their sum in a fixed order.

Shape suffixes: as in `branches`. What a convolution read is not kept: it is made again from the state, or from
the first stage's map, tile by tile.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .branches import Geometry
from .checks import (
    check_arena_grads,
    check_branch_maps,
    check_first_stage,
    check_gates,
    check_maps,
    check_nodes,
    check_rows,
    check_slots,
    check_vectors,
)
from .launch import all_registers, blocks
from .tap_weights import tap_weights_kernel
from .taps import (
    CODE,
    CONV1,
    CONV3,
    DIL3,
    DIL5,
    POINT0,
    POINT1,
    REDUCE,
    SEP3,
    SEP5,
    SOURCE,
    TAPS0,
    TAPS1,
    column,
    four_outputs,
    four_zeros,
    group_of_four,
    load_pixel,
    norm_grad,
    picked,
    pixels_grad,
    product,
    row_gradient,
    scale_and_shift,
    state_of,
)

# Partial weight gradients of a launch; more would cost memory, fewer would leave multiprocessors idle (ours).
MAX_GROUPS = 32


@triton.jit
def _dz(
    dy, dy_stride, z, stats, sums, gate, pixels, n, h, w, alive, o, HO, WO, C: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """[BP, BO] gradient of the stage's output before its BatchNorm, one pixel each; zero outside the map."""
    g = load_pixel(dy, dy_stride, n, h, w, alive, o, HO, WO, C, ACC)
    value = load_pixel(z, C, n, h, w, alive, o, HO, WO, C, ACC)
    dz = norm_grad(g, value, stats, sums, gate, pixels, o, C, ACC)
    return tl.where((alive & (w < WO))[:, None] & (o < C)[None, :], dz, 0.0)


@triton.jit
def _depthwise_again(
    x, stride, taps, n, ho, wo, alive, c, scale, shift, code, H, W, C: tl.constexpr, S: tl.constexpr,
    SECOND: tl.constexpr, LAST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Inputs of the pointwise convolution for four neighbouring outputs."""
    a0, a1, a2, a3 = four_zeros(BP, BC, ACC)
    if SECOND | (not LAST):
        if code == SEP3:
            a0, a1, a2, a3 = four_outputs(
                x, stride, taps, n, ho * S - 1, wo * S - 1, alive, c, scale, shift, H, W,
                C, 3, 1, 1, S, 1, SECOND, False, True, BP, BC, ACC,
            )  # fmt: skip
        elif code == SEP5:
            a0, a1, a2, a3 = four_outputs(
                x, stride, taps, n, ho * S - 2, wo * S - 2, alive, c, scale, shift, H, W,
                C, 5, 1, 1, S, 1, SECOND, False, True, BP, BC, ACC,
            )  # fmt: skip
    else:
        # Neighbouring outputs of a dilation of 2: every second column at stride 1, shared columns at stride 2.
        PER_COLUMN: tl.constexpr = 1 if S == 1 else 2
        PER_TAP: tl.constexpr = 2 if S == 1 else 1
        if code == DIL3:
            a0, a1, a2, a3 = four_outputs(
                x, stride, taps, n, ho * S - 2, wo * S - 2, alive, c, scale, shift, H, W,
                C, 3, 2, PER_COLUMN, 1, PER_TAP, False, False, True, BP, BC, ACC,
            )  # fmt: skip
        elif code == DIL5:
            a0, a1, a2, a3 = four_outputs(
                x, stride, taps, n, ho * S - 4, wo * S - 4, alive, c, scale, shift, H, W,
                C, 5, 2, PER_COLUMN, 1, PER_TAP, False, False, True, BP, BC, ACC,
            )  # fmt: skip
    return a0, a1, a2, a3


@triton.jit
def _dense_products(
    total, x, stride, dy, z, stats, sums, gate, pixels, n, ho, wo, alive, c, o, code,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, DY_STRIDE: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """total + dz^T relu(x) for CONV1 and REDUCE, four neighbouring outputs."""
    is_reduce = code == REDUCE
    size = tl.where(is_reduce, 2, 1)
    height = tl.where(is_reduce, H, HO)
    width = tl.where(is_reduce, W, WO)
    for t in tl.static_range(4):
        d = _dz(dy, DY_STRIDE, z, stats, sums, gate, pixels, n, ho, wo + t, alive, o, HO, WO, C, ACC)
        # The even pixels fed the first half of FactorizedReduce's outputs, the odd ones the second.
        for odd in range(size):
            h = ho * size + odd
            w = (wo + t) * size + odd
            a = tl.maximum(load_pixel(x, stride, n, h, w, alive, c, height, width, C, ACC), 0.0)
            fed = ((o >= C // 2) == (odd == 1)) | (not is_reduce)
            total = product(tl.trans(tl.where(fed[None, :], d, 0.0)), a, total, DOT)
    return total


@triton.jit
def point_weights_kernel(
    d_nodes, v, z, stats, sums, inputs, nodes, z1, stats1, rows, gates, depthwise, partial, batch, pixels, repeat,
    input_plane, node_stride,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, I: tl.constexpr,
    STRIDE: tl.constexpr, ROW_STRIDE: tl.constexpr, LAST: tl.constexpr, HAS_DENSE: tl.constexpr, J: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Partials [group, branch, out, in] of 1x1 weights. Grid: groups x branches x blocks of (out, in) channels."""
    group = tl.program_id(0)
    j = tl.program_id(1)
    code = column(rows, j, CODE)
    two_stages = (code == SEP3) | (code == SEP5)
    wanted = two_stages
    if LAST:
        wanted = two_stages | (code == DIL3) | (code == DIL5)
        if HAS_DENSE:
            wanted = wanted | (code == CONV1) | (code == REDUCE)
    if not wanted:
        return
    IN_BLOCKS: tl.constexpr = (C + BC - 1) // BC
    o = (tl.program_id(2) // IN_BLOCKS) * BO + tl.arange(0, BO)
    c = (tl.program_id(2) % IN_BLOCKS) * BC + tl.arange(0, BC)
    plane = tl.cast(pixels, tl.int64) * C
    dy, gate = row_gradient(rows, j, d_nodes, v, gates, node_stride, plane, LAST, ACC)
    DY_STRIDE: tl.constexpr = ROW_STRIDE if LAST else C
    own_z = z + j * plane
    own_stats = stats + j * (2 * C)
    own_sums = sums + j * (2 * C)
    total = tl.zeros((BO, BC), ACC)
    PER_ROW: tl.constexpr = (WO + 3) // 4
    source = column(rows, j, SOURCE)
    scale = tl.zeros((BC,), ACC)
    shift = tl.zeros((BC,), ACC)
    if LAST & two_stages:
        scale, shift = scale_and_shift(stats1 + j * (2 * C), c, C, ACC)
    for i in range(repeat):
        g = (group * repeat + i) * BP + tl.arange(0, BP)
        alive = g < batch * HO * PER_ROW
        n, ho, wo = group_of_four(g, PER_ROW, HO, 1)
        a0, a1, a2, a3 = four_zeros(BP, BC, ACC)
        if LAST & two_stages:
            x = z1 + j * plane
            taps = depthwise + tl.cast(column(rows, j, TAPS1), tl.int64) * C
            a0, a1, a2, a3 = _depthwise_again(
                x, C, taps, n, ho, wo, alive, c, scale, shift, code, HO, WO, C, 1, True, LAST, BP, BC, ACC
            )
        else:
            x, stride = state_of(source, inputs, nodes, input_plane, node_stride, I, C, ROW_STRIDE)
            taps = depthwise + tl.cast(column(rows, j, TAPS0), tl.int64) * C
            if HAS_DENSE & ((code == CONV1) | (code == REDUCE)):
                total = _dense_products(
                    total, x, stride, dy, own_z, own_stats, own_sums, gate, pixels, n, ho, wo, alive, c, o, code,
                    C, H, W, HO, WO, DY_STRIDE, ACC, DOT,
                )  # fmt: skip
            elif (STRIDE == 1) | (source >= I):
                a0, a1, a2, a3 = _depthwise_again(
                    x, stride, taps, n, ho, wo, alive, c, scale, shift, code, HO, WO, C, 1, False, LAST, BP, BC, ACC
                )
            else:
                a0, a1, a2, a3 = _depthwise_again(
                    x, stride, taps, n, ho, wo, alive, c, scale, shift, code, H, W, C, STRIDE, False, LAST, BP, BC, ACC
                )
        if code >= SEP3:
            for t in tl.static_range(4):
                d = _dz(
                    dy, DY_STRIDE, own_z, own_stats, own_sums, gate, pixels, n, ho, wo + t, alive, o, HO, WO, C, ACC
                )
                total = product(tl.trans(d), picked(t, a0, a1, a2, a3), total, DOT)
    place = partial + (tl.cast(group, tl.int64) * J + j) * (C * C) + o[:, None] * C + c[None, :]
    tl.store(place, total, mask=(o < C)[:, None] & (c < C)[None, :])


@triton.jit
def dense_weights_kernel(
    d_nodes, z, stats, sums, inputs, nodes, rows, gates, partial, batch, pixels, repeat, input_plane, node_stride,
    C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, I: tl.constexpr, ROW_STRIDE: tl.constexpr, J: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Partials [group, branch, tap, in, out] of CONV3. Grid: groups x (branches x 9 taps) x blocks (in, out)."""
    group = tl.program_id(0)
    j = tl.program_id(1) // 9
    tap = tl.program_id(1) % 9
    if column(rows, j, CODE) != CONV3:
        return
    OUT_BLOCKS: tl.constexpr = (C + BO - 1) // BO
    c = (tl.program_id(2) // OUT_BLOCKS) * BC + tl.arange(0, BC)
    o = (tl.program_id(2) % OUT_BLOCKS) * BO + tl.arange(0, BO)
    plane = tl.cast(pixels, tl.int64) * C
    source = column(rows, j, SOURCE)
    x, stride = state_of(source, inputs, nodes, input_plane, node_stride, I, C, ROW_STRIDE)
    dy, gate = row_gradient(rows, j, d_nodes, z, gates, node_stride, plane, True, ACC)
    own_stats = stats + j * (2 * C)
    own_sums = sums + j * (2 * C)
    down = tap // 3 - 1
    right = tap % 3 - 1
    total = tl.zeros((BC, BO), ACC)
    for i in range(repeat):
        p = (group * repeat + i) * BP + tl.arange(0, BP)
        alive = p < pixels
        n = p // (HO * WO)
        h = p % (HO * WO) // WO
        w = p % WO
        a = load_pixel(x, stride, n, h + down, w + right, alive, c, HO, WO, C, ACC)
        dz = pixels_grad(dy, ROW_STRIDE, z + j * plane, own_stats, own_sums, gate, pixels, p, alive, o, C, ACC)
        total = product(tl.trans(tl.maximum(a, 0.0)), dz, total, DOT)
    place = partial + ((tl.cast(group, tl.int64) * J + j) * 9 + tap) * (C * C) + c[:, None] * C + o[None, :]
    tl.store(place, total, mask=(o < C)[None, :] & (c < C)[:, None])


@triton.jit
def weights_sum_kernel(
    partial, rows, grad, groups, KIND: tl.constexpr, LAST: tl.constexpr, HAS_DENSE: tl.constexpr, J: tl.constexpr,
    C: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sum the groups in order into the arena. Grid: branches x blocks. KIND: 0 depthwise, 1 pointwise, 2 dense."""
    j = tl.program_id(0)
    code = column(rows, j, CODE)
    two_stages = (code == SEP3) | (code == SEP5)
    wanted = two_stages
    if LAST:
        wanted = code >= SEP3
        if (KIND == 1) & HAS_DENSE:
            wanted = wanted | (code == CONV1) | (code == REDUCE)
        if KIND == 2:
            wanted = code == CONV3
    if not wanted:
        return
    size = tl.full((), SIZE, tl.int32)
    if KIND == 0:
        size = tl.where((code == SEP3) | (code == DIL3), 9 * C, 25 * C)
        start = column(rows, j, TAPS0)
        if LAST & two_stages:
            start = column(rows, j, TAPS1)
        target = grad + tl.cast(start, tl.int64) * C
    else:
        start = column(rows, j, POINT0)
        if LAST & two_stages:
            start = column(rows, j, POINT1)
        target = grad + tl.cast(start, tl.int64) * SIZE
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), ACC)
    for group in range(groups):
        total += tl.load(partial + (tl.cast(group, tl.int64) * J + j) * SIZE + at, mask=at < size, other=0.0)
    tl.store(target + at, total.to(grad.dtype.element_ty), mask=at < size)


def stage_weight_grads(
    d_nodes: Tensor, v_JBHWC: Tensor | None, z_JBHWC: Tensor, stats_J2C: Tensor, sums_J2C: Tensor, u_JBHWC: Tensor,
    inputs_IBHWC: Tensor, nodes: Tensor, z1_JBHWC: Tensor | None, stats1_J2C: Tensor | None, branches_J8: Tensor,
    gates_EO: Tensor, depthwise_TC: Tensor, d_depthwise_TC: Tensor, d_pointwise_SCC: Tensor, d_dense_D9CC: Tensor,
    geometry: Geometry, *, last: bool,
) -> None:  # fmt: skip
    """See the twin `reference.stage_weights.stage_weight_grads`.

    Raises:
        KernelError: for a tensor of a wrong dtype, device, shape or layout.
    """
    g, c, num = geometry, geometry.channels, branches_J8.shape[0]
    _check(d_nodes, v_JBHWC, z_JBHWC, stats_J2C, sums_J2C, u_JBHWC, inputs_IBHWC, nodes, branches_J8, gates_EO, g)
    check_first_stage(z1_JBHWC, stats1_J2C, branches_J8, inputs_IBHWC, g)
    check_slots("depthwise_TC", depthwise_TC, (c,), inputs_IBHWC)
    check_arena_grads({"d_depthwise_TC": (d_depthwise_TC, depthwise_TC)})
    check_slots("d_pointwise_SCC", d_pointwise_SCC, (c, c), inputs_IBHWC)
    check_slots("d_dense_D9CC", d_dense_D9CC, (9, c, c), inputs_IBHWC)
    b = blocks("weights", inputs_IBHWC, g)
    tiles = triton.cdiv(g.batch * g.out_height * triton.cdiv(g.out_width, 4), b.pixels)
    repeat = triton.cdiv(tiles, MAX_GROUPS)
    groups = triton.cdiv(tiles, repeat)
    z1 = z_JBHWC if z1_JBHWC is None else z1_JBHWC
    stats1 = stats_J2C if stats1_J2C is None else stats1_J2C
    v = z_JBHWC if v_JBHWC is None else v_JBHWC
    has_dense = last and (g.stride == 2 or d_dense_D9CC.shape[0] > 0)
    sizes: dict[str, int] = {"C": c, "HO": g.out_height, "WO": g.out_width, "I": g.inputs, "ROW_STRIDE": g.row_stride}
    sizes |= {"J": num, "BP": b.pixels}
    wide = {"ACC": b.acc, "num_warps": b.num_warps, **all_registers()}
    place = (g.batch, g.pixels, repeat, inputs_IBHWC.stride(0), g.node_stride)
    partial = inputs_IBHWC.new_empty(groups, num, c, c, dtype=b.wide)
    point_weights_kernel[(groups, num, triton.cdiv(c, b.outputs) * triton.cdiv(c, b.channels))](
        d_nodes, v, z_JBHWC, stats_J2C, sums_J2C, inputs_IBHWC, nodes, z1, stats1, branches_J8, gates_EO, depthwise_TC,
        partial, *place, H=g.height, W=g.width, STRIDE=g.stride, LAST=last, HAS_DENSE=has_dense, BC=b.channels,
        BO=b.outputs, DOT=b.dot, **sizes, **wide,
    )  # fmt: skip
    _sum(partial, branches_J8, d_pointwise_SCC, groups, 1, last, has_dense, c, c * c, b.acc)
    if d_depthwise_TC.shape[0] > 0:
        partial = inputs_IBHWC.new_empty(groups, num, 25, c, dtype=b.wide)
        tap_weights_kernel[(groups, num, triton.cdiv(c, b.channels))](
            u_JBHWC, inputs_IBHWC, nodes, z1, stats1, branches_J8, partial, *place, H=g.height, W=g.width,
            STRIDE=g.stride, LAST=last, BC=b.channels, **sizes, **wide,
        )  # fmt: skip
        _sum(partial, branches_J8, d_depthwise_TC, groups, 0, last, has_dense, c, 25 * c, b.acc)
    if last and d_dense_D9CC.shape[0] > 0:
        groups = triton.cdiv(triton.cdiv(g.pixels, b.pixels), repeat := triton.cdiv(g.pixels, b.pixels * MAX_GROUPS))
        partial = inputs_IBHWC.new_empty(groups, num, 9, c, c, dtype=b.wide)
        dense_weights_kernel[(groups, num * 9, triton.cdiv(c, b.channels) * triton.cdiv(c, b.outputs))](
            d_nodes, z_JBHWC, stats_J2C, sums_J2C, inputs_IBHWC, nodes, branches_J8, gates_EO, partial, g.batch,
            g.pixels, repeat, inputs_IBHWC.stride(0), g.node_stride, BC=b.channels, BO=b.outputs, DOT=b.dot, **sizes,
            ACC=b.acc, num_warps=b.num_warps,
        )  # fmt: skip
        _sum(partial, branches_J8, d_dense_D9CC, groups, 2, last, has_dense, c, 9 * c * c, b.acc)


def _sum(
    partial: Tensor, rows: Tensor, grad: Tensor, groups: int, kind: int, last: bool, has_dense: bool, channels: int,
    size: int, acc: tl.dtype,
) -> None:  # fmt: skip
    block = min(1024, triton.next_power_of_2(size))
    weights_sum_kernel[(rows.shape[0], triton.cdiv(size, block))](
        partial, rows, grad, groups, KIND=kind, LAST=last, HAS_DENSE=has_dense, J=rows.shape[0], C=channels,
        SIZE=size, BLOCK=block, ACC=acc, num_warps=4,
    )  # fmt: skip


def _check(
    d_nodes: Tensor, v: Tensor | None, z: Tensor, stats: Tensor, sums: Tensor, u: Tensor, inputs: Tensor,
    nodes: Tensor, rows: Tensor, gates: Tensor, geometry: Geometry,
) -> None:  # fmt: skip
    check_maps(inputs, nodes, geometry)
    check_rows(rows, inputs)
    check_nodes("d_nodes", d_nodes, inputs, geometry)
    for name, maps in (("v_JBHWC", v), ("z_JBHWC", z), ("u_JBHWC", u)):
        if maps is not None:
            check_branch_maps(name, maps, rows, inputs, geometry)
    check_vectors("stats_J2C", stats, rows, inputs)
    check_vectors("sums_J2C", sums, rows, inputs)
    check_gates(gates, inputs)
