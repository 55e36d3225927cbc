// The CPU's kernels on NHWC fp32 maps, for one instruction set; compiled once for each (see CMakeLists.txt).
//
// Names: B samples, H W sides, C channels, P = B * H * W rows of C values, `stride` the distance of two rows of a
// map that is a slice of a wider one. Sums run over fixed blocks in a fixed order, so that a result does not depend
// on the number of threads. A loop over channels takes whole vectors first and single values for the rest.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#ifndef ISA
#error "ISA names the namespace, LANES the floats of a vector"
#endif

namespace ISA {
namespace {

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int Mask __attribute__((vector_size(LANES * 4)));

template <class V> inline V load(const float *p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <class V> inline void store(float *p, V v) { std::memcpy(p, &v, sizeof(V)); }
template <class V> inline V zero() { return V{} * 0.0f; }

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }
inline float larger(float a, float b) { return a > b ? a : b; }
inline Vector positive(Vector x, Vector then) { return x > 0.0f ? then : then * 0.0f; }
inline float positive(float x, float then) { return x > 0.0f ? then : 0.0f; }

constexpr long BLOCK_ROWS = 512;  // Of one partial sum.

long blocks_of(long rows) { return (rows + BLOCK_ROWS - 1) / BLOCK_ROWS; }

// Calls body<V>(c, std::integral_constant) for vectors of channels, then for the channels left.
#define FOR_CHANNELS(C, BODY)                    \
  do {                                           \
    long c = 0;                                  \
    for (; c + LANES <= (C); c += LANES) BODY(Vector, c); \
    for (; c < (C); c++) BODY(float, c);         \
  } while (0)

// Sums of two values for each channel over the rows [first, last), written to sums[0..C) and sums[C..2C).
template <class V, class F> inline void sum_rows(long first, long last, long c, long channels, float *sums, F value) {
  V a = V{}, b = V{};
  for (long p = first; p < last; p++) value(p, a, b);
  store<V>(sums + c, a);
  store<V>(sums + channels + c, b);
}

// Adds the blocks' partial sums in their order.
void add_blocks(const std::vector<float> &partial, long blocks, long channels, std::vector<double> &total) {
  total.assign(2 * channels, 0.0);
  for (long b = 0; b < blocks; b++)
    for (long i = 0; i < 2 * channels; i++) total[i] += partial[b * 2 * channels + i];
}

template <class V> void fill_tap_row(const float *row, const float *g, long width, long step, long dilation, long channels,
                                     int taps, V *sums) {
  for (long p = 0; p < width; p++) {
    const V grad = load<V>(g + p * channels);
    const float *x = row + p * step * channels;
    for (int q = 0; q < taps; q++) sums[q] += load<V>(x + q * dilation * channels) * grad;
  }
}

template <class V, int K> void tap_row(const float *padded, const float *g, long height, long out_height, long out_width,
                                       long padded_width, long channels, long offset, long dilation, long step, float *out) {
  V sums[K];
  for (int q = 0; q < K; q++) sums[q] = V{};
  for (long h = 0; h < out_height; h++) {
    const long from = h * step + offset;
    if (from < 0 || from >= height) continue;
    fill_tap_row<V>(padded + from * padded_width * channels, g + h * out_width * channels, out_width, step, dilation,
                    channels, K, sums);
  }
  for (int q = 0; q < K; q++) store<V>(out + q * channels, sums[q]);
}

template <int K> void weight_grad_of_sample(const float *x, const float *g, float *out, float *padded, long height,
                                            long width, long channels, long dilation, long step) {
  const long radius = K / 2 * dilation, padded_width = width + 2 * radius;
  const long out_height = (height + step - 1) / step, out_width = (width + step - 1) / step;
  for (long h = 0; h < height; h++) {
    float *row = padded + h * padded_width * channels;
    std::memset(row, 0, sizeof(float) * radius * channels);
    std::memcpy(row + radius * channels, x + h * width * channels, sizeof(float) * width * channels);
    std::memset(row + (radius + width) * channels, 0, sizeof(float) * radius * channels);
  }
  for (int i = 0; i < K; i++) {
    const long offset = i * dilation - radius;
    float *taps = out + i * K * channels;
#define TAP_ROW(V, c) tap_row<V, K>(padded + c, g + c, height, out_height, out_width, padded_width, channels, offset, dilation, step, taps + c)
    FOR_CHANNELS(channels, TAP_ROW);
#undef TAP_ROW
  }
}

}  // namespace

void depthwise_weight_grad(const float *x, const float *g, float *dw, long batch, long height, long width, long channels,
                           int side, int dilation, int stride, int threads) {
  const long size = side * side * channels;
  const long padded_width = width + side / 2 * dilation * 2;
  const long out_pixels = (height + stride - 1) / stride * ((width + stride - 1) / stride);
  std::vector<float> partial(batch * size);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> padded(height * padded_width * channels);
#pragma omp for schedule(static)
    for (long n = 0; n < batch; n++) {
      const float *own_x = x + n * height * width * channels, *own_g = g + n * out_pixels * channels;
      float *out = &partial[n * size];
      if (side == 3)
        weight_grad_of_sample<3>(own_x, own_g, out, padded.data(), height, width, channels, dilation, stride);
      else
        weight_grad_of_sample<5>(own_x, own_g, out, padded.data(), height, width, channels, dilation, stride);
    }
  }
  for (long i = 0; i < size; i++) {
    double total = 0;
    for (long n = 0; n < batch; n++) total += partial[n * size + i];
    dw[i] = static_cast<float>(total);
  }
}

void batch_stats(const float *z, long rows, long channels, float *mean, float *rstd, double epsilon, int threads) {
  const long blocks = blocks_of(rows);
  std::vector<float> partial(blocks * 2 * channels);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long b = 0; b < blocks; b++) {
    const long first = b * BLOCK_ROWS, last = std::min(rows, first + BLOCK_ROWS);
    float *sums = &partial[b * 2 * channels];
    // Distances from the first row: its channels are near the mean, which keeps the squares small.
#define STATS(V, c)                                                                  \
  do {                                                                               \
    const V shift = load<V>(z + c);                                                  \
    sum_rows<V>(first, last, c, channels, sums, [&](long p, V &a, V &s) {            \
      const V x = load<V>(z + p * channels + c) - shift;                             \
      a += x;                                                                        \
      s += x * x;                                                                    \
    });                                                                              \
  } while (0)
    FOR_CHANNELS(channels, STATS);
#undef STATS
  }
  std::vector<double> total;
  add_blocks(partial, blocks, channels, total);
  for (long c = 0; c < channels; c++) {
    const double shifted = total[c] / rows;
    const double variance = std::max(0.0, total[channels + c] / rows - shifted * shifted);
    mean[c] = static_cast<float>(shifted + z[c]);
    rstd[c] = static_cast<float>(1 / std::sqrt(variance + epsilon));
  }
}

void scale_add(const float *z, long rows, long channels, const float *scale, const float *shift, float *out, long stride,
               int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long p = 0; p < rows; p++) {
#define SCALE_ADD(V, c) \
  store<V>(out + p * stride + c, load<V>(out + p * stride + c) + (load<V>(z + p * channels + c) * load<V>(scale + c) + load<V>(shift + c)))
    FOR_CHANNELS(channels, SCALE_ADD);
#undef SCALE_ADD
  }
}

void scale_relu(const float *z, long rows, long channels, const float *scale, const float *shift, float *out, int relu,
                int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long p = 0; p < rows; p++) {
#define SCALE_RELU(V, c)                                                                    \
  do {                                                                                      \
    const V y = load<V>(z + p * channels + c) * load<V>(scale + c) + load<V>(shift + c);    \
    store<V>(out + p * channels + c, relu ? larger(y, zero<V>()) : y);                      \
  } while (0)
    FOR_CHANNELS(channels, SCALE_RELU);
#undef SCALE_RELU
  }
}

double norm_backward(const float *dy, long dy_stride, const float *z, long rows, long channels, float gate,
                     const float *mean, const float *rstd, float *dz, int behind_relu, int threads) {
  const long blocks = blocks_of(rows);
  std::vector<float> partial(blocks * 2 * channels);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long b = 0; b < blocks; b++) {
    const long first = b * BLOCK_ROWS, last = std::min(rows, first + BLOCK_ROWS);
    float *sums = &partial[b * 2 * channels];
#define SUMS(V, c)                                                        \
  do {                                                                    \
    const V m = load<V>(mean + c);                                        \
    sum_rows<V>(first, last, c, channels, sums, [&](long p, V &a, V &s) { \
      const V x = load<V>(z + p * channels + c) - m;                      \
      V g = load<V>(dy + p * dy_stride + c);                              \
      if (behind_relu) g = positive(x, g);                                \
      a += g;                                                             \
      s += x * g;                                                         \
    });                                                                   \
  } while (0)
    FOR_CHANNELS(channels, SUMS);
#undef SUMS
  }
  std::vector<double> total;
  add_blocks(partial, blocks, channels, total);
  std::vector<float> of_dy(channels), of_z(channels), constant(channels);
  double gate_grad = 0;
  for (long c = 0; c < channels; c++) {
    const double r = rstd[c], s2 = total[channels + c] * r;
    gate_grad += s2;
    of_dy[c] = static_cast<float>(gate * r);
    of_z[c] = static_cast<float>(-gate * r * r * s2 / rows);
    constant[c] = static_cast<float>(-gate * r * total[c] / rows);
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long p = 0; p < rows; p++) {
#define APPLY(V, c)                                                                                        \
  do {                                                                                                     \
    const V x = load<V>(z + p * channels + c) - load<V>(mean + c);                                         \
    V g = load<V>(dy + p * dy_stride + c);                                                                 \
    if (behind_relu) g = positive(x, g);                                                                   \
    store<V>(dz + p * channels + c, g * load<V>(&of_dy[c]) + (x * load<V>(&of_z[c]) + load<V>(&constant[c]))); \
  } while (0)
    FOR_CHANNELS(channels, APPLY);
#undef APPLY
  }
  return gate_grad;
}

void add_where_positive(float *d, long d_stride, const float *da, const float *x, long x_stride, long rows, long channels,
                        int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long p = 0; p < rows; p++) {
#define ADD(V, c) \
  store<V>(d + p * d_stride + c, load<V>(d + p * d_stride + c) + positive(load<V>(x + p * x_stride + c), load<V>(da + p * channels + c)))
    FOR_CHANNELS(channels, ADD);
#undef ADD
  }
}

void max_pool(const float *x, long x_stride, float *y, long batch, long height, long width, long channels, int stride,
              int threads) {
  const long out_height = (height + stride - 1) / stride, out_width = (width + stride - 1) / stride;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long row = 0; row < batch * out_height; row++) {
    const long n = row / out_height, h = row % out_height * stride;
    for (long p = 0; p < out_width; p++) {
      const long w = p * stride;
      const long top = std::max(0L, h - 1), bottom = std::min(height - 1, h + 1);
      const long left = std::max(0L, w - 1), right = std::min(width - 1, w + 1);
      float *out = y + (row * out_width + p) * channels;
#define POOL(V, c)                                                                                         \
  do {                                                                                                     \
    V best = load<V>(x + ((n * height + top) * width + left) * x_stride + c);                              \
    for (long i = top; i <= bottom; i++)                                                                   \
      for (long j = left; j <= right; j++)                                                                 \
        best = larger(load<V>(x + ((n * height + i) * width + j) * x_stride + c), best);                   \
    store<V>(out + c, best);                                                                               \
  } while (0)
      FOR_CHANNELS(channels, POOL);
#undef POOL
    }
  }
}

namespace {

// Gives a gradient to the first pixel of a window, in row-major order, that holds the window's maximum.
template <class V> inline void give_to_first(const float *x, long x_stride, const float *g, float *d, long d_stride,
                                             long width, long top, long bottom, long left, long right) {
  V best = load<V>(x + (top * width + left) * x_stride);
  for (long i = top; i <= bottom; i++)
    for (long j = left; j <= right; j++) best = larger(load<V>(x + (i * width + j) * x_stride), best);
  V grad = load<V>(g);
  for (long i = top; i <= bottom; i++)
    for (long j = left; j <= right; j++) {
      const long pixel = i * width + j;
      const V value = load<V>(x + pixel * x_stride);
      float *target = d + pixel * d_stride;
      store<V>(target, load<V>(target) + (value == best ? grad : grad * 0.0f));
      grad = value == best ? grad * 0.0f : grad;
    }
}

}  // namespace

void max_pool_backward(const float *x, long x_stride, const float *g, float *d, long d_stride, long batch, long height,
                       long width, long channels, int stride, int threads) {
  const long out_height = (height + stride - 1) / stride, out_width = (width + stride - 1) / stride;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long n = 0; n < batch; n++) {
    const float *own_x = x + n * height * width * x_stride;
    float *own_d = d + n * height * width * d_stride;
    for (long q = 0; q < out_height; q++)
      for (long p = 0; p < out_width; p++) {
        const long h = q * stride, w = p * stride;
        const long top = std::max(0L, h - 1), bottom = std::min(height - 1, h + 1);
        const long left = std::max(0L, w - 1), right = std::min(width - 1, w + 1);
        const float *own_g = g + ((n * out_height + q) * out_width + p) * channels;
#define GIVE(V, c) give_to_first<V>(own_x + c, x_stride, own_g + c, own_d + c, d_stride, width, top, bottom, left, right)
        FOR_CHANNELS(channels, GIVE);
#undef GIVE
      }
  }
}

}  // namespace ISA
