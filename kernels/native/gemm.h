// Products of small matrices with the sums in registers: rows of pixels times weights of at most some hundred channels.
#pragma once

#include "lanes.h"

namespace ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif

// Rows of a tile of VECTORS columns: enough sums to hide an addition's latency, and no more than registers hold.
template <int VECTORS> constexpr int tile_rows() {
  return VECTORS == 1 ? (REGISTERS == 32 ? 12 : 10) : (REGISTERS - VECTORS - 2) / VECTORS > 8 ? 8 : (REGISTERS - VECTORS - 2) / VECTORS;
}
constexpr int MAX_VECTORS = REGISTERS == 32 ? 4 : 2;

// body(Width<N>, vectors, n) for all columns, in the widest tiles that fit; `vectors` is a compile-time number.
template <int V> struct Vectors {
  static constexpr int count = V;
};
template <class Body> INLINE void for_tiles(long columns, Body body) {
  long n = 0;
  if constexpr (MAX_VECTORS == 4) {
    for (; n + 4 * LANES <= columns; n += 4 * LANES) body(Width<LANES>{}, Vectors<4>{}, n);
    if (n + 3 * LANES <= columns) body(Width<LANES>{}, Vectors<3>{}, n), n += 3 * LANES;
  }
  for (; n + 2 * LANES <= columns; n += 2 * LANES) body(Width<LANES>{}, Vectors<2>{}, n);
  for_channels(columns - n, [&](auto width, long c) { body(width, Vectors<1>{}, n + c); });
}

template <int N, int V, int R>
INLINE void product_tile(const float *a, long a_row, long depth, const float *b, long b_row, float *out, long out_row) {
  Values<N> sums[R][V] = {};
  for (long k = 0; k < depth; k++) {
    Values<N> weights[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) weights[v] = load<N>(b + k * b_row + v * N);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const float value = a[r * a_row + k];
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sums[r][v] += weights[v] * value;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) store(out + r * out_row + v * N, sums[r][v]);
}

// out[rows, columns] = a[rows, depth] * b[depth, columns].
INLINE void product(const float *a, long a_row, long rows, long depth, const float *b, long columns, float *out,
                    long out_row) {
  for_tiles(columns, [&](auto width, auto vectors, long n) {
    constexpr int N = decltype(width)::lanes, V = decltype(vectors)::count, R = tile_rows<V>();
    long p = 0;
    for (; p + R <= rows; p += R)
      product_tile<N, V, R>(a + p * a_row, a_row, depth, b + n, columns, out + p * out_row + n, out_row);
    if constexpr (R > 4)
      for (; p + 4 <= rows; p += 4)
        product_tile<N, V, 4>(a + p * a_row, a_row, depth, b + n, columns, out + p * out_row + n, out_row);
    for (; p < rows; p++)
      product_tile<N, V, 1>(a + p * a_row, a_row, depth, b + n, columns, out + p * out_row + n, out_row);
  });
}

template <int N, int V, int R>
INLINE void outer_tile(const float *a, long a_row, const float *d, long d_row, long rows, float *sums, long sums_row) {
  Values<N> total[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) total[r][v] = load<N>(sums + r * sums_row + v * N);
  for (long p = 0; p < rows; p++) {
    Values<N> row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) row[v] = load<N>(d + p * d_row + v * N);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const float value = a[p * a_row + r];
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) total[r][v] += row[v] * value;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) store(sums + r * sums_row + v * N, total[r][v]);
}

// sums[m, n] += sum over rows p of a[p, m] * d[p, n].
INLINE void add_outer(const float *a, long a_row, long m, const float *d, long d_row, long n, long rows, float *sums) {
  for_tiles(n, [&](auto width, auto vectors, long c) {
    constexpr int N = decltype(width)::lanes, V = decltype(vectors)::count;
    constexpr int R = V == 1 ? 8 : tile_rows<V>() > 6 ? 6 : tile_rows<V>();
    long i = 0;
    for (; i + R <= m; i += R) outer_tile<N, V, R>(a + i, a_row, d + c, d_row, rows, sums + i * n + c, n);
    if constexpr (R > 4)
      for (; i + 4 <= m; i += 4) outer_tile<N, V, 4>(a + i, a_row, d + c, d_row, rows, sums + i * n + c, n);
    for (; i < m; i++) outer_tile<N, V, 1>(a + i, a_row, d + c, d_row, rows, sums + i * n + c, n);
  });
}

}  // namespace ISA
