// Weight gradient of depthwise convolutions on NHWC maps: dw[tap, c] = sum over pixels p of x[p + tap, c] * g[p, c].
//
// A row of pixels at a time and a vector of channels at a time, with the sums of all taps in registers.
#include <algorithm>
#include <vector>

#include "kernels.h"
#include "lanes.h"

namespace ISA {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif

struct Shape {
  long height, width, channels, dilation, stride, radius;
  long out_height() const { return (height + stride - 1) / stride; }
  long out_width() const { return (width + stride - 1) / stride; }
};

// Samples of this size or more do not stay in the second cache between the passes over their channels unless whole rows
// are asked for: 25 % of the time at C=64, 32 x 32. Smaller ones only lose by it.
constexpr long LARGE_SAMPLE_FLOATS = 1 << 16;

INLINE void fetch_row(const float *row, long floats) {
  for (long i = 0; i < floats; i += 16) __builtin_prefetch(row + i, 0, 2);
}

// Sums of tap rows [first, first + ROWS) of a K x K kernel over one sample. Rows outside of the map read `zeros`;
// with `fetch` the next row is asked for while one is summed.
template <int N, int K, int ROWS>
void tap_rows(const float *x, const float *g, const float *zeros, const Shape &shape, int first, bool fetch,
              float *sums) {
  const long step = shape.stride * shape.channels, apart = shape.dilation * shape.channels;
  const long width = shape.width, out_width = shape.out_width(), row = width * shape.channels;
  // Windows [inner, outer) lie inside the map's width.
  const long inner = std::min(out_width, (shape.radius + shape.stride - 1) / shape.stride);
  const long outer = std::max(inner, (width - 1 - shape.radius + shape.stride) / shape.stride);
  Values<N> a[ROWS * K] = {};
  for (long h = 0; h < shape.out_height(); h++) {
    const float *rows[ROWS];
    for (int i = 0; i < ROWS; i++) {
      const long from = h * shape.stride + (first + i) * shape.dilation - shape.radius;
      rows[i] = (from < 0 || from >= shape.height ? zeros : x + from * row) - shape.radius * shape.channels;
    }
    const float *grads = g + h * out_width * shape.channels;
    if (fetch) {
      const long next = h * shape.stride + (K - 1) * shape.dilation - shape.radius + 1;
      const long end = std::min(shape.height, next + shape.stride);
      for (long r = std::max(0L, next); r < end; r++) fetch_row(x + r * row, row);
      if (h + 1 < shape.out_height()) fetch_row(grads + out_width * shape.channels, out_width * shape.channels);
    }
    const auto at_border = [&](long begin, long end) {
      for (long w = begin; w < end; w++) {
        const Values<N> grad = load<N>(grads + w * shape.channels);
#pragma GCC unroll 5
        for (int j = 0; j < K; j++) {
          const long column = w * shape.stride + j * shape.dilation - shape.radius;
          if (column < 0 || column >= width) continue;
#pragma GCC unroll 5
          for (int i = 0; i < ROWS; i++) a[i * K + j] += load<N>(rows[i] + w * step + j * apart) * grad;
        }
      }
    };
    at_border(0, inner);
    for (long w = inner; w < outer; w++) {
      const Values<N> grad = load<N>(grads + w * shape.channels);
#pragma GCC unroll 5
      for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 5
        for (int j = 0; j < K; j++) a[i * K + j] += load<N>(rows[i] + w * step + j * apart) * grad;
    }
    at_border(outer, out_width);
  }
  for (int t = 0; t < ROWS * K; t++) store(sums + t * shape.channels, a[t]);
}

template <int N, int K>
void all_taps(const float *x, const float *g, const float *zeros, const Shape &shape, bool fetch, float *sums) {
  // As many sums at once as registers hold, with two to spare.
  constexpr int rows = K * K + 2 <= REGISTERS ? K : (REGISTERS - 2) / K;
  constexpr int rest = K % rows;
  for (int i = 0; i + rows <= K; i += rows)
    tap_rows<N, K, rows>(x, g, zeros, shape, i, fetch && i == 0, sums + i * K * shape.channels);
  if constexpr (rest > 0)
    tap_rows<N, K, rest>(x, g, zeros, shape, K - rest, false, sums + (K - rest) * K * shape.channels);
}

}  // namespace

void depthwise_weight_grad(const float *x, const float *g, float *dw, long batch, long height, long width,
                           long channels, int side, int dilation, int stride, int threads) {
  const Shape shape{height, width, channels, dilation, stride, side / 2 * long(dilation)};
  const long size = side * side * channels, out_size = shape.out_height() * shape.out_width() * channels;
  const bool large = height * width * channels >= LARGE_SAMPLE_FLOATS;
  std::vector<float> partial(batch * size);
#pragma omp parallel num_threads(threads)
  {
    const Scratch zeros(width * channels);
#pragma omp for schedule(static)
    for (long n = 0; n < batch; n++)
      for_channels(channels, [&](auto lanes, long c) {
        constexpr int N = decltype(lanes)::lanes;
        const auto taps = side == 3 ? all_taps<N, 3> : all_taps<N, 5>;
        taps(x + n * height * width * channels + c, g + n * out_size + c, zeros.get() + c, shape, c == 0 && large,
             &partial[n * size + c]);
      });
  }
  for (long i = 0; i < size; i++) {
    double total = 0;
    for (long n = 0; n < batch; n++) total += partial[n * size + i];
    dw[i] = static_cast<float>(total);
  }
}

}  // namespace ISA
