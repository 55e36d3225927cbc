"""Weight gradients of depthwise convolutions: partial sums over groups of tiles.

Shape suffixes: as in `branches`. A program sums one row of taps at a time, so that its accumulators stay in registers;
four neighbouring outputs go together as in `taps`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .taps import (
    CODE,
    DIL3,
    SEP3,
    SEP5,
    SOURCE,
    column,
    group_of_four,
    load_pixel,
    picked,
    rectified,
    scale_and_shift,
    state_of,
)


@triton.jit
def _tap_rows(
    x, stride, u, group, repeat, batch, c, scale, shift, place, H, W,
    C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, S: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    NORM: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Partials of a depthwise kernel's taps, one row of taps at a time: [k * k, C] at `place`."""
    PER_ROW: tl.constexpr = (WO + 3) // 4
    STEP: tl.constexpr = 2 if (D == 2) & (S == 2) else 1
    PER_TAP: tl.constexpr = D // STEP
    PER_OUTPUT: tl.constexpr = S // STEP
    for i in range(K):
        w0 = tl.zeros((BP, BC), ACC)
        w1 = tl.zeros((BP, BC), ACC)
        w2 = tl.zeros((BP, BC), ACC)
        w3 = tl.zeros((BP, BC), ACC)
        w4 = tl.zeros((BP, BC), ACC)
        for r in range(repeat):
            g = (group * repeat + r) * BP + tl.arange(0, BP)
            alive = g < batch * HO * PER_ROW
            n, ho, wo = group_of_four(g, PER_ROW, HO, 1)
            u0 = load_pixel(u, C, n, ho, wo, alive, c, HO, WO, C, ACC)
            u1 = load_pixel(u, C, n, ho, wo + 1, alive, c, HO, WO, C, ACC)
            u2 = load_pixel(u, C, n, ho, wo + 2, alive, c, HO, WO, C, ACC)
            u3 = load_pixel(u, C, n, ho, wo + 3, alive, c, HO, WO, C, ACC)
            h = ho * S + (i - K // 2) * D
            inside_row = alive & (h >= 0) & (h < H)
            for s in tl.static_range((K - 1) * PER_TAP + 1 + 3 * PER_OUTPUT):
                w = wo * S - (K // 2) * D + s * STEP
                inside = (inside_row & (w >= 0) & (w < W))[:, None] & (c < C)[None, :]
                at = ((n * H + h) * W + w)[:, None] * stride + c[None, :]
                value = rectified(x + at, inside, scale, shift, NORM, ACC)
                for t in tl.static_range(4):
                    if (
                        (s >= t * PER_OUTPUT)
                        & (s - t * PER_OUTPUT < K * PER_TAP)
                        & ((s - t * PER_OUTPUT) % PER_TAP == 0)
                    ):
                        grad = picked(t, u0, u1, u2, u3)
                        if (s - t * PER_OUTPUT) // PER_TAP == 0:
                            w0 += value * grad
                        if (s - t * PER_OUTPUT) // PER_TAP == 1:
                            w1 += value * grad
                        if (s - t * PER_OUTPUT) // PER_TAP == 2:
                            w2 += value * grad
                        if (s - t * PER_OUTPUT) // PER_TAP == 3:
                            w3 += value * grad
                        if (s - t * PER_OUTPUT) // PER_TAP == 4:
                            w4 += value * grad
        row = place + i * K * C + c
        tl.store(row, tl.sum(w0, 0), mask=c < C)
        tl.store(row + C, tl.sum(w1, 0), mask=c < C)
        tl.store(row + 2 * C, tl.sum(w2, 0), mask=c < C)
        if K == 5:
            tl.store(row + 3 * C, tl.sum(w3, 0), mask=c < C)
            tl.store(row + 4 * C, tl.sum(w4, 0), mask=c < C)


@triton.jit
def _first_tap_rows(
    x, stride, u, group, repeat, batch, c, scale, shift, place, code, H, W,
    C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, S: tl.constexpr, LAST: tl.constexpr, BP: tl.constexpr,
    BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    if not LAST:
        if code == SEP3:
            _tap_rows(
                x, stride, u, group, repeat, batch, c, scale, shift, place, H, W, C, HO, WO, S, 3, 1, False, BP, BC, ACC
            )
        else:
            _tap_rows(
                x, stride, u, group, repeat, batch, c, scale, shift, place, H, W, C, HO, WO, S, 5, 1, False, BP, BC, ACC
            )
    elif code == DIL3:
        _tap_rows(
            x, stride, u, group, repeat, batch, c, scale, shift, place, H, W, C, HO, WO, S, 3, 2, False, BP, BC, ACC
        )
    else:
        _tap_rows(
            x, stride, u, group, repeat, batch, c, scale, shift, place, H, W, C, HO, WO, S, 5, 2, False, BP, BC, ACC
        )


@triton.jit
def tap_weights_kernel(
    u, inputs, nodes, z1, stats1, rows, partial, batch, pixels, repeat, input_plane, node_stride,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, I: tl.constexpr,
    STRIDE: tl.constexpr, ROW_STRIDE: tl.constexpr, LAST: tl.constexpr, J: tl.constexpr, BP: tl.constexpr,
    BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Partials [group, branch, 25, C] of depthwise weights. Grid: groups x branches x blocks of channels."""
    group = tl.program_id(0)
    j = tl.program_id(1)
    code = column(rows, j, CODE)
    two_stages = (code == SEP3) | (code == SEP5)
    if (not two_stages) & (not (LAST & (code >= SEP3))):
        return
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    plane = tl.cast(pixels, tl.int64) * C
    own = u + j * plane
    place = partial + (tl.cast(group, tl.int64) * J + j) * (25 * C)
    scale = tl.zeros((BC,), ACC)
    shift = tl.zeros((BC,), ACC)
    if LAST & two_stages:
        x = z1 + j * plane
        scale, shift = scale_and_shift(stats1 + j * (2 * C), c, C, ACC)
        if code == SEP3:
            _tap_rows(
                x, C, own, group, repeat, batch, c, scale, shift, place, HO, WO,
                C, HO, WO, 1, 3, 1, True, BP, BC, ACC,
            )  # fmt: skip
        else:
            _tap_rows(
                x, C, own, group, repeat, batch, c, scale, shift, place, HO, WO,
                C, HO, WO, 1, 5, 1, True, BP, BC, ACC,
            )  # fmt: skip
    else:
        source = column(rows, j, SOURCE)
        x, stride = state_of(source, inputs, nodes, input_plane, node_stride, I, C, ROW_STRIDE)
        if (STRIDE == 1) | (source >= I):
            _first_tap_rows(
                x, stride, own, group, repeat, batch, c, scale, shift, place, code, HO, WO,
                C, HO, WO, 1, LAST, BP, BC, ACC,
            )  # fmt: skip
        else:
            _first_tap_rows(
                x, stride, own, group, repeat, batch, c, scale, shift, place, code, H, W,
                C, HO, WO, STRIDE, LAST, BP, BC, ACC,
            )  # fmt: skip
