"""Gradients of the states through the branches that read them: one program owns four pixels in a row, times some,
of one state, asks every branch of the launch for its share and writes once.

Shape suffixes: as in `branches`. Where edges have stride 2, the pixels of an input fall into four phases by the
parity of their row and column, and a program's pixels are of one phase (see `shares`).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .branches import Geometry
from .checks import (
    check_branch_maps,
    check_drop,
    check_gates,
    check_like,
    check_maps,
    check_nodes,
    check_rows,
    check_weights,
)
from .errors import KernelError
from .launch import all_registers, blocks
from .shares import dense_share, maximum_share, mean_share, pixels_of, reduction_share, taps_share
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
    four_zeros,
    group_of_four,
)


@triton.jit
def _through_relu(
    u, rows, depthwise, pointwise, dense, num, plane, state, n, h, w, alive, c, row_phase, column_phase,
    C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, S: tl.constexpr, HAS_TAPS: tl.constexpr,
    HAS_DENSE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Shares of the branches that read the ReLU of the state, before its mask."""
    a0, a1, a2, a3 = four_zeros(BP, BC, ACC)
    for j in tl.range(num, disable_licm=True):
        code = tl.where(column(rows, j, SOURCE) == state, column(rows, j, CODE), NONE)
        own = u + j * plane
        if HAS_TAPS:
            taps = depthwise + tl.cast(column(rows, j, TAPS0), tl.int64) * C
            if code == SEP3:
                a0, a1, a2, a3 = taps_share(
                    a0, a1, a2, a3, own, taps, n, h, w, alive, c, row_phase, column_phase, C, HO, WO, 3, 1, S, ACC
                )
            elif code == SEP5:
                a0, a1, a2, a3 = taps_share(
                    a0, a1, a2, a3, own, taps, n, h, w, alive, c, row_phase, column_phase, C, HO, WO, 5, 1, S, ACC
                )
            elif code == DIL3:
                a0, a1, a2, a3 = taps_share(
                    a0, a1, a2, a3, own, taps, n, h, w, alive, c, row_phase, column_phase, C, HO, WO, 3, 2, S, ACC
                )
            elif code == DIL5:
                a0, a1, a2, a3 = taps_share(
                    a0, a1, a2, a3, own, taps, n, h, w, alive, c, row_phase, column_phase, C, HO, WO, 5, 2, S, ACC
                )
        if S == 2:
            if (code == REDUCE) & (row_phase == column_phase):
                point = pointwise + tl.cast(column(rows, j, POINT0), tl.int64) * (C * C)
                a0, a1, a2, a3 = reduction_share(
                    a0, a1, a2, a3, own, point, n, h, w, alive, c, row_phase, C, HO, WO, BC, ACC, DOT
                )
        else:
            if HAS_DENSE & (code == CONV3):
                weights = dense + tl.cast(column(rows, j, POINT0), tl.int64) * (9 * C * C)
                a0, a1, a2, a3 = dense_share(a0, a1, a2, a3, own, weights, n, h, w, alive, c, C, HO, WO, BC, ACC, DOT)
            elif code == CONV1:
                place = own + ((n * HO + h) * WO + w)[:, None] * C + c[None, :]
                a0 += pixels_of(place, alive, c, C).to(ACC)
                a1 += pixels_of(place + C, alive & (w + 1 < WO), c, C).to(ACC)
                a2 += pixels_of(place + 2 * C, alive & (w + 2 < WO), c, C).to(ACC)
                a3 += pixels_of(place + 3 * C, alive & (w + 3 < WO), c, C).to(ACC)
    return a0, a1, a2, a3


@triton.jit
def _passed(place, drop, factor, alive, c, C: tl.constexpr, HAS_DROP: tl.constexpr, ACC: tl.constexpr):
    value = pixels_of(place, alive, c, C).to(ACC) * factor
    if HAS_DROP:
        value = value * pixels_of(drop, alive, c, C).to(ACC)
    return value


@triton.jit
def _skip_share(
    a0, a1, a2, a3, d_nodes, rows, gates, drop, drop_scale, node_stride, j, n, h, w, alive, c,
    C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, ROW_STRIDE: tl.constexpr, HAS_DROP: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """A skip-connect's share: the gate's, the mask's and the node's gradient's product."""
    pixel = (n * HO + h) * WO + w
    factor = tl.load(gates + column(rows, j, GATE)).to(ACC)
    if HAS_DROP:
        factor = factor * tl.load(drop_scale + j).to(ACC)
    dy = d_nodes + column(rows, j, OUTPUT) * node_stride + pixel[:, None] * ROW_STRIDE + c[None, :]
    kept = drop + pixel[:, None] * C + c[None, :]
    a0 += _passed(dy, kept, factor, alive, c, C, HAS_DROP, ACC)
    a1 += _passed(dy + ROW_STRIDE, kept + C, factor, alive & (w + 1 < WO), c, C, HAS_DROP, ACC)
    a2 += _passed(dy + 2 * ROW_STRIDE, kept + 2 * C, factor, alive & (w + 2 < WO), c, C, HAS_DROP, ACC)
    a3 += _passed(dy + 3 * ROW_STRIDE, kept + 3 * C, factor, alive & (w + 3 < WO), c, C, HAS_DROP, ACC)
    return a0, a1, a2, a3


@triton.jit
def _direct(
    a0, a1, a2, a3, d_nodes, u, rows, gates, drop, drop_scale, num, plane, node_stride, state, x, stride,
    x0, x1, x2, x3, n, h, w, alive, c, row_phase, column_phase,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, S: tl.constexpr,
    ROW_STRIDE: tl.constexpr, HAS_DROP: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Shares of the branches that read the state itself: pools and skip-connects."""
    for j in tl.range(num, disable_licm=True):
        code = tl.where(column(rows, j, SOURCE) == state, column(rows, j, CODE), NONE)
        own = u + j * plane
        if code == MAX:
            a0, a1, a2, a3 = maximum_share(
                a0, a1, a2, a3, own, x, stride, x0, x1, x2, x3, n, h, w, alive, c, row_phase, column_phase,
                C, H, W, HO, WO, S, BP, BC, ACC,
            )  # fmt: skip
        elif (code == AVG) | (code == AVG_DIRECT):
            a0, a1, a2, a3 = mean_share(
                a0, a1, a2, a3, own, n, h, w, alive, c, row_phase, column_phase, C, H, W, HO, WO, S, ACC
            )
        elif (code == SKIP) if S == 1 else False:
            a0, a1, a2, a3 = _skip_share(
                a0, a1, a2, a3, d_nodes, rows, gates, drop + j * plane, drop_scale, node_stride, j, n, h, w, alive, c,
                C, HO, WO, ROW_STRIDE, HAS_DROP, ACC,
            )  # fmt: skip
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
    x0 = pixels_of(x + own, alive, c, C).to(ACC)
    x1 = pixels_of(x + own + S * stride, alive1, c, C).to(ACC)
    x2 = pixels_of(x + own + 2 * S * stride, alive2, c, C).to(ACC)
    x3 = pixels_of(x + own + 3 * S * stride, alive3, c, C).to(ACC)
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
    S: tl.constexpr, ROW_STRIDE: tl.constexpr, INPUT_PLANES: tl.constexpr, HAS_TAPS: tl.constexpr,
    HAS_DENSE: tl.constexpr, HAS_DROP: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of groups of four pixels x phases of the inputs, then nodes x blocks of channels.

    H, W, S: of the states of this launch; S = 2 only for launches without nodes.
    """
    PER_ROW: tl.constexpr = (WO + 3) // 4
    number = tl.program_id(1)
    is_input = number < INPUT_PLANES
    state = tl.where(is_input, number // (S * S), number - INPUT_PLANES + I)
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
        stride = tl.full((), C, tl.int32)
    else:
        x = nodes + (state - I) * tl.cast(node_stride, tl.int64)
        d_x = d_nodes + (state - I) * tl.cast(node_stride, tl.int64)
        stride = tl.full((), ROW_STRIDE, tl.int32)
    if C % 16 == 0:
        x, d_x, stride = tl.multiple_of(x, 16), tl.multiple_of(d_x, 16), tl.multiple_of(stride, 16)
    if S == 2:
        _state(
            d_nodes, u, rows, gates, depthwise, pointwise, dense, drop, drop_scale, x, d_x, C, num, plane,
            node_stride, state, number % 4, n, h, w, alive, c,
            C, H, W, HO, WO, 2, ROW_STRIDE, HAS_TAPS, HAS_DENSE, HAS_DROP, BP, BC, ACC, DOT,
        )  # fmt: skip
    else:
        _state(
            d_nodes, u, rows, gates, depthwise, pointwise, dense, drop, drop_scale, x, d_x, stride, num, plane,
            node_stride, state, 0, n, h, w, alive, c,
            C, H, W, HO, WO, 1, ROW_STRIDE, HAS_TAPS, HAS_DENSE, HAS_DROP, BP, BC, ACC, DOT,
        )  # fmt: skip


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
    check_drop(drop_JBHWC, drop_scale_J, u_JBHWC)
    if d_inputs_IBHWC is not None:
        check_like("d_inputs_IBHWC", d_inputs_IBHWC, inputs_IBHWC)
        if d_inputs_IBHWC.shape != inputs_IBHWC.shape or not d_inputs_IBHWC.is_contiguous():
            got = f"shape {tuple(d_inputs_IBHWC.shape)}, strides {d_inputs_IBHWC.stride()}"
            raise KernelError("d_inputs_IBHWC", got=got, allowed=f"contiguous {tuple(inputs_IBHWC.shape)}")
    b, g = blocks("gather", inputs_IBHWC, geometry), geometry
    tiles = triton.cdiv(g.batch * g.out_height * triton.cdiv(g.out_width, 4), b.pixels)
    # (phases of inputs, nodes, size and stride of the states) of each launch: states of two strides take two.
    inputs, nodes_here = 0 if d_inputs_IBHWC is None else g.inputs, (g.out_height, g.out_width, 1)
    if g.stride == 1:
        launches = [(inputs, g.nodes - 1, nodes_here)]
    else:
        launches = [(0, g.nodes - 1, nodes_here), (inputs * g.stride**2, 0, (g.height, g.width, g.stride))]
    for phases, states, (height, width, stride) in launches:
        if phases + states == 0:
            continue
        gather_kernel[(tiles, phases + states, triton.cdiv(g.channels, b.channels))](
            d_nodes, u_JBHWC, inputs_IBHWC, nodes, branches_J8, gates_EO, depthwise_TC, pointwise_SCC, dense_D9CC,
            u_JBHWC if drop_JBHWC is None else drop_JBHWC, gates_EO if drop_scale_J is None else drop_scale_J,
            inputs_IBHWC if d_inputs_IBHWC is None else d_inputs_IBHWC, branches_J8.shape[0], g.batch,
            inputs_IBHWC.stride(0), g.node_stride, C=g.channels, H=height, W=width, HO=g.out_height, WO=g.out_width,
            I=g.inputs, S=stride, ROW_STRIDE=g.row_stride, INPUT_PLANES=phases, HAS_TAPS=depthwise_TC.shape[0] > 0,
            HAS_DENSE=dense_D9CC.shape[0] > 0, HAS_DROP=drop_JBHWC is not None, BP=b.pixels, BC=b.channels, ACC=b.acc,
            DOT=b.dot, num_warps=b.num_warps, **all_registers(),
        )  # fmt: skip
