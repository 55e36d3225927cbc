// One sample of a map with a border of zeros, so that no loop over the taps of a convolution asks what lies inside.
#pragma once

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

// out[w] = sum over taps of weights[tap] * x[w * stride + tap], for one row of windows. `x` is the first window's first
// tap; taps lie `apart` pixels from each other.
template <int N, int K>
INLINE void window_row(const float *x, long row, long channels, int apart, int stride, const float *weights,
                       float *out, long count) {
  Values<N> w[K * K];
#pragma GCC unroll 25
  for (int t = 0; t < K * K; t++) w[t] = load<N>(weights + t * channels);
  const long step = stride * channels, column = apart * channels, line = apart * row;
  for (long p = 0; p < count; p++, x += step, out += channels) {
    Values<N> sum = load<N>(x) * w[0];
#pragma GCC unroll 5
    for (int i = 0; i < K; i++)
#pragma GCC unroll 5
      for (int j = 0; j < K; j++)
        if (i + j > 0) sum += load<N>(x + i * line + j * column) * w[i * K + j];
    store(out, sum);
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

// sums[tap] += sum over windows of x[window + tap] * g[window], for tap rows [first, first + ROWS) of a K x K kernel.
template <int N, int K, int ROWS>
INLINE void tap_sums(const float *x, long row, long channels, int apart, int stride, const float *g, long g_row,
                     long height, long width, float *sums) {
  const long step = stride * channels, column = apart * channels, line = apart * row;
  Values<N> a[ROWS * K];
#pragma GCC unroll 25
  for (int t = 0; t < ROWS * K; t++) a[t] = load<N>(sums + t * channels);
  for (long h = 0; h < height; h++) {
    const float *from = x + h * stride * row, *grads = g + h * g_row;
    for (long w = 0; w < width; w++, from += step, grads += channels) {
      const Values<N> grad = load<N>(grads);
#pragma GCC unroll 5
      for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 5
        for (int j = 0; j < K; j++) a[i * K + j] += load<N>(from + i * line + j * column) * grad;
    }
  }
#pragma GCC unroll 25
  for (int t = 0; t < ROWS * K; t++) store(sums + t * channels, a[t]);
}

// All taps, as many at once as registers hold, with two to spare.
template <int N, int K>
INLINE void all_tap_sums(const float *x, long row, long channels, int apart, int stride, const float *g, long g_row,
                         long height, long width, float *sums) {
  constexpr int rows = K * K + 2 <= REGISTERS ? K : (REGISTERS - 2) / K;
  constexpr int rest = K % rows;
  for (int i = 0; i + rows <= K; i += rows)
    tap_sums<N, K, rows>(x + i * apart * row, row, channels, apart, stride, g, g_row, height, width,
                         sums + i * K * channels);
  if constexpr (rest > 0)
    tap_sums<N, K, rest>(x + (K - rest) * apart * row, row, channels, apart, stride, g, g_row, height, width,
                         sums + (K - rest) * K * channels);
}

template <class Do> INLINE void pick(int side, Do run) {
  if (side == 3)
    run(std::integral_constant<int, 3>{});
  else
    run(std::integral_constant<int, 5>{});
}

// The same for all channels: sums [taps, C] over a sample, for windows of side 3 or 5 that start at the border.
INLINE void add_tap_sums(const Padded &a, int side, int apart, int stride, const float *g, long g_row, long height,
                         long width, float *sums) {
  const float *from = a.at(-a.border, -a.border);
  for_channels(a.channels, [&](auto lanes, long c) {
    pick(side, [&](auto k) {
      all_tap_sums<decltype(lanes)::lanes, decltype(k)::value>(from + c, a.row, a.channels, apart, stride, g + c, g_row,
                                                               height, width, sums + c);
    });
  });
}

}  // namespace ISA
