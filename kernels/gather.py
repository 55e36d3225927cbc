"""Gradients of the states through the branches that read them: one program owns four pixels in a row, times some,
of one state, asks every branch of the launch for its share and writes once.

Shape suffixes: as in `branches`. Where edges have stride 2, the pixels of an input fall into four phases by the
parity of their row and column. A program's pixels are of one phase, so that it visits the taps that meet them and no
others; within a phase all is as at stride 1, with every second tap.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .branches import Geometry
from .checks import check_branch_maps, check_gates, check_like, check_maps, check_nodes, check_rows, check_weights
from .errors import KernelError
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
    group_of_four,
    product,
)

# Bits of the nine pixels of a window in a 5 x 5 neighbourhood, the window in the upper left corner.
WINDOW = tl.constexpr(0b111_00111_00111)


@triton.jit
def _add(value, t: tl.constexpr, a0, a1, a2, a3):
    """Add to output number t of four."""
    if t == 0:
        a0 += value
    if t == 1:
        a1 += value
    if t == 2:
        a2 += value
    if t == 3:
        a3 += value
    return a0, a1, a2, a3


@triton.jit
def _met_taps(phase, K: tl.constexpr, D: tl.constexpr, S: tl.constexpr):
    """(first, step, count, shift): the taps of one axis that meet pixels of a phase.

    Tap first + t * step, t < count, joins pixel S * a + phase and output a + shift - t * spacing, where spacing
    is D at stride 1, else 1.
    """
    R: tl.constexpr = (K // 2) * D
    if S == 1:
        return 0, 1, K, R
    elif D == 2:
        return 0, 1, tl.where(phase == 0, K, 0), K // 2
    else:
        first = (phase + R) % 2
        return first, 2, (K - first + 1) // 2, (phase + R - first) // 2


@triton.jit
def _taps(
    a0, a1, a2, a3, u, weights, n, h, w, alive, c, row_phase, column_phase,
    C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, K: tl.constexpr, D: tl.constexpr, S: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """A depthwise convolution's share of four pixels' gradients."""
    first, step, count, shift = _met_taps(row_phase, K, D, S)
    first_q, step_q, count_q, shift_q = _met_taps(column_phase, K, D, S)
    SPACING: tl.constexpr = D if S == 1 else 1
    MOST: tl.constexpr = K if (S == 1) | (D == 2) else (K + 1) // 2
    inside_c = c < C
    for t in range(count):
        y = h + shift - t * SPACING
        inside_row = alive & (y >= 0) & (y < HO)
        row = (n * HO + y) * WO
        tap = (first + t * step) * K + first_q
        for s in tl.static_range(SPACING * (MOST - 1) + 4):
            x = w + shift_q + (s - SPACING * (MOST - 1))
            inside = (inside_row & (x >= 0) & (x < WO))[:, None] & inside_c[None, :]
            value = tl.load(u + (row + x)[:, None] * C + c[None, :], mask=inside, other=0.0).to(ACC)
            for k in tl.static_range(4):
                BACK: tl.constexpr = k + SPACING * (MOST - 1) - s
                if (BACK >= 0) & (BACK % SPACING == 0) & (BACK // SPACING < MOST):
                    q: tl.constexpr = BACK // SPACING
                    known = inside_c
                    if S == 2:
                        known = inside_c & (q < count_q)
                    weight = tl.load(weights + (tap + q * step_q) * C + c, mask=known, other=0.0).to(ACC)
                    a0, a1, a2, a3 = _add(value * weight[None, :], k, a0, a1, a2, a3)
    return a0, a1, a2, a3


@triton.jit
def _inside_count(at, side: tl.constexpr):
    """Pixels at - 1, at, at + 1 that lie inside the map."""
    return tl.minimum(at + 1, side - 1) - tl.maximum(at - 1, 0) + 1


@triton.jit
def _mean(
    a0, a1, a2, a3, u, n, h, w, alive, c, row_phase, column_phase,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, S: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """An average pool's share: each output's gradient goes to the pixels under it in equal parts."""
    first, step, count, shift = _met_taps(row_phase, 3, 1, S)
    first_q, step_q, count_q, shift_q = _met_taps(column_phase, 3, 1, S)
    MOST: tl.constexpr = 3 if S == 1 else 2
    for t in range(count):
        y = h + shift - t
        inside_row = alive & (y >= 0) & (y < HO)
        for s in tl.static_range(MOST + 3):
            x = w + shift_q + (s - (MOST - 1))
            inside = (inside_row & (x >= 0) & (x < WO))[:, None] & (c < C)[None, :]
            value = tl.load(u + ((n * HO + y) * WO + x)[:, None] * C + c[None, :], mask=inside, other=0.0).to(ACC)
            pixels = tl.maximum(_inside_count(y * S, H) * _inside_count(x * S, W), 1)
            value = value / pixels.to(ACC)[:, None]
            for k in tl.static_range(4):
                q: tl.constexpr = k + MOST - 1 - s
                if (q >= 0) & (q < MOST):
                    if S == 2:
                        a0, a1, a2, a3 = _add(tl.where(q < count_q, value, 0.0), k, a0, a1, a2, a3)
                    else:
                        a0, a1, a2, a3 = _add(value, k, a0, a1, a2, a3)
    return a0, a1, a2, a3


@triton.jit
def _not_beaten(x, value, outside, place):
    """Bit `place` of a 5 x 5 neighbourhood: x would win a window that contains that pixel, ties to the first."""
    lower = tl.where(place < 12, value < x, value <= x)
    return (lower | outside).to(tl.int32) << place


@triton.jit
def _maximum(
    a0, a1, a2, a3, u, x, stride, x0, x1, x2, x3, n, h, w, alive, c, row_phase, column_phase,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, S: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A max pool's share: a pixel has the gradient of the windows of which it is the first maximum."""
    b0 = tl.zeros((BP, BC), tl.int32)
    b1 = tl.zeros((BP, BC), tl.int32)
    b2 = tl.zeros((BP, BC), tl.int32)
    b3 = tl.zeros((BP, BC), tl.int32)
    inside_c = (c < C)[None, :]
    for r in range(5):
        y = h * S + row_phase + r - 2
        inside_row = alive & (y >= 0) & (y < H)
        for s in tl.static_range(5 + 3 * S):
            at = w * S + column_phase + s - 2
            inside = (inside_row & (at >= 0) & (at < W))[:, None]
            near = x + ((n * H + y) * W + at)[:, None] * stride + c[None, :]
            value = tl.load(near, mask=inside & inside_c, other=0.0).to(ACC)
            outside = inside == 0
            if s < 5:
                b0 = b0 | _not_beaten(x0, value, outside, r * 5 + s)
            if (s >= S) & (s < S + 5):
                b1 = b1 | _not_beaten(x1, value, outside, r * 5 + s - S)
            if (s >= 2 * S) & (s < 2 * S + 5):
                b2 = b2 | _not_beaten(x2, value, outside, r * 5 + s - 2 * S)
            if s >= 3 * S:
                b3 = b3 | _not_beaten(x3, value, outside, r * 5 + s - 3 * S)
    first, step, count, shift = _met_taps(row_phase, 3, 1, S)
    first_q, step_q, count_q, shift_q = _met_taps(column_phase, 3, 1, S)
    MOST: tl.constexpr = 3 if S == 1 else 2
    for t in range(count):
        y = h + shift - t
        inside_row = alive & (y >= 0) & (y < HO)
        row = (n * HO + y) * WO
        up = (2 - first - t * step) * 5 + 2 - first_q
        for s in tl.static_range(MOST + 3):
            at = w + shift_q + (s - (MOST - 1))
            inside = (inside_row & (at >= 0) & (at < WO))[:, None] & inside_c
            value = tl.load(u + (row + at)[:, None] * C + c[None, :], mask=inside, other=0.0).to(ACC)
            for k in tl.static_range(4):
                q: tl.constexpr = k + MOST - 1 - s
                if (q >= 0) & (q < MOST):
                    bits = b0
                    if k == 1:
                        bits = b1
                    if k == 2:
                        bits = b2
                    if k == 3:
                        bits = b3
                    # A phase with one tap only has no second window; `up` - 1 * step_q could fall below 0 there.
                    window = WINDOW << tl.maximum(up - q * step_q, 0)
                    won = ((bits & window) == window) & (q < count_q)
                    a0, a1, a2, a3 = _add(tl.where(won, value, 0.0), k, a0, a1, a2, a3)
    return a0, a1, a2, a3


@triton.jit
def _dense(
    a0, a1, a2, a3, u, weights, n, h, w, alive, c,
    C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A dense 3x3 convolution's share; weights: [9, in, out]."""
    for tap in range(9):
        y = h + 1 - tap // 3
        x = w + 1 - tap % 3
        inside_row = alive & (y >= 0) & (y < HO)
        for block in range(0, C, BK):
            co = block + tl.arange(0, BK)
            there = (co < C)[:, None] & (c < C)[None, :]
            weight = tl.load(weights + tap * (C * C) + c[None, :] * C + co[:, None], mask=there, other=0.0)
            own = u + ((n * HO + y) * WO + x)[:, None] * C + co[None, :]
            a0 = product(_pixels(own, inside_row & (x >= 0) & (x < WO), co, C), weight, a0, DOT)
            a1 = product(_pixels(own + C, inside_row & (x >= -1) & (x < WO - 1), co, C), weight, a1, DOT)
            a2 = product(_pixels(own + 2 * C, inside_row & (x >= -2) & (x < WO - 2), co, C), weight, a2, DOT)
            a3 = product(_pixels(own + 3 * C, inside_row & (x >= -3) & (x < WO - 3), co, C), weight, a3, DOT)
    return a0, a1, a2, a3


@triton.jit
def _reduction(
    a0, a1, a2, a3, u, weights, n, h, w, alive, c, phase,
    C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """FactorizedReduce's share: the first half of its outputs reads the even pixels, the second the odd ones."""
    HALF: tl.constexpr = C // 2
    for block in range(0, HALF, BK):
        k = block + tl.arange(0, BK)
        co = tl.where(k < HALF, phase * HALF + k, C)
        there = (co < C)[:, None] & (c < C)[None, :]
        weight = tl.load(weights + co[:, None] * C + c[None, :], mask=there, other=0.0)
        own = u + ((n * HO + h) * WO + w)[:, None] * C + co[None, :]
        a0 = product(_pixels(own, alive, co, C), weight, a0, DOT)
        a1 = product(_pixels(own + C, alive & (w + 1 < WO), co, C), weight, a1, DOT)
        a2 = product(_pixels(own + 2 * C, alive & (w + 2 < WO), co, C), weight, a2, DOT)
        a3 = product(_pixels(own + 3 * C, alive & (w + 3 < WO), co, C), weight, a3, DOT)
    return a0, a1, a2, a3


@triton.jit
def _pixels(place, alive, c, C: tl.constexpr):
    """Values of some pixels and channels, 0 where there are none."""
    return tl.load(place, mask=alive[:, None] & (c < C)[None, :], other=0.0)


@triton.jit
def _through_relu(
    u, rows, depthwise, pointwise, dense, num, plane, state, n, h, w, alive, c, row_phase, column_phase,
    C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, S: tl.constexpr, HAS_TAPS: tl.constexpr,
    HAS_DENSE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Shares of the branches that read the ReLU of the state, before its mask."""
    a0 = tl.zeros((BP, BC), ACC)
    a1 = tl.zeros((BP, BC), ACC)
    a2 = tl.zeros((BP, BC), ACC)
    a3 = tl.zeros((BP, BC), ACC)
    for j in range(num):
        code = tl.where(column(rows, j, SOURCE) == state, column(rows, j, CODE), NONE)
        own = u + j * plane
        if HAS_TAPS:
            taps = depthwise + tl.cast(column(rows, j, TAPS0), tl.int64) * C
            if code == SEP3:
                a0, a1, a2, a3 = _taps(
                    a0, a1, a2, a3, own, taps, n, h, w, alive, c, row_phase, column_phase, C, HO, WO, 3, 1, S, ACC
                )
            elif code == SEP5:
                a0, a1, a2, a3 = _taps(
                    a0, a1, a2, a3, own, taps, n, h, w, alive, c, row_phase, column_phase, C, HO, WO, 5, 1, S, ACC
                )
            elif code == DIL3:
                a0, a1, a2, a3 = _taps(
                    a0, a1, a2, a3, own, taps, n, h, w, alive, c, row_phase, column_phase, C, HO, WO, 3, 2, S, ACC
                )
            elif code == DIL5:
                a0, a1, a2, a3 = _taps(
                    a0, a1, a2, a3, own, taps, n, h, w, alive, c, row_phase, column_phase, C, HO, WO, 5, 2, S, ACC
                )
        if S == 2:
            if (code == REDUCE) & (row_phase == column_phase):
                point = pointwise + tl.cast(column(rows, j, POINT0), tl.int64) * (C * C)
                a0, a1, a2, a3 = _reduction(
                    a0, a1, a2, a3, own, point, n, h, w, alive, c, row_phase, C, HO, WO, BC, ACC, DOT
                )
        elif HAS_DENSE:
            if code == CONV3:
                weights = dense + tl.cast(column(rows, j, POINT0), tl.int64) * (9 * C * C)
                a0, a1, a2, a3 = _dense(a0, a1, a2, a3, own, weights, n, h, w, alive, c, C, HO, WO, BC, ACC, DOT)
            elif code == CONV1:
                place = own + ((n * HO + h) * WO + w)[:, None] * C + c[None, :]
                a0 += _pixels(place, alive, c, C).to(ACC)
                a1 += _pixels(place + C, alive & (w + 1 < WO), c, C).to(ACC)
                a2 += _pixels(place + 2 * C, alive & (w + 2 < WO), c, C).to(ACC)
                a3 += _pixels(place + 3 * C, alive & (w + 3 < WO), c, C).to(ACC)
    return a0, a1, a2, a3


@triton.jit
def _passed(place, drop, factor, alive, c, C: tl.constexpr, HAS_DROP: tl.constexpr, ACC: tl.constexpr):
    """A skip-connect's share of one pixel each."""
    value = _pixels(place, alive, c, C).to(ACC) * factor
    if HAS_DROP:
        value = value * _pixels(drop, alive, c, C).to(ACC)
    return value


@triton.jit
def _direct(
    a0, a1, a2, a3, d_nodes, u, rows, gates, drop, drop_scale, num, plane, node_stride, state, x, stride,
    x0, x1, x2, x3, n, h, w, alive, c, row_phase, column_phase,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, S: tl.constexpr,
    ROW_STRIDE: tl.constexpr, HAS_DROP: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Shares of the branches that read the state itself: pools and skip-connects."""
    for j in range(num):
        code = tl.where(column(rows, j, SOURCE) == state, column(rows, j, CODE), NONE)
        own = u + j * plane
        if code == MAX:
            a0, a1, a2, a3 = _maximum(
                a0, a1, a2, a3, own, x, stride, x0, x1, x2, x3, n, h, w, alive, c, row_phase, column_phase,
                C, H, W, HO, WO, S, BP, BC, ACC,
            )  # fmt: skip
        elif (code == AVG) | (code == AVG_DIRECT):
            a0, a1, a2, a3 = _mean(
                a0, a1, a2, a3, own, n, h, w, alive, c, row_phase, column_phase, C, H, W, HO, WO, S, ACC
            )
        if S == 1:
            if code == SKIP:
                pixel = (n * HO + h) * WO + w
                factor = tl.load(gates + column(rows, j, GATE)).to(ACC)
                if HAS_DROP:
                    factor = factor * tl.load(drop_scale + j).to(ACC)
                dy = d_nodes + column(rows, j, OUTPUT) * node_stride + pixel[:, None] * ROW_STRIDE + c[None, :]
                kept = drop + j * plane + pixel[:, None] * C + c[None, :]
                a0 += _passed(dy, kept, factor, alive, c, C, HAS_DROP, ACC)
                a1 += _passed(dy + ROW_STRIDE, kept + C, factor, alive & (w + 1 < WO), c, C, HAS_DROP, ACC)
                a2 += _passed(dy + 2 * ROW_STRIDE, kept + 2 * C, factor, alive & (w + 2 < WO), c, C, HAS_DROP, ACC)
                a3 += _passed(dy + 3 * ROW_STRIDE, kept + 3 * C, factor, alive & (w + 3 < WO), c, C, HAS_DROP, ACC)
    return a0, a1, a2, a3


@triton.jit
def _add_to(place, value, alive, c, C: tl.constexpr):
    inside = alive[:, None] & (c < C)[None, :]
    total = tl.load(place, mask=inside, other=0.0).to(value.dtype) + value
    tl.store(place, total.to(place.dtype.element_ty), mask=inside)


@triton.jit
def _state(
    d_nodes, u, rows, gates, depthwise, pointwise, dense, drop, drop_scale, x, d_x, stride, num, plane, node_stride,
    state, phase, n, h, w, alive, c,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, S: tl.constexpr,
    ROW_STRIDE: tl.constexpr, HAS_TAPS: tl.constexpr, HAS_DENSE: tl.constexpr, HAS_DROP: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Four pixels in a row (of one phase) of a state whose edges have stride S; h and w count outputs."""
    row_phase = phase // S
    column_phase = phase % S
    a0, a1, a2, a3 = _through_relu(
        u, rows, depthwise, pointwise, dense, num, plane, state, n, h, w, alive, c, row_phase, column_phase,
        C, HO, WO, S, HAS_TAPS, HAS_DENSE, BP, BC, ACC, DOT,
    )  # fmt: skip
    own = ((n * H + h * S + row_phase) * W + w * S + column_phase)[:, None] * stride + c[None, :]
    alive1, alive2, alive3 = alive & (w + 1 < WO), alive & (w + 2 < WO), alive & (w + 3 < WO)
    x0 = _pixels(x + own, alive, c, C).to(ACC)
    x1 = _pixels(x + own + S * stride, alive1, c, C).to(ACC)
    x2 = _pixels(x + own + 2 * S * stride, alive2, c, C).to(ACC)
    x3 = _pixels(x + own + 3 * S * stride, alive3, c, C).to(ACC)
    a0 = tl.where(x0 > 0, a0, 0.0)
    a1 = tl.where(x1 > 0, a1, 0.0)
    a2 = tl.where(x2 > 0, a2, 0.0)
    a3 = tl.where(x3 > 0, a3, 0.0)
    a0, a1, a2, a3 = _direct(
        a0, a1, a2, a3, d_nodes, u, rows, gates, drop, drop_scale, num, plane, node_stride, state, x, stride,
        x0, x1, x2, x3, n, h, w, alive, c, row_phase, column_phase,
        C, H, W, HO, WO, S, ROW_STRIDE, HAS_DROP, BP, BC, ACC,
    )  # fmt: skip
    _add_to(d_x + own, a0, alive, c, C)
    _add_to(d_x + own + S * stride, a1, alive1, c, C)
    _add_to(d_x + own + 2 * S * stride, a2, alive2, c, C)
    _add_to(d_x + own + 3 * S * stride, a3, alive3, c, C)


@triton.jit
def gather_kernel(
    d_nodes, u, inputs, nodes, rows, gates, depthwise, pointwise, dense, drop, drop_scale, d_inputs, num, batch,
    input_plane, node_stride,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, I: tl.constexpr,
    STRIDE: tl.constexpr, ROW_STRIDE: tl.constexpr, INPUT_PLANES: tl.constexpr, HAS_TAPS: tl.constexpr,
    HAS_DENSE: tl.constexpr, HAS_DROP: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of groups of four pixels x phases of the inputs and nodes x blocks of channels."""
    PHASES: tl.constexpr = STRIDE * STRIDE
    PER_ROW: tl.constexpr = (WO + 3) // 4
    number = tl.program_id(1)
    is_input = number < INPUT_PLANES
    state = tl.where(is_input, number // PHASES, number - INPUT_PLANES + I)
    phase = tl.where(is_input, number % PHASES, 0)
    readers = 0
    for j in range(num):
        readers += ((column(rows, j, SOURCE) == state) & (column(rows, j, CODE) != NONE)).to(tl.int32)
    if readers == 0:
        return
    g = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    alive = g < batch * HO * PER_ROW
    n, h, w = group_of_four(g, PER_ROW, HO, 1)
    plane = tl.cast(batch, tl.int64) * (HO * WO * C)
    if is_input:
        x = inputs + state * tl.cast(input_plane, tl.int64)
        d_x = d_inputs + state * tl.cast(input_plane, tl.int64)
        stride = C
    else:
        x = nodes + (state - I) * tl.cast(node_stride, tl.int64)
        d_x = d_nodes + (state - I) * tl.cast(node_stride, tl.int64)
        stride = ROW_STRIDE
    if C % 16 == 0:
        x, d_x, stride = tl.multiple_of(x, 16), tl.multiple_of(d_x, 16), tl.multiple_of(stride, 16)
    if (STRIDE == 2) & is_input:
        _state(
            d_nodes, u, rows, gates, depthwise, pointwise, dense, drop, drop_scale, x, d_x, stride, num, plane,
            node_stride, state, phase, n, h, w, alive, c,
            C, H, W, HO, WO, STRIDE, ROW_STRIDE, HAS_TAPS, HAS_DENSE, HAS_DROP, BP, BC, ACC, DOT,
        )  # fmt: skip
    else:
        _state(
            d_nodes, u, rows, gates, depthwise, pointwise, dense, drop, drop_scale, x, d_x, stride, num, plane,
            node_stride, state, phase, n, h, w, alive, c,
            C, HO, WO, HO, WO, 1, ROW_STRIDE, HAS_TAPS, HAS_DENSE, HAS_DROP, BP, BC, ACC, DOT,
        )  # fmt: skip


def _check_drop(drop_JBHWC: Tensor | None, drop_scale_J: Tensor | None, u_JBHWC: Tensor) -> None:
    if (drop_JBHWC is None) != (drop_scale_J is None):
        raise KernelError("drop_scale_J", got="one of mask and scale", allowed="both or neither")
    if drop_JBHWC is None or drop_scale_J is None:
        return
    if drop_JBHWC.shape != u_JBHWC.shape or not drop_JBHWC.is_contiguous() or drop_JBHWC.element_size() != 1:
        got = f"{drop_JBHWC.dtype} {tuple(drop_JBHWC.shape)}"
        raise KernelError("drop_JBHWC", got=got, allowed=f"contiguous uint8 {tuple(u_JBHWC.shape)}")
    if drop_scale_J.shape != u_JBHWC.shape[:1] or not drop_scale_J.is_contiguous():
        raise KernelError("drop_scale_J", got=tuple(drop_scale_J.shape), allowed=f"contiguous {u_JBHWC.shape[0]}")


def gather_backward(
    d_nodes: Tensor, u_JBHWC: Tensor, inputs_IBHWC: Tensor, nodes: Tensor, branches_J8: Tensor, gates_EO: Tensor,
    depthwise_TC: Tensor, pointwise_SCC: Tensor, dense_D9CC: Tensor, drop_JBHWC: Tensor | None,
    drop_scale_J: Tensor | None, d_inputs_IBHWC: Tensor | None, geometry: Geometry,
) -> None:  # fmt: skip
    """Add every branch's gradient to its source's; see the twin `reference.stage_backward.gather_backward`.

    Raises:
        KernelError: for a tensor of a wrong dtype, device, shape or layout.
    """
    check_maps(inputs_IBHWC, nodes, geometry)
    check_nodes("d_nodes", d_nodes, inputs_IBHWC, geometry)
    check_rows(branches_J8, inputs_IBHWC)
    check_branch_maps("u_JBHWC", u_JBHWC, branches_J8, inputs_IBHWC, geometry)
    check_gates(gates_EO, inputs_IBHWC)
    check_weights(depthwise_TC, pointwise_SCC, dense_D9CC, inputs_IBHWC)
    _check_drop(drop_JBHWC, drop_scale_J, u_JBHWC)
    if d_inputs_IBHWC is not None:
        check_like("d_inputs_IBHWC", d_inputs_IBHWC, inputs_IBHWC)
        if d_inputs_IBHWC.shape != inputs_IBHWC.shape or not d_inputs_IBHWC.is_contiguous():
            got = f"shape {tuple(d_inputs_IBHWC.shape)}, strides {d_inputs_IBHWC.stride()}"
            raise KernelError("d_inputs_IBHWC", got=got, allowed=f"contiguous {tuple(inputs_IBHWC.shape)}")
    phases = 0 if d_inputs_IBHWC is None else geometry.inputs * geometry.stride**2
    planes = phases + geometry.nodes - 1
    if planes == 0:
        return
    b = blocks("gather", inputs_IBHWC, geometry)
    c, height, width = geometry.channels, geometry.out_height, geometry.out_width
    tiles = triton.cdiv(geometry.batch * height * triton.cdiv(width, 4), b.pixels)
    gather_kernel[(tiles, planes, triton.cdiv(c, b.channels))](
        d_nodes, u_JBHWC, inputs_IBHWC, nodes, branches_J8, gates_EO, depthwise_TC, pointwise_SCC, dense_D9CC,
        u_JBHWC if drop_JBHWC is None else drop_JBHWC, gates_EO if drop_scale_J is None else drop_scale_J,
        inputs_IBHWC if d_inputs_IBHWC is None else d_inputs_IBHWC, branches_J8.shape[0], geometry.batch,
        inputs_IBHWC.stride(0), geometry.node_stride, C=c, H=geometry.height, W=geometry.width, HO=height, WO=width,
        I=geometry.inputs, STRIDE=geometry.stride, ROW_STRIDE=geometry.row_stride, INPUT_PLANES=phases,
        HAS_TAPS=depthwise_TC.shape[0] > 0, HAS_DENSE=dense_D9CC.shape[0] > 0, HAS_DROP=drop_JBHWC is not None,
        BP=b.pixels, BC=b.channels, ACC=b.acc, DOT=b.dot, num_warps=b.num_warps,
    )  # fmt: skip
