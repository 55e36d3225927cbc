// ReLU, 1x1 convolution, BatchNorm without weights: how a cell prepares its inputs. With two convolutions of half the
// outputs each, the first on even pixels and the second on odd ones, a FactorizedReduce.
#include "projection.h"

#include "kernels.h"
#include "parts.h"

namespace ISA {
namespace {

struct Sizes {
  long pixels, out_height, out_width, row;  // `row`: values of a row of the input.
  int halves, step;
  explicit Sizes(const Projection &p)
      : pixels(p.height * p.width), row(p.width * p.inputs), halves(p.weights[1] == nullptr ? 1 : 2), step(halves) {
    out_height = p.height / step;
    out_width = p.width / step;
  }
  long out_pixels() const { return out_height * out_width; }
  long columns(const Projection &p) const { return p.outputs / halves; }
};

// The ReLU of the pixels that one convolution reads in one of its rows.
INLINE void gather(const Projection &p, const Sizes &sizes, const float *x, int half, long h, float *a) {
  const float *from = x + (h * sizes.step + half) * sizes.row + half * p.inputs;
  for_channels(p.inputs, [&](auto lanes, long c) {
    constexpr int N = decltype(lanes)::lanes;
    for (long w = 0; w < sizes.out_width; w++)
      store(a + w * p.inputs + c, relu<N>(load<N>(from + w * sizes.step * p.inputs + c)));
  });
}

INLINE void normalise(float *z, const float *scale, const float *shift, long pixels, long channels) {
  for_channels(channels, [&](auto lanes, long c) {
    constexpr int N = decltype(lanes)::lanes;
    const Values<N> factor = load<N>(scale + c), offset = load<N>(shift + c);
    for (long i = 0; i < pixels; i++)
      store(z + i * channels + c, load<N>(z + i * channels + c) * factor + offset);
  });
}

}  // namespace

// xhat by the statistics, which are found first where they are not known.
void projection_forward(const Projection &p, float *xhat, float *stats, int known, double epsilon) {
  const Sizes sizes(p);
  const Parts parts(p.batch);
  const long o = p.outputs, columns = sizes.columns(p), size = sizes.out_pixels() * o;
  std::vector<double> partial(parts.count * 2 * o);
  std::vector<float> scale(o), shift(o);
  if (known) affine_of(stats, o, 1.0, scale.data(), shift.data());
#pragma omp parallel num_threads(p.threads)
  {
    float *a = scratch<struct OfThread>(aligned(sizes.out_width * p.inputs) + p.inputs * o);
    float *weights_IO = a + aligned(sizes.out_width * p.inputs);
    for (int half = 0; half < sizes.halves; half++)
      for (long i = 0; i < p.inputs; i++)
        for (long c = 0; c < columns; c++)
          weights_IO[(half * p.inputs + i) * columns + c] = p.weights[half][c * p.inputs + i];
#pragma omp for schedule(static)
    for (long part = 0; part < parts.count; part++)
      for (long n = parts.begin(part); n < parts.begin(part + 1); n++) {
        const float *x = p.x + n * p.height * sizes.row;
        for (long h = 0; h < sizes.out_height; h++) {
          float *z = xhat + n * size + h * sizes.out_width * o;
          for (int half = 0; half < sizes.halves; half++) {
            gather(p, sizes, x, half, h, a);
            product(a, p.inputs, sizes.out_width, p.inputs, weights_IO + half * p.inputs * columns, columns,
                    z + half * columns, o);
          }
          if (known) {
            normalise(z, scale.data(), shift.data(), sizes.out_width, o);
            continue;
          }
          add_distances(z, xhat + parts.begin(part) * size, sizes.out_width, o, &partial[part * 2 * o]);
        }
      }
    if (!known) {
#pragma omp single
      {
        finish_stats(partial, parts, xhat, sizes.out_pixels(), o, epsilon, stats);
        affine_of(stats, o, 1.0, scale.data(), shift.data());
      }
#pragma omp for schedule(static)
      for (long part = 0; part < parts.count; part++)
        normalise(xhat + parts.begin(part) * size, scale.data(), shift.data(),
                  (parts.begin(part + 1) - parts.begin(part)) * sizes.out_pixels(), o);
    }
  }
}

// Gradients of the input, null where not wanted, and of each convolution's weights, likewise.
void projection_backward(const Projection &p, const float *d, const float *xhat, const float *rstd, float *dx,
                         float *const dw[2]) {
  const Sizes sizes(p);
  const Parts parts(p.batch);
  const long o = p.outputs, columns = sizes.columns(p), size = sizes.out_pixels() * o, weights = columns * p.inputs;
  const bool need_w = dw[0] != nullptr;
  std::vector<double> partial(parts.count * 2 * o);
  float *partial_w = need_w ? scratch<struct OfCall>(parts.count * sizes.halves * weights) : nullptr;
  const std::vector<float> zero(o);
  Slopes slopes(o);
#pragma omp parallel num_threads(p.threads)
  {
    const long row = aligned(sizes.out_width * p.inputs);
    float *dz = scratch<struct OfThread>(aligned(sizes.out_width * o) + 2 * row);
    float *a = dz + aligned(sizes.out_width * o), *da = a + row;
#pragma omp for schedule(static)
    for (long part = 0; part < parts.count; part++)
      add_products(d + parts.begin(part) * size, o, xhat + parts.begin(part) * size, zero.data(),
                   (parts.begin(part + 1) - parts.begin(part)) * sizes.out_height, sizes.out_width, o,
                   &partial[part * 2 * o]);
#pragma omp single
    slopes.set_for_xhat(total(partial, parts.count, 2 * o), rstd, o, p.batch * sizes.out_pixels());
#pragma omp for schedule(static)
    for (long part = 0; part < parts.count; part++) {
      float *sums_w = need_w ? partial_w + part * sizes.halves * weights : nullptr;
      if (need_w) std::fill_n(sums_w, sizes.halves * weights, 0.0f);
      for (long n = parts.begin(part); n < parts.begin(part + 1); n++) {
        const float *x = p.x + n * p.height * sizes.row;
        float *to = dx == nullptr ? nullptr : dx + n * p.height * sizes.row;
        if (to != nullptr && sizes.halves == 2) std::fill_n(to, p.height * sizes.row, 0.0f);
        for (long h = 0; h < sizes.out_height; h++) {
          const long at = n * size + h * sizes.out_width * o;
          z_grad(slopes, d + at, o, xhat + at, zero.data(), sizes.out_width, o, dz);
          for (int half = 0; half < sizes.halves; half++) {
            const float *part_dz = dz + half * columns;
            gather(p, sizes, x, half, h, a);
            if (need_w)
              add_outer(part_dz, o, columns, a, p.inputs, p.inputs, sizes.out_width, sums_w + half * weights);
            if (to == nullptr) continue;
            product(part_dz, o, sizes.out_width, columns, p.weights[half], p.inputs, da, p.inputs);
            float *row_to = to + (h * sizes.step + half) * sizes.row + half * p.inputs;
            add_passed(da, a, p.inputs, sizes.out_width, p.inputs, row_to, sizes.step * p.inputs, false);
          }
        }
      }
    }
    if (need_w) {
#pragma omp for schedule(static)
      for (long i = 0; i < sizes.halves * weights; i++) {
        float sum = 0;
        for (long part = 0; part < parts.count; part++) sum += partial_w[part * sizes.halves * weights + i];
        dw[i / weights][i % weights] = sum;
      }
    }
  }
}

}  // namespace ISA
