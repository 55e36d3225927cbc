// BatchNorm by batch statistics, and ReLU's gradient, on maps of `rows` rows of `channels` values.
#include "kernels.h"
#include "parts.h"

namespace ISA {
namespace {

// Rows that stay in the first cache while all their channels are done.
constexpr long STRIP_FLOATS = 4096;

// run(first row, rows) for strips of a part.
template <class Run> void for_strips(const Parts &parts, long part, long channels, Run run) {
  const long strip = std::max(1L, STRIP_FLOATS / channels), end = parts.begin(part + 1);
  for (long row = parts.begin(part); row < end; row += strip) run(row, std::min(strip, end - row));
}

}  // namespace

void batch_stats(const float *z, long rows, long channels, float *stats, double epsilon, int threads) {
  const Parts parts(rows);
  std::vector<double> partial(parts.count * 2 * channels);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long part = 0; part < parts.count; part++)
    for_strips(parts, part, channels, [&](long row, long count) {
      add_distances(z + row * channels, z + parts.begin(part) * channels, count, channels,
                    &partial[part * 2 * channels]);
    });
  finish_stats(partial, parts, z, 1, channels, epsilon, stats);
}

// Statistics of z, then out += gate * (z - mean) * rstd.
void accumulate(const float *z, long rows, long channels, double gate, float *out, long out_stride, float *stats,
                double epsilon, int threads) {
  batch_stats(z, rows, channels, stats, epsilon, threads);
  const Parts parts(rows);
  std::vector<float> scale(channels), shift(channels);
  affine_of(stats, channels, gate, scale.data(), shift.data());
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long part = 0; part < parts.count; part++)
    for_strips(parts, part, channels, [&](long row, long count) {
      add_affine(z + row * channels, scale.data(), shift.data(), count, channels, out + row * out_stride, out_stride);
    });
}

// Gradient of out = gate * xhat(z), written over z; returns the gate's.
double norm_backward(const float *dy, long dy_stride, float *z, long rows, long channels, double gate,
                     const float *stats, int threads) {
  const Parts parts(rows);
  std::vector<double> partial(parts.count * 2 * channels);
  Slopes slopes(channels);
  double gate_grad = 0;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (long part = 0; part < parts.count; part++)
      for_strips(parts, part, channels, [&](long row, long count) {
        add_products(dy + row * dy_stride, dy_stride, z + row * channels, stats, 1, count, channels,
                     &partial[part * 2 * channels]);
      });
#pragma omp single
    gate_grad = slopes.set(total(partial, parts.count, 2 * channels), stats + channels, channels, rows, gate);
#pragma omp for schedule(static)
    for (long part = 0; part < parts.count; part++)
      for_strips(parts, part, channels, [&](long row, long count) {
        z_grad(slopes, dy + row * dy_stride, dy_stride, z + row * channels, stats, count, channels, z + row * channels);
      });
  }
  return gate_grad;
}

// d += da where x > 0.
void add_where_positive(float *d, long d_stride, const float *da, const float *x, long x_stride, long rows,
                        long channels, int threads) {
  const Parts parts(rows);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long part = 0; part < parts.count; part++)
    for_strips(parts, part, channels, [&](long row, long count) {
      add_passed(da + row * channels, x + row * x_stride, x_stride, count, channels, d + row * d_stride, d_stride,
                 true);
    });
}

}  // namespace ISA
