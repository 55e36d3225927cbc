// Samples dealt out to threads in fixed parts, whose sums are added in their order: no result depends on the threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "gemm.h"

namespace ISA {

constexpr long MAX_PARTS = 16;

struct Parts {
  long batch, count;
  explicit Parts(long samples) : batch(samples), count(std::min(samples, MAX_PARTS)) {}
  long begin(long part) const { return part * batch / count; }
};

// Memory of a thread that stays from call to call: fresh pages would cost more than what is computed on them.
template <class Owner> float *scratch(long floats) {
  struct Buffer {
    float *data = nullptr;
    long size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffer;
  if (buffer.size < floats) {
    std::free(buffer.data);
    buffer.size = 0;
    buffer.data = static_cast<float *>(std::aligned_alloc(64, (4 * floats + 63) / 64 * 64));
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.size = floats;
  }
  return buffer.data;
}

INLINE long aligned(long floats) { return (floats + 15) / 16 * 16; }

// Two sums for each channel over rows of values, added to `sums` [2, C]. `at(width, c)` makes (row, first, second).
template <class At> INLINE void add_row_sums(long rows, long channels, double *sums, At at) {
  for_channels(channels, [&](auto lanes, long c) {
    constexpr int N = decltype(lanes)::lanes;
    const auto add = at(lanes, c);
    Values<N> a[2] = {}, b[2] = {};
    long p = 0;
    for (; p + 2 <= rows; p += 2) add(p, a[0], b[0]), add(p + 1, a[1], b[1]);
    for (; p < rows; p++) add(p, a[0], b[0]);
    float first[N], second[N];
    store(first, a[0] + a[1]);
    store(second, b[0] + b[1]);
    for (int i = 0; i < N; i++) sums[c + i] += first[i], sums[channels + c + i] += second[i];
  });
}

// Distances to the pixel `first` and their squares: it lies near the mean, so that the squares stay small.
INLINE void add_distances(const float *z, const float *first, long rows, long channels, double *sums) {
  add_row_sums(rows, channels, sums, [=](auto lanes, long c) {
    constexpr int N = decltype(lanes)::lanes;
    const Values<N> centre = load<N>(first + c);
    return [=](long p, Values<N> &sum, Values<N> &squares) {
      const Values<N> x = load<N>(z + p * channels + c) - centre;
      sum += x;
      squares += x * x;
    };
  });
}

// dy and dy * (z - mean), over rows of `width` pixels.
INLINE void add_products(const float *dy, long dy_stride, const float *z, const float *mean, long rows, long width,
                         long channels, double *sums) {
  for (long row = 0; row < rows; row++, dy += width * dy_stride, z += width * channels)
    add_row_sums(width, channels, sums, [=](auto lanes, long c) {
      constexpr int N = decltype(lanes)::lanes;
      const Values<N> centre = load<N>(mean + c);
      return [=](long p, Values<N> &sum_dy, Values<N> &sum_dy_z) {
        const Values<N> y = load<N>(dy + p * dy_stride + c);
        sum_dy += y;
        sum_dy_z += (load<N>(z + p * channels + c) - centre) * y;
      };
    });
}

// Sums over all parts, in their order.
inline std::vector<double> total(const std::vector<double> &partial, long parts, long size) {
  std::vector<double> sums(size);
  for (long part = 0; part < parts; part++)
    for (long i = 0; i < size; i++) sums[i] += partial[part * size + i];
  return sums;
}

// BatchNorm as z * scale + shift.
inline void affine_of(const float *stats, long channels, double gate, float *scale, float *shift) {
  for (long c = 0; c < channels; c++) {
    scale[c] = static_cast<float>(gate * stats[channels + c]);
    shift[c] = -stats[c] * scale[c];
  }
}

// out += z * scale + shift.
INLINE void add_affine(const float *z, const float *scale, const float *shift, long rows, long channels, float *out,
                       long out_stride) {
  for_channels(channels, [&](auto lanes, long c) {
    constexpr int N = decltype(lanes)::lanes;
    const Values<N> factor = load<N>(scale + c), offset = load<N>(shift + c);
    for (long p = 0; p < rows; p++) {
      float *to = out + p * out_stride + c;
      store(to, load<N>(to) + (load<N>(z + p * channels + c) * factor + offset));
    }
  });
}

// d = da where x > 0, or added to it.
INLINE void add_passed(const float *da, const float *x, long x_stride, long rows, long channels, float *d, long d_stride,
                       bool add) {
  for_channels(channels, [&](auto lanes, long c) {
    constexpr int N = decltype(lanes)::lanes;
    for (long p = 0; p < rows; p++) {
      const Values<N> grad = where<N>(~(load<N>(x + p * x_stride + c) <= 0.0f), load<N>(da + p * channels + c));
      float *to = d + p * d_stride + c;
      store(to, add ? load<N>(to) + grad : grad);
    }
  });
}

// (mean, rstd) from sums of distances to each part's first pixel, and of their squares.
inline void finish_stats(const std::vector<double> &partial, const Parts &parts, const float *z, long pixels, long channels,
                  double epsilon, float *stats) {
  const double rows = static_cast<double>(parts.batch * pixels);
  for (long c = 0; c < channels; c++) {
    double sum = 0, squares = 0;
    const double centre = z[c];
    for (long part = 0; part < parts.count; part++) {
      const double begin = parts.begin(part), count = (parts.begin(part + 1) - begin) * pixels;
      const double apart = z[static_cast<long>(begin) * pixels * channels + c] - centre;
      const double one = partial[(2 * part) * channels + c], two = partial[(2 * part + 1) * channels + c];
      sum += one + count * apart;
      squares += two + 2 * apart * one + count * apart * apart;
    }
    const double shifted = sum / rows, variance = std::max(squares / rows - shifted * shifted, 0.0);
    stats[c] = static_cast<float>(shifted + centre);
    stats[channels + c] = static_cast<float>(1 / std::sqrt(variance + epsilon));
  }
}

// z's gradient as dy * of_dy + (z - mean) * of_z + constant.
struct Slopes {
  std::vector<float> of_dy, of_z, constant;
  explicit Slopes(long channels) : of_dy(channels), of_z(channels), constant(channels) {}

  // From sums of dy and of dy * (z - mean); returns the gate's gradient.
  double set(const std::vector<double> &sums, const float *rstd, long channels, long rows, double gate) {
    double gate_grad = 0;
    for (long c = 0; c < channels; c++) {
      const double factor = gate * rstd[c], sum_dy_xhat = sums[channels + c] * rstd[c];
      gate_grad += sum_dy_xhat;
      of_dy[c] = static_cast<float>(factor);
      of_z[c] = static_cast<float>(-factor * rstd[c] * sum_dy_xhat / rows);
      constant[c] = static_cast<float>(-factor * sums[c] / rows);
    }
    return gate_grad;
  }

  // The same where z is xhat itself, and of mean 0: from sums of dy and of dy * xhat.
  void set_for_xhat(const std::vector<double> &sums, const float *rstd, long channels, long rows) {
    for (long c = 0; c < channels; c++) {
      of_dy[c] = rstd[c];
      of_z[c] = static_cast<float>(-rstd[c] * sums[channels + c] / rows);
      constant[c] = static_cast<float>(-rstd[c] * sums[c] / rows);
    }
  }
};

// The gradient of a stage's z for one sample.
INLINE void z_grad(const Slopes &slopes, const float *dy, long dy_stride, const float *z, const float *mean, long pixels,
            long channels, float *dz) {
  for_channels(channels, [&](auto lanes, long c) {
    constexpr int N = decltype(lanes)::lanes;
    const Values<N> centre = load<N>(mean + c), a = load<N>(&slopes.of_dy[c]), b = load<N>(&slopes.of_z[c]);
    const Values<N> constant = load<N>(&slopes.constant[c]);
    for (long p = 0; p < pixels; p++) {
      const Values<N> x = load<N>(z + p * channels + c) - centre;
      store(dz + p * channels + c, load<N>(dy + p * dy_stride + c) * a + (x * b + constant));
    }
  });
}

}  // namespace ISA
