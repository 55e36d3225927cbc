"""One stage of all branches of a node in one launch, with the partial statistics of their BatchNorms.

Shape suffixes: as in `branches`. A program owns BP groups of four outputs of one branch and a block of output
channels; what it does is decided by the operation's code, read on the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .branches import Geometry
from .checks import check_first_stage, check_maps, check_rows, check_vectors, check_weights
from .launch import all_registers, blocks
from .reference.batchnorm import EPSILON
from .taps import (
    AVG,
    AVG_DIRECT,
    CODE,
    CONV1,
    CONV3,
    DIL3,
    DIL5,
    MAX,
    NONE,
    POINT0,
    POINT1,
    REDUCE,
    SEP3,
    SEP5,
    SKIP,
    SOURCE,
    TAPS0,
    TAPS1,
    column,
    four_outputs,
    four_zeros,
    group_of_four,
    product,
    scale_and_shift,
    state_of,
    store_row,
)


@triton.jit
def _separable(
    x, stride, taps, point, stats, n, h0, w0, alive, H, W, co,
    C: tl.constexpr, K: tl.constexpr, ROW_STEP: tl.constexpr, COLUMN_STEP: tl.constexpr, PER_OUTPUT: tl.constexpr,
    NORM: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Depthwise and pointwise convolution of four outputs: [BP, BN] each."""
    z0, z1, z2, z3 = four_zeros(BP, BN, ACC)
    for block in range(0, C, BC):
        c = block + tl.arange(0, BC)
        scale = tl.zeros((BC,), ACC)
        shift = tl.zeros((BC,), ACC)
        if NORM:
            scale, shift = scale_and_shift(stats, c, C, ACC)
        a0, a1, a2, a3 = four_outputs(
            x, stride, taps, n, h0, w0, alive, c, scale, shift, H, W,
            C, K, ROW_STEP, COLUMN_STEP, PER_OUTPUT, 1, NORM, False, True, BP, BC, ACC,
        )  # fmt: skip
        weight = tl.load(point + co[None, :] * C + c[:, None], mask=(c < C)[:, None] & (co < C)[None, :], other=0.0)
        z0 = product(a0, weight, z0, DOT)
        z1 = product(a1, weight, z1, DOT)
        z2 = product(a2, weight, z2, DOT)
        z3 = product(a3, weight, z3, DOT)
    return z0, z1, z2, z3


@triton.jit
def _pool(
    x, stride, n, h0, w0, alive, H, W, co, code,
    C: tl.constexpr, PER_OUTPUT: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """3x3 maximum or mean over the pixels inside the map."""
    is_max = code == MAX
    start = tl.where(is_max, float("-inf"), 0.0).to(ACC)
    z0 = tl.zeros((BP, BN), ACC) + start
    z1 = tl.zeros((BP, BN), ACC) + start
    z2 = tl.zeros((BP, BN), ACC) + start
    z3 = tl.zeros((BP, BN), ACC) + start
    n0 = tl.zeros((BP,), ACC)
    n1 = tl.zeros((BP,), ACC)
    n2 = tl.zeros((BP,), ACC)
    n3 = tl.zeros((BP,), ACC)
    for i in range(3):
        h = h0 + i
        inside_row = alive & (h >= 0) & (h < H)
        row = (n * H + h) * W
        for s in tl.static_range(3 + 3 * PER_OUTPUT):
            w = w0 + s
            inside = inside_row & (w >= 0) & (w < W)
            mask = inside[:, None] & (co < C)[None, :]
            value = tl.load(x + (row + w)[:, None] * stride + co[None, :], mask=mask, other=0.0).to(ACC)
            value = tl.where(is_max & (inside[:, None] == 0), float("-inf"), value)
            one = inside.to(ACC)
            for t in tl.static_range(4):
                if (s >= t * PER_OUTPUT) & (s - t * PER_OUTPUT < 3):
                    if t == 0:
                        z0 = tl.where(is_max, tl.maximum(z0, value), z0 + value)
                        n0 += one
                    if t == 1:
                        z1 = tl.where(is_max, tl.maximum(z1, value), z1 + value)
                        n1 += one
                    if t == 2:
                        z2 = tl.where(is_max, tl.maximum(z2, value), z2 + value)
                        n2 += one
                    if t == 3:
                        z3 = tl.where(is_max, tl.maximum(z3, value), z3 + value)
                        n3 += one
    if not is_max:
        z0 = z0 / tl.maximum(n0, 1.0)[:, None]
        z1 = z1 / tl.maximum(n1, 1.0)[:, None]
        z2 = z2 / tl.maximum(n2, 1.0)[:, None]
        z3 = z3 / tl.maximum(n3, 1.0)[:, None]
    return z0, z1, z2, z3


@triton.jit
def _dense(
    x, stride, weights, in_stride, out_stride, tap_stride, taps, n, ho, wo, alive, H, W, co, code,
    C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """ReLU and a sum of 1x1 convolutions, one for each of `taps` pixels: CONV1, CONV3 and REDUCE, one output."""
    z = tl.zeros((BP, BN), ACC)
    is_reduce = code == REDUCE
    for tap in range(taps):
        h = tl.where(is_reduce, 2 * ho + tap, tl.where(code == CONV3, ho + tap // 3 - 1, ho))
        w = tl.where(is_reduce, 2 * wo + tap, tl.where(code == CONV3, wo + tap % 3 - 1, wo))
        inside = alive & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        # FactorizedReduce: the first half of the outputs reads the even pixels, the second the odd ones.
        wanted = (co < C) & ((not is_reduce) | ((co >= C // 2) == (tap == 1)))
        for block in range(0, C, BC):
            c = block + tl.arange(0, BC)
            mask = inside[:, None] & (c < C)[None, :]
            value = tl.load(x + ((n * H + h) * W + w)[:, None] * stride + c[None, :], mask=mask, other=0.0).to(ACC)
            weight = tl.load(
                weights + tap * tap_stride + co[None, :] * out_stride + c[:, None] * in_stride,
                mask=(c < C)[:, None] & wanted[None, :], other=0.0,
            )  # fmt: skip
            z = product(tl.maximum(value, 0.0), weight, z, DOT)
    return z


@triton.jit
def _partial(z0, z1, z2, z3, m0, m1, m2, m3, count):
    """(mean [BN], sum of squared distances from it [BN]) of a tile."""
    total = tl.sum(tl.where(m0, z0, 0.0) + tl.where(m1, z1, 0.0) + tl.where(m2, z2, 0.0) + tl.where(m3, z3, 0.0), 0)
    mean = total / tl.maximum(count, 1.0)
    d0 = tl.where(m0, z0 - mean[None, :], 0.0)
    d1 = tl.where(m1, z1 - mean[None, :], 0.0)
    d2 = tl.where(m2, z2 - mean[None, :], 0.0)
    d3 = tl.where(m3, z3 - mean[None, :], 0.0)
    return mean, tl.sum(d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3, 0)


@triton.jit
def stage_kernel(
    inputs, nodes, rows, depthwise, pointwise, dense, z1_in, stats1, z_out, partial, counts, batch, tiles,
    input_plane, node_stride,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, I: tl.constexpr,
    STRIDE: tl.constexpr, ROW_STRIDE: tl.constexpr, LAST: tl.constexpr, HAS_DENSE: tl.constexpr,
    WANT_STATS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Grid: tiles x branches x blocks of output channels."""
    tile = tl.program_id(0)
    j = tl.program_id(1)
    co = tl.program_id(2) * BN + tl.arange(0, BN)
    code = column(rows, j, CODE)
    if (code == NONE) | (code == SKIP):
        return
    two_stages = (code == SEP3) | (code == SEP5)
    if (not LAST) & (not two_stages):
        return
    source = column(rows, j, SOURCE)
    plane = tl.cast(batch, tl.int64) * (HO * WO * C)
    PER_ROW: tl.constexpr = 2 * ((WO + 7) // 8)
    g = tile * BP + tl.arange(0, BP)
    alive = g < batch * HO * PER_ROW
    spacing_two = ((code == DIL3) | (code == DIL5)) & ((STRIDE == 1) | (source >= I))
    n, ho, near = group_of_four(g, PER_ROW, HO, 1)
    n, ho, far = group_of_four(g, PER_ROW, HO, 2)
    wo = tl.where(spacing_two, far, near)
    step = tl.where(spacing_two, 2, 1)
    z0, z1, z2, z3 = four_zeros(BP, BN, ACC)
    if LAST & two_stages:
        own = z1_in + j * plane
        taps = depthwise + tl.cast(column(rows, j, TAPS1), tl.int64) * C
        point = pointwise + tl.cast(column(rows, j, POINT1), tl.int64) * (C * C)
        own_stats = stats1 + j * (2 * C)
        if code == SEP3:
            z0, z1, z2, z3 = _separable(
                own, C, taps, point, own_stats, n, ho - 1, wo - 1, alive, HO, WO, co,
                C, 3, 1, 1, 1, True, BP, BC, BN, ACC, DOT,
            )  # fmt: skip
        else:
            z0, z1, z2, z3 = _separable(
                own, C, taps, point, own_stats, n, ho - 2, wo - 2, alive, HO, WO, co,
                C, 5, 1, 1, 1, True, BP, BC, BN, ACC, DOT,
            )  # fmt: skip
    else:
        taps = depthwise + tl.cast(column(rows, j, TAPS0), tl.int64) * C
        point = pointwise + tl.cast(column(rows, j, POINT0), tl.int64) * (C * C)
        x, stride = state_of(source, inputs, nodes, input_plane, node_stride, I, C, ROW_STRIDE)
        if (STRIDE == 1) | (source >= I):
            z0, z1, z2, z3 = _first_stage(
                x, stride, taps, point, stats1, n, ho, wo, alive, co, code, C, HO, WO, 1, LAST, BP, BC, BN, ACC, DOT
            )
        elif STRIDE == 2:
            z0, z1, z2, z3 = _first_stage(
                x, stride, taps, point, stats1, n, ho, wo, alive, co, code, C, H, W, 2, LAST, BP, BC, BN, ACC, DOT
            )
        if HAS_DENSE & ((code == CONV1) | (code == CONV3) | (code == REDUCE)):
            weights = point
            count = tl.where(code == REDUCE, 2, 1)
            in_stride = 1
            out_stride = C
            tap_stride = 0
            if code == CONV3:
                weights = dense + tl.cast(column(rows, j, POINT0), tl.int64) * (9 * C * C)
                count = 9
                in_stride = C
                out_stride = 1
                tap_stride = C * C
            height = tl.where(code == REDUCE, H, HO)
            width = tl.where(code == REDUCE, W, WO)
            for t in tl.static_range(4):
                z = _dense(
                    x, stride, weights, in_stride, out_stride, tap_stride, count, n, ho, wo + t, alive & (wo + t < WO),
                    height, width, co, code, C, BP, BC, BN, ACC, DOT,
                )  # fmt: skip
                if t == 0:
                    z0 = z
                if t == 1:
                    z1 = z
                if t == 2:
                    z2 = z
                if t == 3:
                    z3 = z
    z_out += j * plane
    store_row(z_out, n, ho, wo, alive, co, z0, HO, WO, C)
    store_row(z_out, n, ho, wo + step, alive, co, z1, HO, WO, C)
    store_row(z_out, n, ho, wo + 2 * step, alive, co, z2, HO, WO, C)
    store_row(z_out, n, ho, wo + 3 * step, alive, co, z3, HO, WO, C)
    if WANT_STATS:
        m0 = (alive & (wo < WO))[:, None]
        m1 = (alive & (wo + step < WO))[:, None]
        m2 = (alive & (wo + 2 * step < WO))[:, None]
        m3 = (alive & (wo + 3 * step < WO))[:, None]
        count = tl.sum(tl.sum(m0.to(ACC) + m1.to(ACC) + m2.to(ACC) + m3.to(ACC), 1), 0)
        mean, squares = _partial(z0, z1, z2, z3, m0, m1, m2, m3, count)
        place = partial + (j * tiles + tile) * (2 * C)
        tl.store(place + co, mean, mask=co < C)
        tl.store(place + C + co, squares, mask=co < C)
        if tl.program_id(2) == 0:
            tl.store(counts + j * tiles + tile, count)


@triton.jit
def _first_stage(
    x, stride, taps, point, stats1, n, ho, wo, alive, co, code,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, S: tl.constexpr, LAST: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Depthwise-separable stage or pool that reads a state, for an edge of stride S."""
    z0, z1, z2, z3 = four_zeros(BP, BN, ACC)
    if not LAST:
        if code == SEP3:
            z0, z1, z2, z3 = _separable(
                x, stride, taps, point, stats1, n, ho * S - 1, wo * S - 1, alive, H, W, co,
                C, 3, 1, 1, S, False, BP, BC, BN, ACC, DOT,
            )  # fmt: skip
        elif code == SEP5:
            z0, z1, z2, z3 = _separable(
                x, stride, taps, point, stats1, n, ho * S - 2, wo * S - 2, alive, H, W, co,
                C, 5, 1, 1, S, False, BP, BC, BN, ACC, DOT,
            )  # fmt: skip
    elif code == DIL3:
        z0, z1, z2, z3 = _separable(
            x, stride, taps, point, stats1, n, ho * S - 2, wo * S - 2, alive, H, W, co,
            C, 3, 2, 2, 1, False, BP, BC, BN, ACC, DOT,
        )  # fmt: skip
    elif code == DIL5:
        z0, z1, z2, z3 = _separable(
            x, stride, taps, point, stats1, n, ho * S - 4, wo * S - 4, alive, H, W, co,
            C, 5, 2, 2, 1, False, BP, BC, BN, ACC, DOT,
        )  # fmt: skip
    elif (code == MAX) | (code == AVG) | (code == AVG_DIRECT):
        z0, z1, z2, z3 = _pool(x, stride, n, ho * S - 1, wo * S - 1, alive, H, W, co, code, C, S, BP, BN, ACC)
    return z0, z1, z2, z3


@triton.jit
def finalize_kernel(
    partial, counts, rows, stats, tiles, pixels, epsilon,
    C: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Chan's combination of the tiles' (mean, M2) in a fixed order. Grid: branches x blocks of channels."""
    j = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < C
    code = column(rows, j, CODE)
    has_norm = (code != NONE) & (code != SKIP) & (code != AVG_DIRECT)
    if not LAST:
        has_norm = (code == SEP3) | (code == SEP5)
    place = stats + j * (2 * C) + c
    if not has_norm:
        tl.store(place, tl.zeros((BC,), ACC), mask=inside)
        tl.store(place + C, tl.zeros((BC,), ACC) + 1.0, mask=inside)
        return
    total = tl.zeros((BC,), ACC)
    for first in range(0, tiles, BT):
        t = first + tl.arange(0, BT)
        mask = (t < tiles)[:, None] & inside[None, :]
        count = tl.load(counts + j * tiles + t, mask=t < tiles, other=0.0)
        mean = tl.load(partial + (j * tiles + t)[:, None] * (2 * C) + c[None, :], mask=mask, other=0.0)
        total += tl.sum(mean * count[:, None], 0)
    mean_C = total / pixels
    squares = tl.zeros((BC,), ACC)
    for first in range(0, tiles, BT):
        t = first + tl.arange(0, BT)
        mask = (t < tiles)[:, None] & inside[None, :]
        count = tl.load(counts + j * tiles + t, mask=t < tiles, other=0.0)
        own = partial + (j * tiles + t)[:, None] * (2 * C) + c[None, :]
        distance = tl.load(own, mask=mask, other=0.0) - mean_C[None, :]
        m2 = tl.load(own + C, mask=mask, other=0.0)
        squares += tl.sum(tl.where(mask, m2 + distance * distance * count[:, None], 0.0), 0)
    tl.store(place, mean_C, mask=inside)
    tl.store(place + C, 1.0 / tl.sqrt(squares / pixels + epsilon), mask=inside)


def grouped_stage(
    inputs_IBHWC: Tensor, nodes: Tensor, branches_J8: Tensor, depthwise_TC: Tensor, pointwise_SCC: Tensor,
    dense_D9CC: Tensor, z1_JBHWC: Tensor | None, stats1_J2C: Tensor | None, geometry: Geometry, *, last: bool,
    stats_J2C: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(z_JBHWC, stats_J2C); see the twin `reference.grouped_stage.grouped_stage`.

    Raises:
        KernelError: for a tensor of a wrong dtype, device, shape or layout.
    """
    check_maps(inputs_IBHWC, nodes, geometry)
    check_rows(branches_J8, inputs_IBHWC)
    check_weights(depthwise_TC, pointwise_SCC, dense_D9CC, inputs_IBHWC)
    check_first_stage(z1_JBHWC, stats1_J2C, branches_J8, inputs_IBHWC, geometry)
    if stats_J2C is not None:
        check_vectors("stats_J2C", stats_J2C, branches_J8, inputs_IBHWC)
    b = blocks("stage", inputs_IBHWC, geometry)
    num, c = branches_J8.shape[0], geometry.channels
    z_JBHWC = inputs_IBHWC.new_empty(num, geometry.batch, geometry.out_height, geometry.out_width, c)
    groups = geometry.batch * geometry.out_height * 2 * triton.cdiv(geometry.out_width, 8)
    tiles = triton.cdiv(groups, b.pixels)
    want = stats_J2C is None
    partial = inputs_IBHWC.new_empty(num, tiles, 2, c, dtype=b.wide) if want else z_JBHWC
    counts = inputs_IBHWC.new_empty(num, tiles, dtype=b.wide) if want else z_JBHWC
    stage_kernel[(tiles, num, triton.cdiv(c, b.outputs))](
        inputs_IBHWC, nodes, branches_J8, depthwise_TC, pointwise_SCC, dense_D9CC,
        z_JBHWC if z1_JBHWC is None else z1_JBHWC, partial if stats1_J2C is None else stats1_J2C,
        z_JBHWC, partial, counts, geometry.batch, tiles, inputs_IBHWC.stride(0), geometry.node_stride,
        C=c, H=geometry.height, W=geometry.width, HO=geometry.out_height, WO=geometry.out_width, I=geometry.inputs,
        STRIDE=geometry.stride, ROW_STRIDE=geometry.row_stride, LAST=last,
        HAS_DENSE=last and (geometry.stride == 2 or dense_D9CC.shape[0] > 0), WANT_STATS=want,
        BP=b.pixels, BC=b.channels, BN=b.outputs, ACC=b.acc, DOT=b.dot, num_warps=b.num_warps, **all_registers(),
    )  # fmt: skip
    if stats_J2C is not None:
        return z_JBHWC, stats_J2C
    stats = torch.empty(num, 2, c, dtype=b.wide, device=inputs_IBHWC.device)
    finalize_kernel[(num, triton.cdiv(c, b.channels))](
        partial, counts, branches_J8, stats, tiles, geometry.pixels, EPSILON, C=c, LAST=last, BC=b.channels, BT=16,
        ACC=b.acc, num_warps=4,
    )  # fmt: skip
    return z_JBHWC, stats
