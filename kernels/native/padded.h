// One sample of a map with a border of zeros, so that no loop over the taps of a convolution asks what lies inside.
#pragma once

#include <algorithm>
#include <type_traits>

#include "gemm.h"

namespace ISA {

struct Padded {
  float *data;    // The first value of the border.
  long row;       // Values of a row, border included.
  long channels;
  long border;    // Pixels.
  float *at(long h, long w) const { return data + (h + border) * row + (w + border) * channels; }
};

INLINE long padded_floats(long height, long width, long channels, long border) {
  return (height + 2 * border) * (width + 2 * border) * channels;
}

INLINE Padded padded(float *data, long height, long width, long channels, long border) {
  std::memset(data, 0, sizeof(float) * padded_floats(height, width, channels, border));
  return {data, (width + 2 * border) * channels, channels, border};
}

// The rows of a window, as pointers that the compiler cannot derive from each other: it would keep an address for every
// tap, in memory, and load more of those than values.
template <int ROWS> struct Rows {
  const float *at[ROWS];
  INLINE Rows(const float *x, long line) {
#pragma GCC unroll 5
    for (int i = 0; i < ROWS; i++) {
      at[i] = x + i * line;
      asm("" : "+r"(at[i]));
    }
  }
};

// out[w] = sum over taps of weights[tap] * x[w * stride + tap], for one row of windows. `x` is the first window's first
// tap; taps lie `apart` pixels from each other.
template <int N, int K>
INLINE void window_row(const float *x, long row, long channels, int apart, int stride, const float *weights,
                       float *out, long count) {
  Values<N> w[K * K];
#pragma GCC unroll 25
  for (int t = 0; t < K * K; t++) w[t] = load<N>(weights + t * channels);
  const long step = stride * channels, column = apart * channels, line = apart * row;
  const Rows<K> rows(x, line);
  for (long p = 0; p < count; p++) {
    Values<N> sum = load<N>(rows.at[0] + p * step) * w[0];
#pragma GCC unroll 5
    for (int i = 0; i < K; i++)
#pragma GCC unroll 5
      for (int j = 0; j < K; j++)
        if (i + j > 0) sum += load<N>(rows.at[i] + p * step + j * column) * w[i * K + j];
    store(out + p * channels, sum);
  }
}

// The transpose of that: x[w * stride + tap] += weights[tap] * g[w].
template <int N, int K>
INLINE void scatter_row(float *x, long row, long channels, int apart, int stride, const float *weights, const float *g,
                        long count) {
  const long step = stride * channels, column = apart * channels, line = apart * row;
  for (long p = 0; p < count; p++, x += step, g += channels) {
    const Values<N> grad = load<N>(g);
#pragma GCC unroll 5
    for (int i = 0; i < K; i++)
#pragma GCC unroll 5
      for (int j = 0; j < K; j++) {
        float *to = x + i * line + j * column;
        store(to, load<N>(to) + grad * load<N>(weights + (i * K + j) * channels));
      }
  }
}

// A sample and the gradient of its windows; rows of both may be longer than their maps.
struct Windows {
  const float *x, *g, *zeros;  // `zeros`: a row of them, for windows that reach over the map's ends.
  long x_row, g_row, height, width, channels;
  int side, apart, stride;
  long border() const { return side / 2 * long(apart); }
};

// sums[tap] += sum over windows w of x[w + tap] * g[w], for tap rows [first, first + ROWS) of a K x K kernel. Taps that
// lie outside of the map are left out.
template <int N, int K, int ROWS>
INLINE void tap_sums(const Windows &at, long c, int first, float *sums) {
  const long channels = at.channels, step = at.stride * channels, column = at.apart * channels, border = at.border();
  const long out_height = (at.height + at.stride - 1) / at.stride, out_width = (at.width + at.stride - 1) / at.stride;
  // Windows [inner, outer) lie inside the map's width.
  const long inner = std::min(out_width, (border + at.stride - 1) / at.stride);
  const long outer = std::max(inner, std::min(out_width, (at.width - 1 - border + at.stride) / at.stride));
  Values<N> a[ROWS * K];
#pragma GCC unroll 25
  for (int t = 0; t < ROWS * K; t++) a[t] = load<N>(sums + t * channels);
  for (long h = 0; h < out_height; h++) {
    const float *rows[ROWS], *grads = at.g + h * at.g_row + c;
    for (int i = 0; i < ROWS; i++) {
      const long from = h * at.stride + (first + i) * at.apart - border;
      rows[i] = (from < 0 || from >= at.height ? at.zeros : at.x + from * at.x_row) + c - border * channels;
    }
    const auto at_border = [&](long begin, long end) {
      for (long w = begin; w < end; w++) {
        const Values<N> grad = load<N>(grads + w * channels);
#pragma GCC unroll 5
        for (int j = 0; j < K; j++) {
          const long pixel = w * at.stride + j * at.apart - border;
          if (pixel < 0 || pixel >= at.width) continue;
#pragma GCC unroll 5
          for (int i = 0; i < ROWS; i++) a[i * K + j] += load<N>(rows[i] + w * step + j * column) * grad;
        }
      }
    };
    at_border(0, inner);
    for (long w = inner; w < outer; w++) {
      const Values<N> grad = load<N>(grads + w * channels);
#pragma GCC unroll 5
      for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 5
        for (int j = 0; j < K; j++) a[i * K + j] += load<N>(rows[i] + w * step + j * column) * grad;
    }
    at_border(outer, out_width);
  }
#pragma GCC unroll 25
  for (int t = 0; t < ROWS * K; t++) store(sums + t * channels, a[t]);
}

// All taps of one vector of channels, as many at once as registers hold, with two to spare.
template <int N, int K> INLINE void all_tap_sums(const Windows &at, long c, float *sums) {
  constexpr int rows = K * K + 2 <= REGISTERS ? K : (REGISTERS - 2) / K;
  constexpr int rest = K % rows;
  for (int i = 0; i + rows <= K; i += rows) tap_sums<N, K, rows>(at, c, i, sums + i * K * at.channels + c);
  if constexpr (rest > 0) tap_sums<N, K, rest>(at, c, K - rest, sums + (K - rest) * K * at.channels + c);
}

template <class Do> INLINE void pick(int side, Do run) {
  if (side == 3)
    run(std::integral_constant<int, 3>{});
  else
    run(std::integral_constant<int, 5>{});
}

// The same for all channels: sums [taps, C].
INLINE void add_tap_sums(const Windows &at, float *sums) {
  for_channels(at.channels, [&](auto lanes, long c) {
    pick(at.side, [&](auto side) { all_tap_sums<decltype(lanes)::lanes, decltype(side)::value>(at, c, sums); });
  });
}

}  // namespace ISA
