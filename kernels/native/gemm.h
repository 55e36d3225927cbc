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
  constexpr int most = (REGISTERS - VECTORS - 2) / VECTORS;
  return VECTORS == 1 ? (REGISTERS == 32 ? 12 : 10) : most > 8 ? 8 : most;
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

// sums[r, v] = sum over k of a[r, k] * b[k, v], or added to what is there; rows and steps of a lie a_row and a_step apart.
template <int N, int V, int R, bool ADD>
INLINE void tile(const float *a, long a_row, long a_step, const float *b, long b_row, long depth, float *sums,
                 long sums_row) {
  Values<N> total[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) total[r][v] = ADD ? load<N>(sums + r * sums_row + v * N) : Values<N>{};
  for (long k = 0; k < depth; k++) {
    Values<N> row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) row[v] = load<N>(b + k * b_row + v * N);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const float value = a[r * a_row + k * a_step];
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) total[r][v] += row[v] * value;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) store(sums + r * sums_row + v * N, total[r][v]);
}

// All rows of a tile's columns, R at a time.
template <int N, int V, int R, bool ADD>
INLINE void tiles(const float *a, long a_row, long a_step, long rows, const float *b, long b_row, long depth,
                  float *sums, long sums_row) {
  long r = 0;
  for (; r + R <= rows; r += R)
    tile<N, V, R, ADD>(a + r * a_row, a_row, a_step, b, b_row, depth, sums + r * sums_row, sums_row);
  if constexpr (R > 4)
    for (; r + 4 <= rows; r += 4)
      tile<N, V, 4, ADD>(a + r * a_row, a_row, a_step, b, b_row, depth, sums + r * sums_row, sums_row);
  for (; r < rows; r++)
    tile<N, V, 1, ADD>(a + r * a_row, a_row, a_step, b, b_row, depth, sums + r * sums_row, sums_row);
}

// out[rows, columns] = a[rows, depth] * b[depth, columns].
INLINE void product(const float *a, long a_row, long rows, long depth, const float *b, long columns, float *out,
                    long out_row) {
  for_tiles(columns, [&](auto width, auto vectors, long n) {
    constexpr int N = decltype(width)::lanes, V = decltype(vectors)::count;
    tiles<N, V, tile_rows<V>(), false>(a, a_row, 1, rows, b + n, columns, depth, out + n, out_row);
  });
}

// sums[m, n] += sum over rows p of a[p, m] * d[p, n].
INLINE void add_outer(const float *a, long a_row, long m, const float *d, long d_row, long n, long rows, float *sums) {
  for_tiles(n, [&](auto width, auto vectors, long c) {
    constexpr int N = decltype(width)::lanes, V = decltype(vectors)::count;
    constexpr int R = V == 1 ? 8 : tile_rows<V>() > 6 ? 6 : tile_rows<V>();
    tiles<N, V, R, true>(a, 1, a_row, m, d + c, d_row, rows, sums + c, n);
  });
}

}  // namespace ISA
