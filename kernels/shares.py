"""What each operation passes back to the state that it read: its share of four pixels' gradients.

Shape suffixes: as in `branches`. All functions take the sums so far and return them: [BP, BC] for each of four pixels
next to each other; n, h, w: [BP], sample, row and column, in outputs. Where the edge has stride S = 2, the pixels of a
program are S * (h, w) + their phase: it visits the taps that meet such pixels and no others; within a phase all is as
at stride 1, with every second tap.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .taps import added, four_zeros, picked, product, widened

# Bits of the nine pixels of a window in a 5 x 5 neighbourhood, the window in the upper left corner.
WINDOW = tl.constexpr(0b111_00111_00111)


@triton.jit
def pixels_of(place, alive, c, C: tl.constexpr):
    """Values of some pixels and channels, 0 where there are none."""
    return tl.load(place, mask=alive[:, None] & (c < C)[None, :], other=0.0)


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
def _tap_weight(
    weights, tap, q: tl.constexpr, step_q, count_q, c, inside_c, C: tl.constexpr, S: tl.constexpr, ACC: tl.constexpr
):
    """[1, BC] weight of the q-th met tap of a row of taps; 0 where a phase has no such tap."""
    if S == 2:
        inside_c = inside_c & (q < count_q)
    return tl.load(weights + (tap + q * step_q) * C + c, mask=inside_c, other=0.0).to(ACC)[None, :]


@triton.jit
def taps_share(
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
            value = widened(tl.load(u + (row + x)[:, None] * C + c[None, :], mask=inside, other=0.0), ACC)
            for k in tl.static_range(4):
                # Tap number q of the axis lies here for pixel k where s = k + SPACING * (MOST - 1 - q).
                if (s <= k + SPACING * (MOST - 1)) & (s >= k) & ((s - k) % SPACING == 0):
                    weight = _tap_weight(
                        weights, tap, MOST - 1 - (s - k) // SPACING, step_q, count_q, c, inside_c, C, S, ACC
                    )
                    a0, a1, a2, a3 = added(value * weight, k, a0, a1, a2, a3)
    return a0, a1, a2, a3


@triton.jit
def _inside_count(at, side: tl.constexpr):
    """Pixels at - 1, at, at + 1 that lie inside the map."""
    return tl.minimum(at + 1, side - 1) - tl.maximum(at - 1, 0) + 1


@triton.jit
def mean_share(
    a0, a1, a2, a3, u, n, h, w, alive, c, row_phase, column_phase,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, S: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """An average pool's share: each output's gradient goes to the pixels under it in equal parts."""
    _, _, count, shift = _met_taps(row_phase, 3, 1, S)
    _, _, count_q, shift_q = _met_taps(column_phase, 3, 1, S)
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
                if (s >= k) & (s < k + MOST):
                    if S == 2:
                        met = k + MOST - 1 - s < count_q
                        a0, a1, a2, a3 = added(tl.where(met, value, 0.0), k, a0, a1, a2, a3)
                    else:
                        a0, a1, a2, a3 = added(value, k, a0, a1, a2, a3)
    return a0, a1, a2, a3


@triton.jit
def _not_beaten(x, value, outside, place):
    """Bit `place` of a 5 x 5 neighbourhood: x would win a window that contains that pixel, ties to the first."""
    lower = tl.where(place < 12, value < x, value <= x)
    return (lower | outside).to(tl.int32) << place


@triton.jit
def _wins(bits, up, q: tl.constexpr, step_q, count_q):
    """Whether a pixel is the first maximum of the q-th window of a row of windows."""
    # A phase with one window only has no second one: there the shift would be negative.
    window = WINDOW << tl.maximum(up - q * step_q, 0)
    return ((bits & window) == window) & (q < count_q)


@triton.jit
def maximum_share(
    a0, a1, a2, a3, u, x, stride, x0, x1, x2, x3, n, h, w, alive, c, row_phase, column_phase,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, S: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A max pool's share: a pixel has the gradient of the windows of which it is the first maximum."""
    b0, b1, b2, b3 = four_zeros(BP, BC, tl.int32)
    inside_c = (c < C)[None, :]
    for r in tl.range(5, disable_licm=True):
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
                if (s >= k) & (s < k + MOST):
                    won = _wins(picked(k, b0, b1, b2, b3), up, k + MOST - 1 - s, step_q, count_q)
                    a0, a1, a2, a3 = added(tl.where(won, value, 0.0), k, a0, a1, a2, a3)
    return a0, a1, a2, a3


@triton.jit
def dense_share(
    a0, a1, a2, a3, u, weights, n, h, w, alive, c,
    C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A dense 3x3 convolution's share; weights: [9, in, out]."""
    for tap in tl.range(9, disable_licm=True):
        y = h + 1 - tap // 3
        x = w + 1 - tap % 3
        inside_row = alive & (y >= 0) & (y < HO)
        for block in range(0, C, BK):
            co = block + tl.arange(0, BK)
            there = (co < C)[:, None] & (c < C)[None, :]
            weight = tl.load(weights + tap * (C * C) + c[None, :] * C + co[:, None], mask=there, other=0.0)
            own = u + ((n * HO + y) * WO + x)[:, None] * C + co[None, :]
            a0 = product(pixels_of(own, inside_row & (x >= 0) & (x < WO), co, C), weight, a0, DOT)
            a1 = product(pixels_of(own + C, inside_row & (x >= -1) & (x < WO - 1), co, C), weight, a1, DOT)
            a2 = product(pixels_of(own + 2 * C, inside_row & (x >= -2) & (x < WO - 2), co, C), weight, a2, DOT)
            a3 = product(pixels_of(own + 3 * C, inside_row & (x >= -3) & (x < WO - 3), co, C), weight, a3, DOT)
    return a0, a1, a2, a3


@triton.jit
def reduction_share(
    a0, a1, a2, a3, u, weights, n, h, w, alive, c, phase,
    C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """FactorizedReduce's share: the first half of its outputs reads the even pixels, the second the odd ones."""
    HALF: tl.constexpr = C // 2
    for block in tl.range(0, HALF, BK, disable_licm=True):
        k = block + tl.arange(0, BK)
        co = tl.where(k < HALF, phase * HALF + k, C)
        there = (co < C)[:, None] & (c < C)[None, :]
        weight = tl.load(weights + co[:, None] * C + c[None, :], mask=there, other=0.0)
        own = u + ((n * HO + h) * WO + w)[:, None] * C + co[None, :]
        a0 = product(pixels_of(own, alive, co, C), weight, a0, DOT)
        a1 = product(pixels_of(own + C, alive & (w + 1 < WO), co, C), weight, a1, DOT)
        a2 = product(pixels_of(own + 2 * C, alive & (w + 2 < WO), co, C), weight, a2, DOT)
        a3 = product(pixels_of(own + 3 * C, alive & (w + 3 < WO), co, C), weight, a3, DOT)
    return a0, a1, a2, a3
