// ReLU, depthwise k x k, pointwise, BatchNorm, once or twice; the last BatchNorm, times a gate, goes into a node.
//
// A sample runs through a stage in the second cache: what lies between ReLU and pointwise is never a whole map, and is
// made again in backward. Samples are dealt out in fixed parts whose sums are added in their order, so that no result
// depends on the threads.
#include "separable.h"

#include "kernels.h"
#include "padded.h"
#include "parts.h"

namespace ISA {
namespace {

// One stage of a call: its sizes and what it reads.
struct Stage {
  long height, width, out_height, out_width, channels, border;
  int side, apart, stride;
  const float *x;  // The stage's input before its ReLU.
  long x_stride;
  const float *depthwise, *pointwise;
  const float *scale, *shift;  // Of the BatchNorm before the ReLU; null for the first stage.

  long in_pixels() const { return height * width; }
  long out_pixels() const { return out_height * out_width; }
  const float *sample(long n) const { return x + n * in_pixels() * x_stride; }
};

// relu(x), or relu of its BatchNorm, inside the border.
void fill(const Stage &s, const float *x, const Padded &a) {
  for (long h = 0; h < s.height; h++, x += s.width * s.x_stride)
    for_channels(s.channels, [&](auto lanes, long c) {
      constexpr int N = decltype(lanes)::lanes;
      float *to = a.at(h, 0) + c;
      if (s.scale == nullptr) {
        for (long w = 0; w < s.width; w++) store(to + w * s.channels, relu<N>(load<N>(x + w * s.x_stride + c)));
        return;
      }
      const Values<N> scale = load<N>(s.scale + c), shift = load<N>(s.shift + c);
      for (long w = 0; w < s.width; w++)
        store(to + w * s.channels, relu<N>(load<N>(x + w * s.x_stride + c) * scale + shift));
    });
}

// One row of windows of the depthwise convolution.
INLINE void taps_row(const Stage &s, const Padded &a, long h, float *t) {
  const float *from = a.at(h * s.stride - s.border, -s.border);
  for_channels(s.channels, [&](auto lanes, long c) {
    constexpr int N = decltype(lanes)::lanes;
    pick(s.side, [&](auto side) {
      window_row<N, decltype(side)::value>(from + c, a.row, s.channels, s.apart, s.stride, s.depthwise + c, t + c,
                                           s.out_width);
    });
  });
}

Stage stage_of(const Separable &call, int k, const float *scale, const float *shift) {
  const long border = call.side / 2 * long(call.dilation);
  const long out_height = (call.height + call.stride - 1) / call.stride;
  const long out_width = (call.width + call.stride - 1) / call.stride;
  if (k == 0)
    return {call.height, call.width, out_height, out_width, call.channels, border, call.side, call.dilation,
            call.stride, call.x, call.x_stride, call.depthwise[0], call.pointwise[0], nullptr, nullptr};
  return {out_height, out_width, out_height, out_width, call.channels, border, call.side, call.dilation,
          1, call.z[0], call.channels, call.depthwise[1], call.pointwise[1], scale, shift};
}

// `sums` [2, C], for the statistics, are null where these are known.
void stage_forward(const Stage &s, long n, const Padded &a, const float *weights_IO, float *t, float *z,
                   const float *first, double *sums) {
  const long c = s.channels, row = s.out_width * c;
  fill(s, s.sample(n), a);
  for (long h = 0; h < s.out_height; h++) {
    taps_row(s, a, h, t);
    product(t, c, s.out_width, c, weights_IO, c, z + h * row, c);
    if (sums != nullptr) add_distances(z + h * row, first, s.out_width, c, sums);
  }
}

// What a thread needs for one sample of a stage's backward.
struct Room {
  Padded a, dt, da;
  float *t, *dz, *row, *flipped;
  Room(const Stage &s) {
    const long c = s.channels, in = aligned(padded_floats(s.height, s.width, c, s.border));
    const long out = aligned(padded_floats(s.out_height, s.out_width, c, s.border));
    const long map = aligned(s.out_pixels() * c), taps = s.side * s.side;
    float *own = scratch<struct OfThread>(2 * in + out + 2 * map + aligned(s.width * c) + taps * c);
    a = padded(own, s.height, s.width, c, s.border), own += in;
    da = {own, a.row, c, s.border}, own += in;
    dt = padded(own, s.out_height, s.out_width, c, s.border), own += out;
    t = own, own += map;
    dz = own, own += map;
    row = own, own += aligned(s.width * c);
    flipped = own;
    for (long tap = 0; tap < taps; tap++) std::copy_n(s.depthwise + (taps - 1 - tap) * c, c, flipped + tap * c);
  }
};

// Adds a sample's weight gradients to sums [out, in] and [taps, C]; reads room.dz and room.dt.
void weight_sums(const Stage &s, long n, const Room &room, float *pointwise, float *depthwise) {
  const long c = s.channels;
  fill(s, s.sample(n), room.a);
  for (long h = 0; h < s.out_height; h++) taps_row(s, room.a, h, room.t + h * s.out_width * c);
  add_outer(room.dz, c, c, room.t, c, c, s.out_pixels(), pointwise);
  const Windows windows{room.a.at(0, 0), room.dt.at(0, 0), room.a.at(-s.border, 0), room.a.row, room.dt.row,
                        s.height, s.width, c, s.side, s.apart, s.stride};
  add_tap_sums(windows, depthwise);
}

// Calls use(h, row) with the gradient of each row of the stage's input behind its ReLU; reads room.dt.
template <class Use> void input_rows(const Stage &s, const Room &room, Use use) {
  const long c = s.channels;
  const auto for_taps = [&](auto run) {
    for_channels(c, [&](auto lanes, long i) {
      pick(s.side, [&](auto side) { run(lanes, side, i); });
    });
  };
  if (s.stride == 1) {
    for (long h = 0; h < s.height; h++) {
      for_taps([&](auto lanes, auto side, long i) {
        window_row<decltype(lanes)::lanes, decltype(side)::value>(room.dt.at(h - s.border, -s.border) + i, room.dt.row,
                                                                  c, s.apart, 1, room.flipped + i, room.row + i,
                                                                  s.width);
      });
      use(h, room.row);
    }
    return;
  }
  padded(room.da.data, s.height, s.width, c, s.border);
  for (long h = 0; h < s.out_height; h++)
    for_taps([&](auto lanes, auto side, long i) {
      scatter_row<decltype(lanes)::lanes, decltype(side)::value>(
          room.da.at(h * s.stride - s.border, -s.border) + i, room.da.row, c, s.apart, s.stride, s.depthwise + i,
          room.dt.at(h, 0) + i, s.out_width);
    });
  for (long h = 0; h < s.height; h++) use(h, room.da.at(h, 0));
}

// g = da where z > mean, into the place of a map that is used up; sums of g and of g * (z - mean).
void inner_grad(const float *z, const float *mean, const float *da, float *g, long width, long channels, double *sums) {
  add_row_sums(width, channels, sums, [=](auto lanes, long c) {
    constexpr int N = decltype(lanes)::lanes;
    const Values<N> centre = load<N>(mean + c);
    return [=](long w, Values<N> &sum_g, Values<N> &sum_g_z) {
      const Values<N> x = load<N>(z + w * channels + c) - centre;
      const Values<N> grad = where<N>(~(x <= 0.0f), load<N>(da + w * channels + c));
      store(g + w * channels + c, grad);
      sum_g += grad;
      sum_g_z += x * grad;
    };
  });
}

// The gradient of the first z of two, into the place of the last; reads room.dt.
void inner_grads(const Separable &call, const Stage &s, long n, const Room &room, double *sums) {
  const float *x = s.sample(n);
  float *g = call.z[1] + n * s.out_pixels() * s.channels;
  input_rows(s, room, [&](long h, const float *da) {
    const long row = h * s.width * s.channels;
    inner_grad(x + row, call.stats[0], da, g + row, s.width, s.channels, sums);
  });
}

// A sample's part of dx; reads room.dt.
void input_grads(const Stage &s, long n, const Room &room, const SeparableGrads &grads) {
  const float *x = s.sample(n);
  input_rows(s, room, [&](long h, const float *da) {
    float *dx = grads.dx + (n * s.height + h) * s.width * grads.dx_stride;
    add_passed(da, x + h * s.width * s.x_stride, s.x_stride, s.width, s.channels, dx, grads.dx_stride, grads.add);
  });
}

}  // namespace

// `known`: how many stages have statistics already. With `out` the last BatchNorm times the gate is added to it.
void separable_forward(const Separable &call, int known, double gate, float *out, long out_stride) {
  const long c = call.channels;
  const Parts parts(call.batch);
  std::vector<double> partial(parts.count * 2 * c);
  std::vector<float> scale(c), shift(c);
#pragma omp parallel num_threads(call.threads)
  for (int k = 0; k < call.stages; k++) {
    const Stage s = stage_of(call, k, scale.data(), shift.data());
    const long map = aligned(padded_floats(s.height, s.width, c, s.border)), row = aligned(s.out_width * c);
    float *own = scratch<struct OfThread>(map + row + c * c), *t = own + map, *weights_IO = t + row;
    const Padded a = padded(own, s.height, s.width, c, s.border);
    for (long i = 0; i < c; i++)
      for (long o = 0; o < c; o++) weights_IO[i * c + o] = s.pointwise[o * c + i];
    float *z = call.z[k];
    const bool counts = k >= known;
#pragma omp for schedule(static)
    for (long part = 0; part < parts.count; part++) {
      const long size = s.out_pixels() * c, begin = parts.begin(part), end = parts.begin(part + 1);
      for (long n = begin; n < end; n++)
        stage_forward(s, n, a, weights_IO, t, z + n * size, z + begin * size, counts ? &partial[part * 2 * c] : nullptr);
    }
#pragma omp single
    {
      if (counts) finish_stats(partial, parts, z, s.out_pixels(), c, call.epsilon, call.stats[k]);
      affine_of(call.stats[k], c, k + 1 == call.stages ? gate : 1.0, scale.data(), shift.data());
      std::fill(partial.begin(), partial.end(), 0.0);
    }
    if (out == nullptr || k + 1 < call.stages) continue;
#pragma omp for schedule(static)
    for (long part = 0; part < parts.count; part++) {
      const long begin = parts.begin(part) * s.out_pixels(), end = parts.begin(part + 1) * s.out_pixels();
      add_affine(z + begin * c, scale.data(), shift.data(), end - begin, c, out + begin * out_stride, out_stride);
    }
  }
}

// Gradients of the gate (returned), the input and the weights. Overwrites the last z where there are two stages.
double separable_backward(const Separable &call, const float *dy, long dy_stride, double gate,
                          const SeparableGrads &grads) {
  const long c = call.channels, taps = call.side * call.side;
  const bool need_w = grads.pointwise[0] != nullptr, need_x = grads.dx != nullptr;
  const Parts parts(call.batch);
  std::vector<double> partial(parts.count * 2 * c);
  const long weights = c * c + taps * c;
  std::vector<float> scale(c), shift(c);
  float *partial_w = need_w ? scratch<struct OfCall>(parts.count * weights) : nullptr;
  Slopes slopes(c);
  double gate_grad = 0;
#pragma omp parallel num_threads(call.threads)
  {
    const Stage last = stage_of(call, call.stages - 1, nullptr, nullptr);
    const float *z = call.z[call.stages - 1], *mean = call.stats[call.stages - 1];
#pragma omp for schedule(static)
    for (long part = 0; part < parts.count; part++)
      add_products(dy + parts.begin(part) * last.out_pixels() * dy_stride, dy_stride,
                   z + parts.begin(part) * last.out_pixels() * c, mean,
                   (parts.begin(part + 1) - parts.begin(part)) * last.out_height, last.out_width, c,
                   &partial[part * 2 * c]);
    for (int k = call.stages - 1; k >= 0 && (k > 0 || need_x || need_w); k--) {
      const bool outer = k + 1 == call.stages;
#pragma omp single
      {
        const Stage s = stage_of(call, k, nullptr, nullptr);
        const double found = slopes.set(total(partial, parts.count, 2 * c), call.stats[k] + c, c,
                                        call.batch * s.out_pixels(), outer ? gate : 1.0);
        if (outer) gate_grad = found;
        if (k > 0) affine_of(call.stats[k - 1], c, 1.0, scale.data(), shift.data());
        std::fill(partial.begin(), partial.end(), 0.0);
      }
      const Stage s = stage_of(call, k, scale.data(), shift.data());
      const long size = s.out_pixels() * c;
      const Room room(s);
#pragma omp for schedule(static)
      for (long part = 0; part < parts.count; part++) {
        float *sums_w = need_w ? partial_w + part * weights : nullptr;
        if (need_w) std::fill_n(sums_w, weights, 0.0f);
        for (long n = parts.begin(part); n < parts.begin(part + 1); n++) {
          const float *from = outer ? dy + n * s.out_pixels() * dy_stride : call.z[1] + n * size;
          z_grad(slopes, from, outer ? dy_stride : c, call.z[k] + n * size, call.stats[k], s.out_pixels(), c, room.dz);
          for (long h = 0; h < s.out_height; h++)
            product(room.dz + h * s.out_width * c, c, s.out_width, c, s.pointwise, c, room.dt.at(h, 0), c);
          if (need_w) weight_sums(s, n, room, sums_w, sums_w + c * c);
          if (k > 0)
            inner_grads(call, s, n, room, &partial[part * 2 * c]);
          else if (need_x)
            input_grads(s, n, room, grads);
        }
      }
      if (!need_w) continue;
#pragma omp for schedule(static)
      for (long i = 0; i < weights; i++) {
        float sum = 0;
        for (long part = 0; part < parts.count; part++) sum += partial_w[part * weights + i];
        (i < c * c ? grads.pointwise[k][i] : grads.depthwise[k][i - c * c]) = sum;
      }
    }
  }
  return gate_grad;
}

}  // namespace ISA
