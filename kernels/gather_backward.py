"""A state's gradient, gathered from all branches that read it.

Shape suffixes: as in `branches`. A program owns BP groups of four neighbouring pixels of one state and a block of
channels, runs through the launch's branches, and writes its tile once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .branches import Geometry
from .checks import check_branch_maps, check_gates, check_maps, check_nodes, check_rows, check_weights
from .launch import blocks
from .taps import (
    AVG,
    AVG_DIRECT,
    CODE,
    CONV1,
    CONV3,
    DIL3,
    DIL5,
    GATE,
    MAX,
    NONE,
    OUTPUT,
    POINT0,
    REDUCE,
    SEP3,
    SEP5,
    SKIP,
    SOURCE,
    TAPS0,
    column,
    four_outputs,
    group_of_four,
    load_pixel,
    product,
)


@triton.jit
def _strided_taps(
    u, taps, n, h, w, alive, c, HO, WO, C: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BP: tl.constexpr,
    BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of one input pixel each of a depthwise convolution of stride 2."""
    total = tl.zeros((BP, BC), ACC)
    for i in range(K):
        twice_h = h + (K // 2) * D - i * D
        for q in range(K):
            twice_w = w + (K // 2) * D - q * D
            even = alive & (twice_h % 2 == 0) & (twice_w % 2 == 0)
            value = load_pixel(u, C, n, twice_h // 2, twice_w // 2, even, c, HO, WO, C, ACC)
            weight = tl.load(taps + (i * K + q) * C + c, mask=c < C, other=0.0).to(ACC)
            total += value * weight[None, :]
    return total


@triton.jit
def _average(
    u, n, h, w, alive, c, H, W, HO, WO, C: tl.constexpr, S: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of one input pixel each of a 3x3 mean over the pixels inside the map."""
    total = tl.zeros((BP, BC), ACC)
    for i in range(3):
        top = h + 1 - i
        for q in range(3):
            left = w + 1 - q
            fits = alive & (top % S == 0) & (left % S == 0)
            ho = top // S
            wo = left // S
            rows_inside = tl.minimum(ho * S + 1, H - 1) - tl.maximum(ho * S - 1, 0) + 1
            columns_inside = tl.minimum(wo * S + 1, W - 1) - tl.maximum(wo * S - 1, 0) + 1
            value = load_pixel(u, C, n, ho, wo, fits & (top >= 0) & (left >= 0), c, HO, WO, C, ACC)
            total += value / tl.maximum(rows_inside * columns_inside, 1).to(ACC)[:, None]
    return total


@triton.jit
def _maximum(
    u, x, stride, n, h, w, alive, c, H, W, HO, WO, C: tl.constexpr, S: tl.constexpr, BP: tl.constexpr,
    BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of one input pixel each of a 3x3 maximum: all of it to the first maximum in row-major order."""
    own = load_pixel(x, stride, n, h, w, alive, c, H, W, C, ACC)
    total = tl.zeros((BP, BC), ACC)
    for place in range(9):
        top = h + 1 - place // 3
        left = w + 1 - place % 3
        fits = alive & (top >= 0) & (left >= 0) & (top % S == 0) & (left % S == 0)
        value = load_pixel(u, C, n, top // S, left // S, fits, c, HO, WO, C, ACC)
        for other in range(9):
            hh = top - 1 + other // 3
            ww = left - 1 + other % 3
            inside = (hh >= 0) & (hh < H) & (ww >= 0) & (ww < W)
            rival = load_pixel(x, stride, n, hh, ww, alive, c, H, W, C, ACC)
            earlier = other < place
            beaten = tl.where(earlier, rival >= own, rival > own) & inside[:, None]
            value = tl.where(beaten & (other != place), 0.0, value)
        total += value
    return total


@triton.jit
def _dense_grad(
    u, weights, n, h, w, alive, c, code, HO, WO, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
    BO: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Gradient of one input pixel each of CONV3 (9 taps, weights [tap, in, out]) or REDUCE (weights [out, in])."""
    total = tl.zeros((BP, BC), ACC)
    is_reduce = code == REDUCE
    odd = (h % 2 == 1) & (w % 2 == 1)
    same = h % 2 == w % 2
    for tap in range(tl.where(is_reduce, 1, 9)):
        ho = tl.where(is_reduce, h // 2, h + 1 - tap // 3)
        wo = tl.where(is_reduce, w // 2, w + 1 - tap % 3)
        for block in range(0, C, BO):
            o = block + tl.arange(0, BO)
            value = load_pixel(u, C, n, ho, wo, alive & (same | (not is_reduce)), o, HO, WO, C, ACC)
            # FactorizedReduce: even pixels fed the first half of the outputs, odd ones the second.
            fed = odd[:, None] == (o >= C // 2)[None, :]
            value = tl.where(fed | (not is_reduce), value, 0.0)
            place = tl.where(is_reduce, o[:, None] * C + c[None, :], tap * C * C + c[None, :] * C + o[:, None])
            inside = (o < C)[:, None] & (c < C)[None, :]
            total = product(value, tl.load(weights + place, mask=inside, other=0.0), total, DOT)
    return total


@triton.jit
def _separable_grad(
    u, taps, n, h, w, alive, c, code, HO, WO, C: tl.constexpr, S: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of four input pixels of the first depthwise convolution of a branch."""
    none = tl.zeros((BC,), ACC)
    a0 = tl.zeros((BP, BC), ACC)
    a1 = tl.zeros((BP, BC), ACC)
    a2 = tl.zeros((BP, BC), ACC)
    a3 = tl.zeros((BP, BC), ACC)
    if S == 1:
        if code == SEP3:
            a0, a1, a2, a3 = four_outputs(
                u, C, taps, n, h - 1, w - 1, alive, c, none, none, HO, WO,
                C, 3, 1, 1, 1, 1, False, True, False, BP, BC, ACC,
            )  # fmt: skip
        elif code == SEP5:
            a0, a1, a2, a3 = four_outputs(
                u, C, taps, n, h - 2, w - 2, alive, c, none, none, HO, WO,
                C, 5, 1, 1, 1, 1, False, True, False, BP, BC, ACC,
            )  # fmt: skip
        elif code == DIL3:
            a0, a1, a2, a3 = four_outputs(
                u, C, taps, n, h - 2, w - 2, alive, c, none, none, HO, WO,
                C, 3, 2, 1, 1, 2, False, True, False, BP, BC, ACC,
            )  # fmt: skip
        elif code == DIL5:
            a0, a1, a2, a3 = four_outputs(
                u, C, taps, n, h - 4, w - 4, alive, c, none, none, HO, WO,
                C, 5, 2, 1, 1, 2, False, True, False, BP, BC, ACC,
            )  # fmt: skip
    else:
        for t in tl.static_range(4):
            a = tl.zeros((BP, BC), ACC)
            if code == SEP3:
                a = _strided_taps(u, taps, n, h, w + t, alive, c, HO, WO, C, 3, 1, BP, BC, ACC)
            elif code == SEP5:
                a = _strided_taps(u, taps, n, h, w + t, alive, c, HO, WO, C, 5, 1, BP, BC, ACC)
            elif code == DIL3:
                a = _strided_taps(u, taps, n, h, w + t, alive, c, HO, WO, C, 3, 2, BP, BC, ACC)
            elif code == DIL5:
                a = _strided_taps(u, taps, n, h, w + t, alive, c, HO, WO, C, 5, 2, BP, BC, ACC)
            if t == 0:
                a0 = a
            if t == 1:
                a1 = a
            if t == 2:
                a2 = a
            if t == 3:
                a3 = a
    return a0, a1, a2, a3


@triton.jit
def gather_kernel(
    d_nodes, u, inputs, nodes, rows, gates, depthwise, pointwise, dense, drop, drop_scale, d_inputs, batch, count,
    input_plane, node_stride,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, I: tl.constexpr,
    S: tl.constexpr, ROW_STRIDE: tl.constexpr, OF_INPUTS: tl.constexpr, HAS_DENSE: tl.constexpr,
    DROP: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Grid: tiles x states (inputs, or nodes) x blocks of channels. H, W, S: of this kind of state."""
    place = tl.program_id(1)
    state = place if OF_INPUTS else place + I
    STRIDE: tl.constexpr = C if OF_INPUTS else ROW_STRIDE
    found = 0
    for j in range(count):
        found += ((column(rows, j, SOURCE) == state) & (column(rows, j, CODE) != NONE)).to(tl.int32)
    if found == 0:
        return
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    PER_ROW: tl.constexpr = (W + 3) // 4
    g = tl.program_id(0) * BP + tl.arange(0, BP)
    alive = g < batch * H * PER_ROW
    n, h, w = group_of_four(g, PER_ROW, H, 1)
    if OF_INPUTS:
        x = inputs + place * input_plane
        d_x = d_inputs + place * input_plane
    else:
        x = nodes + place * node_stride
        d_x = d_nodes + place * node_stride
    dy = d_nodes + column(rows, 0, OUTPUT) * node_stride
    plane = tl.cast(batch, tl.int64) * (HO * WO * C)
    r0 = tl.zeros((BP, BC), ACC)
    r1 = tl.zeros((BP, BC), ACC)
    r2 = tl.zeros((BP, BC), ACC)
    r3 = tl.zeros((BP, BC), ACC)
    t0 = tl.zeros((BP, BC), ACC)
    t1 = tl.zeros((BP, BC), ACC)
    t2 = tl.zeros((BP, BC), ACC)
    t3 = tl.zeros((BP, BC), ACC)
    for j in range(count):
        code = column(rows, j, CODE)
        if (column(rows, j, SOURCE) == state) & (code != NONE):
            own = u + j * plane
            if code >= SEP3:
                taps = depthwise + tl.cast(column(rows, j, TAPS0), tl.int64) * C
                a0, a1, a2, a3 = _separable_grad(
                    own, taps, n, h, w, alive, c, code, HO, WO, C, S, BP, BC, ACC
                )
                r0 += a0
                r1 += a1
                r2 += a2
                r3 += a3
            else:
                gate = tl.load(gates + column(rows, j, GATE)).to(ACC)
                if DROP:
                    if code == SKIP:
                        gate = gate * tl.load(drop_scale + j).to(ACC)
                for t in tl.static_range(4):
                    inside = alive & (w + t < W)
                    a = tl.zeros((BP, BC), ACC)
                    b = tl.zeros((BP, BC), ACC)
                    if code == SKIP:
                        a = gate * load_pixel(dy, ROW_STRIDE, n, h, w + t, inside, c, HO, WO, C, ACC)
                        if DROP:
                            a = a * load_pixel(drop + j * plane, C, n, h, w + t, inside, c, HO, WO, C, ACC)
                    elif code == MAX:
                        a = _maximum(own, x, STRIDE, n, h, w + t, inside, c, H, W, HO, WO, C, S, BP, BC, ACC)
                    elif (code == AVG) | (code == AVG_DIRECT):
                        a = _average(own, n, h, w + t, inside, c, H, W, HO, WO, C, S, BP, BC, ACC)
                    elif code == CONV1:
                        b = load_pixel(own, C, n, h, w + t, inside, c, HO, WO, C, ACC)
                    elif HAS_DENSE:
                        weights = pointwise + tl.cast(column(rows, j, POINT0), tl.int64) * (C * C)
                        if code == CONV3:
                            weights = dense + tl.cast(column(rows, j, POINT0), tl.int64) * (9 * C * C)
                        b = _dense_grad(own, weights, n, h, w + t, inside, c, code, HO, WO, C, BP, BC, BC, ACC, DOT)
                    if t == 0:
                        t0 += a
                        r0 += b
                    if t == 1:
                        t1 += a
                        r1 += b
                    if t == 2:
                        t2 += a
                        r2 += b
                    if t == 3:
                        t3 += a
                        r3 += b
    _add(x, d_x, n, h, w, alive, c, t0, r0, H, W, STRIDE, C, ACC)
    _add(x, d_x, n, h, w + 1, alive, c, t1, r1, H, W, STRIDE, C, ACC)
    _add(x, d_x, n, h, w + 2, alive, c, t2, r2, H, W, STRIDE, C, ACC)
    _add(x, d_x, n, h, w + 3, alive, c, t3, r3, H, W, STRIDE, C, ACC)


@triton.jit
def _add(
    x, d_x, n, h, w, alive, c, total, behind_relu, H, W, STRIDE: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr
):
    """d_x += total + behind_relu where x is positive, one pixel each."""
    inside = (alive & (w < W))[:, None] & (c < C)[None, :]
    at = ((n * H + h) * W + w)[:, None] * STRIDE + c[None, :]
    positive = tl.load(x + at, mask=inside, other=0.0) > 0
    before = tl.load(d_x + at, mask=inside, other=0.0).to(ACC)
    tl.store(d_x + at, (before + total + tl.where(positive, behind_relu, 0.0)).to(d_x.dtype.element_ty), mask=inside)


def gather_backward(
    d_nodes: Tensor, u_JBHWC: Tensor, inputs_IBHWC: Tensor, nodes: Tensor, branches_J8: Tensor, gates_EO: Tensor,
    depthwise_TC: Tensor, pointwise_SCC: Tensor, dense_D9CC: Tensor, drop_JBHWC: Tensor | None,
    drop_scale_J: Tensor | None, d_inputs_IBHWC: Tensor | None, geometry: Geometry,
) -> None:  # fmt: skip
    """See the twin `reference.stage_backward.gather_backward`.

    Raises:
        KernelError: for a tensor of a wrong dtype, device, shape or layout.
    """
    check_maps(inputs_IBHWC, nodes, geometry)
    check_rows(branches_J8, inputs_IBHWC)
    check_nodes("d_nodes", d_nodes, inputs_IBHWC, geometry)
    check_branch_maps("u_JBHWC", u_JBHWC, branches_J8, inputs_IBHWC, geometry)
    check_weights(depthwise_TC, pointwise_SCC, dense_D9CC, inputs_IBHWC)
    check_gates(gates_EO, inputs_IBHWC)
    b = blocks("gather", inputs_IBHWC, geometry)
    g, c = geometry, geometry.channels
    dropped = drop_JBHWC is not None
    kinds = [(False, g.nodes - 1, g.out_height, g.out_width, 1)]
    if d_inputs_IBHWC is not None:
        kinds.append((True, g.inputs, g.height, g.width, g.stride))
    for of_inputs, states, height, width, stride in kinds:
        if states == 0:
            continue
        tiles = triton.cdiv(g.batch * height * triton.cdiv(width, 4), b.pixels)
        gather_kernel[(tiles, states, triton.cdiv(c, b.channels))](
            d_nodes, u_JBHWC, inputs_IBHWC, nodes, branches_J8, gates_EO, depthwise_TC, pointwise_SCC, dense_D9CC,
            drop_JBHWC if dropped else branches_J8, drop_scale_J if dropped else gates_EO,
            d_nodes if d_inputs_IBHWC is None else d_inputs_IBHWC, g.batch, branches_J8.shape[0],
            inputs_IBHWC.stride(0), g.node_stride, C=c, H=height, W=width, HO=g.out_height, WO=g.out_width,
            I=g.inputs, S=stride, ROW_STRIDE=g.row_stride, OF_INPUTS=of_inputs,
            HAS_DENSE=stride == 2 or dense_D9CC.shape[0] > 0, DROP=dropped, BP=b.pixels, BC=b.channels, ACC=b.acc,
            DOT=b.dot, num_warps=b.num_warps,
        )  # fmt: skip
