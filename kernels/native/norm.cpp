// BatchNorm by batch statistics, and ReLU's gradient, on maps of `rows` rows of `channels` values.
//
// Sums run over fixed blocks of rows, which are added in their order: a result does not depend on the threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"
#include "lanes.h"

namespace ISA {
namespace {

constexpr long BLOCK_FLOATS = 8192;  // Of a partial sum: small enough for fp32, large enough to be few.
constexpr long STRIP_FLOATS = 1024;
constexpr int CHAINS = 4;  // Sums side by side, so that one addition does not wait for the one before it.

// Two sums for each channel, [2, C]. `at(width, c)` makes the function (row, first sum, second sum) that adds to both.
template <class At> std::vector<double> sum_rows(long rows, long channels, int threads, At at) {
  const long block_rows = std::max(1L, BLOCK_FLOATS / channels), blocks = (rows + block_rows - 1) / block_rows;
  std::vector<float> partial(blocks * 2 * channels);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long block = 0; block < blocks; block++) {
    float *sums = &partial[block * 2 * channels];
    const long first = block * block_rows, last = std::min(rows, first + block_rows);
    for_channels(channels, [&](auto width, long c) {
      constexpr int N = decltype(width)::lanes;
      const auto add = at(width, c);
      Values<N> a[CHAINS] = {}, b[CHAINS] = {};
      long p = first;
      for (; p + CHAINS <= last; p += CHAINS)
#pragma GCC unroll 4
        for (int k = 0; k < CHAINS; k++) add(p + k, a[k], b[k]);
      for (; p < last; p++) add(p, a[0], b[0]);
      store(sums + c, (a[0] + a[1]) + (a[2] + a[3]));
      store(sums + channels + c, (b[0] + b[1]) + (b[2] + b[3]));
    });
  }
  std::vector<double> total(2 * channels);
  for (long block = 0; block < blocks; block++)
    for (long i = 0; i < 2 * channels; i++) total[i] += partial[block * 2 * channels + i];
  return total;
}

// Runs the functions of a row that `at(width, c)` makes. A block's rows stay in the first cache for all its channels.
template <class At> void for_rows(long rows, long channels, int threads, At at) {
  const long block_rows = std::max(1L, STRIP_FLOATS / channels), blocks = (rows + block_rows - 1) / block_rows;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long block = 0; block < blocks; block++) {
    const long first = block * block_rows, last = std::min(rows, first + block_rows);
    for_channels(channels, [&](auto width, long c) {
      const auto row = at(width, c);
      for (long p = first; p < last; p++) row(p);
    });
  }
}

// dz = g * of_dy + (z - mean) * of_z + constant, where g is dy, or dy where z > mean; `dz` may be z or dy.
struct Slopes {
  std::vector<float> of_dy, of_z, constant;
  explicit Slopes(long channels) : of_dy(channels), of_z(channels), constant(channels) {}
};

template <bool BEHIND_RELU, int N> INLINE Values<N> passed(Values<N> centred, Values<N> dy) {
  if constexpr (BEHIND_RELU) return where<N>(~(centred <= 0.0f), dy);
  return dy;
}

template <bool BEHIND_RELU>
std::vector<double> gradient_sums(const float *dy, long dy_stride, const float *z, long rows, long channels,
                                  const float *mean, int threads) {
  return sum_rows(rows, channels, threads, [=](auto width, long c) {
    constexpr int N = decltype(width)::lanes;
    const Values<N> centre = load<N>(mean + c);
    return [=](long p, Values<N> &sum_dy, Values<N> &sum_dy_z) {
      const Values<N> x = load<N>(z + p * channels + c) - centre;
      const Values<N> y = passed<BEHIND_RELU, N>(x, load<N>(dy + p * dy_stride + c));
      sum_dy += y;
      sum_dy_z += x * y;
    };
  });
}

template <bool BEHIND_RELU>
void apply_slopes(const float *dy, long dy_stride, const float *z, long rows, long channels, const float *mean,
                  const Slopes &slopes, float *dz, int threads) {
  const float *of_dy = slopes.of_dy.data(), *of_z = slopes.of_z.data(), *constant = slopes.constant.data();
  for_rows(rows, channels, threads, [=](auto width, long c) {
    constexpr int N = decltype(width)::lanes;
    const Values<N> centre = load<N>(mean + c), a = load<N>(of_dy + c), b = load<N>(of_z + c);
    const Values<N> shift = load<N>(constant + c);
    return [=](long p) {
      const Values<N> x = load<N>(z + p * channels + c) - centre;
      const Values<N> y = passed<BEHIND_RELU, N>(x, load<N>(dy + p * dy_stride + c));
      store(dz + p * channels + c, y * a + (x * b + shift));
    };
  });
}

}  // namespace

void batch_stats(const float *z, long rows, long channels, float *mean, float *rstd, double epsilon, int threads) {
  // Distances from the first row, which lies near the mean: their squares stay small.
  const std::vector<double> total = sum_rows(rows, channels, threads, [=](auto width, long c) {
    constexpr int N = decltype(width)::lanes;
    const Values<N> first = load<N>(z + c);
    return [=](long p, Values<N> &sum, Values<N> &squares) {
      const Values<N> x = load<N>(z + p * channels + c) - first;
      sum += x;
      squares += x * x;
    };
  });
  for (long c = 0; c < channels; c++) {
    const double shifted = total[c] / rows;
    const double variance = std::max(total[channels + c] / rows - shifted * shifted, 0.0);
    mean[c] = static_cast<float>(shifted + z[c]);
    rstd[c] = static_cast<float>(1 / std::sqrt(variance + epsilon));
  }
}

void scale_add(const float *z, long rows, long channels, const float *scale, const float *shift, float *out,
               long out_stride, int threads) {
  for_rows(rows, channels, threads, [=](auto width, long c) {
    constexpr int N = decltype(width)::lanes;
    const Values<N> factor = load<N>(scale + c), offset = load<N>(shift + c);
    return [=](long p) {
      float *to = out + p * out_stride + c;
      store(to, load<N>(to) + (load<N>(z + p * channels + c) * factor + offset));
    };
  });
}

void scale_to(const float *z, long rows, long channels, const float *scale, const float *shift, float *out,
              int behind_relu, int threads) {
  for_rows(rows, channels, threads, [=](auto width, long c) {
    constexpr int N = decltype(width)::lanes;
    const Values<N> factor = load<N>(scale + c), offset = load<N>(shift + c);
    return [=](long p) {
      const Values<N> y = load<N>(z + p * channels + c) * factor + offset;
      store(out + p * channels + c, behind_relu ? relu<N>(y) : y);
    };
  });
}

double norm_backward(const float *dy, long dy_stride, const float *z, long rows, long channels, double gate,
                     const float *mean, const float *rstd, float *dz, int behind_relu, int threads) {
  const auto sums = behind_relu ? gradient_sums<true> : gradient_sums<false>;
  const auto apply = behind_relu ? apply_slopes<true> : apply_slopes<false>;
  const std::vector<double> total = sums(dy, dy_stride, z, rows, channels, mean, threads);
  Slopes slopes(channels);
  double gate_grad = 0;
  for (long c = 0; c < channels; c++) {
    const double factor = gate * rstd[c], sum_dy_xhat = total[channels + c] * rstd[c];
    gate_grad += sum_dy_xhat;
    slopes.of_dy[c] = static_cast<float>(factor);
    slopes.of_z[c] = static_cast<float>(-factor * rstd[c] * sum_dy_xhat / rows);
    slopes.constant[c] = static_cast<float>(-factor * total[c] / rows);
  }
  apply(dy, dy_stride, z, rows, channels, mean, slopes, dz, threads);
  return gate_grad;
}

void xhat_backward(const float *dy, const float *xhat, long rows, long channels, const float *rstd, float *dz,
                   int threads) {
  const std::vector<float> zero(channels);
  const std::vector<double> total = gradient_sums<false>(dy, channels, xhat, rows, channels, zero.data(), threads);
  Slopes slopes(channels);
  for (long c = 0; c < channels; c++) {
    slopes.of_dy[c] = rstd[c];
    slopes.of_z[c] = static_cast<float>(-rstd[c] * total[channels + c] / rows);
    slopes.constant[c] = static_cast<float>(-rstd[c] * total[c] / rows);
  }
  apply_slopes<false>(dy, channels, xhat, rows, channels, zero.data(), slopes, dz, threads);
}

void add_where_positive(float *d, long d_stride, const float *da, const float *x, long x_stride, long rows,
                        long channels, int threads) {
  for_rows(rows, channels, threads, [=](auto width, long c) {
    constexpr int N = decltype(width)::lanes;
    return [=](long p) {
      float *to = d + p * d_stride + c;
      store(to, load<N>(to) + where<N>(~(load<N>(x + p * x_stride + c) <= 0.0f), load<N>(da + p * channels + c)));
    };
  });
}

}  // namespace ISA
