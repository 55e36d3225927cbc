"""Device functions that several kernels share: rows of the branch table, sources, and the loop over taps.

Shape suffixes: as in `branches`. P pixels of a tile, G groups of four outputs.

Four outputs of a row go together, spaced by the dilation, so that a loaded and converted value is used up to k
times: about 3 instructions for one tap of one element instead of 5 (sm_90, `budgets.json`). The loop over a
kernel's rows stays a loop: unrolled, LLVM hoists all loads and spills.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import branches

COLUMNS = tl.constexpr(branches.COLUMNS)
CODE, SOURCE, OUTPUT, GATE = (tl.constexpr(v) for v in (branches.CODE, branches.SOURCE, branches.OUTPUT, branches.GATE))
TAPS0, TAPS1 = tl.constexpr(branches.TAPS0), tl.constexpr(branches.TAPS1)
POINT0, POINT1 = tl.constexpr(branches.POINT0), tl.constexpr(branches.POINT1)
NONE, SKIP, AVG_DIRECT = (tl.constexpr(v) for v in (branches.NONE, branches.SKIP, branches.AVG_DIRECT))
MAX, AVG, REDUCE = (tl.constexpr(v) for v in (branches.MAX, branches.AVG, branches.REDUCE))
CONV1, CONV3 = tl.constexpr(branches.CONV1), tl.constexpr(branches.CONV3)
SEP3, SEP5 = tl.constexpr(branches.SEP3), tl.constexpr(branches.SEP5)
DIL3, DIL5 = tl.constexpr(branches.DIL3), tl.constexpr(branches.DIL5)


@triton.jit
def column(rows, j, which: tl.constexpr):
    """One number of row j of the branch table."""
    return tl.load(rows + j * COLUMNS + which)


@triton.jit
def state_of(
    source, inputs, nodes, input_plane, node_stride, I: tl.constexpr, C: tl.constexpr, ROW_STRIDE: tl.constexpr
):  # fmt: skip
    """(map, distance of its pixels) of a source: an input or a node."""
    if source < I:
        x = inputs + source * input_plane
        stride = tl.full((), C, tl.int32)
    else:
        x = nodes + (source - I) * node_stride
        stride = tl.full((), ROW_STRIDE, tl.int32)
    if C % 16 == 0:
        x, stride = tl.multiple_of(x, 16), tl.multiple_of(stride, 16)
    return x, stride


@triton.jit
def row_gradient(
    rows, j, d_nodes, v, gates, node_stride, plane, LAST: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """(map, factor) of the gradient of what the stage of a branch gave: its node's times its gate, or `v` as it is."""
    if LAST:
        dy = d_nodes + column(rows, 0, OUTPUT) * node_stride
        gate = tl.load(gates + column(rows, j, GATE)).to(ACC)
    else:
        dy = v + j * plane
        gate = tl.full((), 1.0, ACC)
    return dy, gate


@triton.jit
def four_zeros(BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr):
    """Four outputs' sums at the start."""
    zeros = tl.zeros((BP, BC), ACC)
    return zeros, zeros, zeros, zeros


@triton.jit
def added(value, t: tl.constexpr, a0, a1, a2, a3):
    """Four outputs' sums after adding to output number t."""
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
def picked(t: tl.constexpr, a0, a1, a2, a3):
    """Output number t of four."""
    a = a0
    if t == 1:
        a = a1
    if t == 2:
        a = a2
    if t == 3:
        a = a3
    return a


@triton.jit
def widened(x, ACC: tl.constexpr):
    """x as ACC."""
    # NVIDIA's compiler takes two instructions for every second value of a plain conversion, here one.
    if x.dtype == tl.bfloat16:
        x = (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return x.to(ACC)


@triton.jit
def scale_and_shift(stats, c, C: tl.constexpr, ACC: tl.constexpr):
    """(scale, shift) [BC] of x * scale + shift, the BatchNorm of a branch with these (mean, rstd)."""
    scale = tl.load(stats + C + c, mask=c < C, other=1.0).to(ACC)
    return scale, -tl.load(stats + c, mask=c < C, other=0.0).to(ACC) * scale


@triton.jit
def rectified(place, inside, scale, shift, NORM: tl.constexpr, ACC: tl.constexpr):
    """relu(x), or relu(x * scale + shift) with scale > 0, of the x at `place`; 0 where not inside."""
    if NORM:
        # The activation of -inf is 0: cheaper than a selection behind it.
        x = widened(tl.load(place, mask=inside, other=float("-inf")), ACC) * scale[None, :] + shift[None, :]
    else:
        x = widened(tl.load(place, mask=inside, other=0.0), ACC)
    return tl.maximum(x, 0.0)


@triton.jit
def four_outputs(
    x, stride, taps, n, h0, w0, alive, c, scale, shift, H, W,
    C: tl.constexpr, K: tl.constexpr, ROW_STEP: tl.constexpr, COLUMN_STEP: tl.constexpr, PER_OUTPUT: tl.constexpr,
    PER_TAP: tl.constexpr, NORM: tl.constexpr, FLIP: tl.constexpr, RELU: tl.constexpr, BP: tl.constexpr,
    BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Depthwise convolution of four outputs: [BP, BC] each.

    Args:
        x, stride: map and the distance of its pixels in elements.
        taps: first of k * k rows of C weights.
        n, h0, w0: [BP] sample, and the input row and column of the first output's first tap: padded by k // 2 taps.
        c: [BC] channels.
        ROW_STEP, COLUMN_STEP: pixels between two rows, and between two columns, that are read.
        PER_OUTPUT, PER_TAP: columns read between two neighbouring outputs, and between two taps of a row.
        FLIP: whether to run through the taps backwards, as an input gradient does.
    """
    a0, a1, a2, a3 = four_zeros(BP, BC, ACC)
    # A block of channels that fits needs no mask, which is an instruction for every tap.
    FITS: tl.constexpr = C % BC == 0
    # Columns from here on are not left of the map, and need no comparison.
    PAD: tl.constexpr = (K // 2) * ROW_STEP
    cm = c < C
    row = x + ((n * H + h0) * W + w0)[:, None] * stride + c[None, :]
    row_taps = taps + c
    if FLIP:
        row_taps += (K * K - 1) * C
    for i in range(K):
        h = h0 + i * ROW_STEP
        inside_row = alive & (h >= 0) & (h < H)
        for s in tl.static_range((K - 1) * PER_TAP + 1 + 3 * PER_OUTPUT):
            w = w0 + s * COLUMN_STEP
            inside = inside_row & (w < W)
            if s * COLUMN_STEP < PAD:
                inside = inside & (w >= 0)
            inside = inside[:, None]
            if not FITS:
                inside = inside & cm[None, :]
            place = row + s * COLUMN_STEP * stride
            if RELU:
                value = rectified(place, inside, scale, shift, NORM, ACC)
            else:
                value = widened(tl.load(place, mask=inside, other=0.0), ACC)
            for t in tl.static_range(4):
                if (s >= t * PER_OUTPUT) & (s - t * PER_OUTPUT < K * PER_TAP) & ((s - t * PER_OUTPUT) % PER_TAP == 0):
                    tap = (s - t * PER_OUTPUT) // PER_TAP
                    if FLIP:
                        tap = -tap
                    if FITS:
                        weight = tl.load(row_taps + tap * C).to(ACC)[None, :]
                    else:
                        weight = tl.load(row_taps + tap * C, mask=cm, other=0.0).to(ACC)[None, :]
                    a0, a1, a2, a3 = added(value * weight, t, a0, a1, a2, a3)
        row += ROW_STEP * W * stride
        row_taps += -K * C if FLIP else K * C
    return a0, a1, a2, a3


@triton.jit
def group_of_four(g, PER_ROW: tl.constexpr, HEIGHT: tl.constexpr, SPACING: tl.constexpr):
    """(sample, row, first column) of group g: four outputs, SPACING pixels apart."""
    n = g // (PER_ROW * HEIGHT)
    rest = g % (PER_ROW * HEIGHT)
    h = rest // PER_ROW
    place = rest % PER_ROW
    return n, h, (place // SPACING) * (4 * SPACING) + place % SPACING


@triton.jit
def product(a, weight, acc, DOT: tl.constexpr):
    """acc + a @ weight: tensor cores for bf16, exact multiplication for fp32 and fp64."""
    return tl.dot(a.to(DOT), weight.to(DOT), acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def store_row(z, n, h, w, alive, c, value, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr):
    """Write [BP, BC] values of one output each to an NHWC map."""
    inside = (alive & (w < WIDTH))[:, None] & (c < C)[None, :]
    pixel = (n * HEIGHT + h) * WIDTH + w
    tl.store(z + pixel[:, None] * C + c[None, :], value.to(z.dtype.element_ty), mask=inside)


@triton.jit
def norm_grad(
    dy, z, stats, sums, scale, pixels, c, C: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """dz [BP, BC] of out = scale * xhat(z): scale * rstd * (dy - S1 / P - xhat * S2 / P).

    Args:
        stats, sums: of the branch, (mean, rstd) and (S1, S2).
    """
    inside = c < C
    mean = tl.load(stats + c, mask=inside, other=0.0).to(ACC)
    rstd = tl.load(stats + C + c, mask=inside, other=0.0).to(ACC)
    s1 = tl.load(sums + c, mask=inside, other=0.0).to(ACC) / pixels
    s2 = tl.load(sums + C + c, mask=inside, other=0.0).to(ACC) / pixels
    xhat = (z - mean[None, :]) * rstd[None, :]
    return (dy - s1[None, :] - xhat * s2[None, :]) * (scale * rstd)[None, :]


@triton.jit
def pixels_grad(
    dy, dy_stride, z, stats, sums, scale, pixels, p, alive, c, C: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """`norm_grad` of the pixels p of a map, whose dy are dy_stride elements apart; zero where not alive."""
    inside = alive[:, None] & (c < C)[None, :]
    g = tl.load(dy + p[:, None] * dy_stride + c[None, :], mask=inside, other=0.0).to(ACC)
    value = tl.load(z + p[:, None] * C + c[None, :], mask=inside, other=0.0).to(ACC)
    return tl.where(inside, norm_grad(g, value, stats, sums, scale, pixels, c, C, ACC), 0.0)


@triton.jit
def load_pixel(x, stride, n, h, w, alive, c, H, W, C: tl.constexpr, ACC: tl.constexpr):
    """[BP, BC] of one pixel each; zero outside the map."""
    inside = (alive & (h >= 0) & (h < H) & (w >= 0) & (w < W))[:, None] & (c < C)[None, :]
    return widened(tl.load(x + ((n * H + h) * W + w)[:, None] * stride + c[None, :], mask=inside, other=0.0), ACC)
