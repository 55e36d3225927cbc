// 3x3 pools with padding 1 on NHWC maps, windows at every or every second pixel, separated into rows and columns.
//
// No index is kept between forward and backward: the maximum is found again, with PyTorch's tie-break, which is the
// first of equal values in row-major order. A pixel of a gradient is written once. Rows of windows lie in a scratch
// with a pixel of border at both ends, so that no loop asks whether a window or pixel is inside.
#include <algorithm>
#include <limits>

#include "kernels.h"
#include "lanes.h"

namespace ISA {
namespace {

constexpr float INVERSE[10] = {0, 1, 1 / 2.0f, 1 / 3.0f, 1 / 4.0f, 0, 1 / 6.0f, 0, 0, 1 / 9.0f};

template <int STRIDE> INLINE long windows_of(long side) { return (side + STRIDE - 1) / STRIDE; }

struct Span {
  long first, last;
};
// Pixels inside the map that window w covers.
template <int STRIDE> INLINE Span pixels_of(long w, long side) {
  return {std::max(0L, w * STRIDE - 1), std::min(side - 1, w * STRIDE + 1)};
}
template <int STRIDE> INLINE long count_of(long w, long side) {
  const Span span = pixels_of<STRIDE>(w, side);
  return span.last - span.first + 1;
}
// Windows that cover pixel p.
template <int STRIDE> INLINE Span windows_over(long p, long side) {
  return {std::max(0L, (p + STRIDE - 2) / STRIDE), std::min(windows_of<STRIDE>(side) - 1, (p + 1) / STRIDE)};
}

// Whether a value takes the place of the best so far; a NaN always does, as in torch.
template <int N> INLINE Mask<N> beats(Values<N> value, Values<N> best) { return (value > best) | (value != value); }

struct Max {
  static constexpr float border = -std::numeric_limits<float>::infinity();
  template <int N> static INLINE Values<N> of(Values<N> best, Values<N> value) {
    return beats<N>(value, best) ? value : best;
  }
  template <int N> static INLINE Values<N> finish(Values<N> best, long) { return best; }
};

struct Mean {
  static constexpr float border = 0;
  template <int N> static INLINE Values<N> of(Values<N> sum, Values<N> value) { return sum + value; }
  template <int N> static INLINE Values<N> finish(Values<N> sum, long count) { return sum * INVERSE[count]; }
};

// One row of windows. `columns` is a scratch of width + 2 pixels: the window's rows, reduced to one.
template <int N, int STRIDE, class Reduce>
INLINE void pool_row(const float *x, long x_stride, float *y, long y_stride, float *columns, Span rows, long width) {
  const auto border = Values<N>{} + Reduce::border;
  store(columns, border);
  store(columns + (width + 1) * N, border);
  for (long w = 0; w < width; w++) {
    const float *from = x + w * x_stride;
    Values<N> v = load<N>(from);
    for (long r = rows.first; r < rows.last; r++) v = Reduce::template of<N>(v, load<N>(from += width * x_stride));
    store(columns + (w + 1) * N, v);
  }
  for (long w = 0; w < windows_of<STRIDE>(width); w++) {
    const float *from = columns + w * STRIDE * N;
    const Values<N> two = Reduce::template of<N>(load<N>(from), load<N>(from + N));
    const long count = (rows.last - rows.first + 1) * count_of<STRIDE>(w, width);
    store(y + w * y_stride, Reduce::template finish<N>(Reduce::template of<N>(two, load<N>(from + 2 * N)), count));
  }
}

template <class Reduce, int STRIDE>
void pool(const float *x, long x_stride, float *y, long batch, long height, long width, long channels, int threads) {
  const long out_height = windows_of<STRIDE>(height), out_row = windows_of<STRIDE>(width) * channels;
#pragma omp parallel num_threads(threads)
  {
    const Scratch columns((width + 2) * LANES);
#pragma omp for schedule(static)
    for (long item = 0; item < batch * out_height; item++) {
      const Span rows = pixels_of<STRIDE>(item % out_height, height);
      const float *from = x + (item / out_height * height + rows.first) * width * x_stride;
      for_channels(channels, [&](auto lanes, long c) {
        pool_row<decltype(lanes)::lanes, STRIDE, Reduce>(from + c, x_stride, y + item * out_row + c, channels,
                                                         columns.get(), rows, width);
      });
    }
  }
}

// Gives each pixel of a row what its windows have for it: part(w, place) is that of window w, of whose three pixels it
// is the one at place -1, 0 or 1; windows -1 and one after the last are asked too and have nothing.
template <int N, int STRIDE, class Part>
INLINE void spread_row(float *d, long d_stride, long width, bool add, Part part) {
  for (long p = 0; p < width; p++) {
    float *to = d + p * d_stride;
    Values<N> sum = add ? load<N>(to) : Values<N>{};
    if constexpr (STRIDE == 1)
      sum += part(p - 1, 1) + part(p, 0) + part(p + 1, -1);
    else if (p % 2)
      sum += part(p / 2, 1) + part(p / 2 + 1, -1);
    else
      sum += part(p / 2, 0);
    store(to, sum);
  }
}

// Backward of the max pool for one sample and N channels. A ring of rows holds what a row's windows need.
template <int N, int STRIDE> class MaxBackward {
 public:
  MaxBackward(float *scratch, long height, long width)
      : height_(height), width_(width), windows_(windows_of<STRIDE>(width)), row_floats_((windows_ + 2) * N),
        best_(scratch), place_(best_ + RING * row_floats_), winning_row_(place_ + RING * row_floats_),
        grads_(winning_row_ + RING * row_floats_) {
    store(grads_, Values<N>{});
    store(grads_ + (windows_ + 1) * N, Values<N>{});
  }

  static long scratch_floats(long width) { return (3 * RING + 1) * (windows_of<STRIDE>(width) + 2) * N; }

  void run(const float *x, long x_stride, const float *g, long g_stride, float *d, long d_stride, bool add) const {
    long next_row = 0, next_window = 0;
    for (long r = 0; r < height_; r++) {
      const Span over = windows_over<STRIDE>(r, height_);
      for (; next_window <= over.last; next_window++) {
        const Span rows = pixels_of<STRIDE>(next_window, height_);
        for (; next_row <= rows.last; next_row++)
          find_in_row(x + next_row * width_ * x_stride, x_stride, at(best_, next_row), at(place_, next_row));
        find_among_rows(rows, at(winning_row_, next_window));
      }
      collect(g, g_stride, r, over);
      const float *places = at(place_, r), *grads = grads_ + N;
      spread_row<N, STRIDE>(d + r * width_ * d_stride, d_stride, width_, add, [=](long w, int place) {
        return where<N>(load_mask(places + w * N) == place, load<N>(grads + w * N));
      });
    }
  }

 private:
  static constexpr long RING = 4;  // Rows r .. r + 2 are in use at once.

  float *at(float *rows, long row) const { return rows + row % RING * row_floats_ + N; }
  static INLINE Mask<N> load_mask(const float *p) { return reinterpret_cast<Mask<N>>(load<N>(p)); }

  // The first maximum of each window's three pixels in a row, and its place.
  void find_in_row(const float *x, long x_stride, float *best_row, float *place_row) const {
    for (long w = 0; w < windows_; w++) {
      const Span pixels = pixels_of<STRIDE>(w, width_);
      // At the map's sides one pixel is met twice, and does not beat itself.
      const long middle = w * STRIDE;
      Values<N> best = load<N>(x + pixels.first * x_stride);
      Mask<N> place = Mask<N>{} + static_cast<int>(pixels.first - middle);
      const Values<N> second = load<N>(x + middle * x_stride), third = load<N>(x + pixels.last * x_stride);
      Mask<N> better = beats<N>(second, best);
      best = better ? second : best;
      place = better ? Mask<N>{} : place;
      better = beats<N>(third, best);
      store(best_row + w * N, better ? third : best);
      store(place_row + w * N, better ? Mask<N>{} + static_cast<int>(pixels.last - middle) : place);
    }
  }

  // The first row of each window that holds its maximum.
  void find_among_rows(Span rows, float *winners) const {
    for (long w = 0; w < windows_; w++) {
      Values<N> best = load<N>(at(best_, rows.first) + w * N);
      Mask<N> winner = Mask<N>{} + static_cast<int>(rows.first);
      for (long r = rows.first + 1; r <= rows.last; r++) {
        const Values<N> value = load<N>(at(best_, r) + w * N);
        const Mask<N> better = beats<N>(value, best);
        best = better ? value : best;
        winner = better ? Mask<N>{} + static_cast<int>(r) : winner;
      }
      store(winners + w * N, winner);
    }
  }

  // For each column of windows the gradients of those whose maximum lies in row r.
  void collect(const float *g, long g_stride, long r, Span over) const {
    for (long h = over.first; h <= over.last; h++) {
      const float *winners = at(winning_row_, h), *from = g + h * windows_ * g_stride;
      for (long w = 0; w < windows_; w++) {
        float *to = grads_ + (w + 1) * N;
        const auto part = where<N>(load_mask(winners + w * N) == static_cast<int>(r), load<N>(from + w * g_stride));
        store(to, h == over.first ? part : load<N>(to) + part);
      }
    }
  }

  const long height_, width_, windows_, row_floats_;
  float *const best_, *const place_, *const winning_row_, *const grads_;
};

template <int STRIDE>
void backward_of_max(const float *x, long x_stride, const float *g, float *d, long d_stride, long batch, long height,
                     long width, long channels, bool add, int threads) {
  const long pixels = height * width, windows = windows_of<STRIDE>(height) * windows_of<STRIDE>(width);
#pragma omp parallel num_threads(threads)
  {
    const Scratch scratch(MaxBackward<LANES, STRIDE>::scratch_floats(width));
#pragma omp for schedule(static)
    for (long n = 0; n < batch; n++)
      for_channels(channels, [&](auto lanes, long c) {
        const MaxBackward<decltype(lanes)::lanes, STRIDE> backward(scratch.get(), height, width);
        backward.run(x + n * pixels * x_stride + c, x_stride, g + n * windows * channels + c, channels,
                     d + n * pixels * d_stride + c, d_stride, add);
      });
  }
}

// Row r of the mean's backward; `columns` is a scratch of a row of windows and 2 pixels.
template <int N, int STRIDE>
INLINE void mean_backward_row(const float *g, long g_stride, float *d, long d_stride, float *columns, Span over,
                              long height, long width, bool add) {
  const long windows = windows_of<STRIDE>(width);
  store(columns, Values<N>{});
  store(columns + (windows + 1) * N, Values<N>{});
  for (long w = 0; w < windows; w++) {
    const long across = count_of<STRIDE>(w, width);
    Values<N> sum = {};
    for (long h = over.first; h <= over.last; h++)
      sum += load<N>(g + (h * windows + w) * g_stride) * INVERSE[count_of<STRIDE>(h, height) * across];
    store(columns + (w + 1) * N, sum);
  }
  spread_row<N, STRIDE>(d, d_stride, width, add, [=](long w, int) { return load<N>(columns + (w + 1) * N); });
}

template <int STRIDE>
void backward_of_mean(const float *g, float *d, long d_stride, long batch, long height, long width, long channels,
                      bool add, int threads) {
  const long windows = windows_of<STRIDE>(height) * windows_of<STRIDE>(width);
#pragma omp parallel num_threads(threads)
  {
    const Scratch columns((windows_of<STRIDE>(width) + 2) * LANES);
#pragma omp for schedule(static)
    for (long item = 0; item < batch * height; item++) {
      const Span over = windows_over<STRIDE>(item % height, height);
      for_channels(channels, [&](auto lanes, long c) {
        mean_backward_row<decltype(lanes)::lanes, STRIDE>(g + item / height * windows * channels + c, channels,
                                                          d + item * width * d_stride + c, d_stride, columns.get(),
                                                          over, height, width, add);
      });
    }
  }
}

}  // namespace

void max_pool(const float *x, long x_stride, float *y, long batch, long height, long width, long channels, int stride,
              int threads) {
  const auto run = stride == 1 ? pool<Max, 1> : pool<Max, 2>;
  run(x, x_stride, y, batch, height, width, channels, threads);
}

void avg_pool(const float *x, long x_stride, float *y, long batch, long height, long width, long channels, int stride,
              int threads) {
  const auto run = stride == 1 ? pool<Mean, 1> : pool<Mean, 2>;
  run(x, x_stride, y, batch, height, width, channels, threads);
}

void max_pool_backward(const float *x, long x_stride, const float *g, float *d, long d_stride, long batch, long height,
                       long width, long channels, int stride, int add, int threads) {
  const auto run = stride == 1 ? backward_of_max<1> : backward_of_max<2>;
  run(x, x_stride, g, d, d_stride, batch, height, width, channels, add, threads);
}

void avg_pool_backward(const float *g, float *d, long d_stride, long batch, long height, long width, long channels,
                       int stride, int add, int threads) {
  const auto run = stride == 1 ? backward_of_mean<1> : backward_of_mean<2>;
  run(g, d, d_stride, batch, height, width, channels, add, threads);
}

}  // namespace ISA
