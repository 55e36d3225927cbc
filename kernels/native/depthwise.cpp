// Weight gradient of depthwise convolutions on NHWC maps: dw[tap, c] = sum over pixels p of x[p + tap, c] * g[p, c].
#include "kernels.h"
#include "padded.h"
#include "parts.h"

namespace ISA {

void depthwise_weight_grad(const float *x, const float *g, float *dw, long batch, long height, long width,
                           long channels, int side, int dilation, int stride, int threads) {
  const long row = width * channels, size = side * side * channels;
  const long out_height = (height + stride - 1) / stride, out_row = (width + stride - 1) / stride * channels;
  const Parts parts(batch);
  const std::vector<float> zeros(row);
  float *partial = scratch<struct OfCall>(parts.count * size);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long part = 0; part < parts.count; part++) {
    float *sums = partial + part * size;
    std::fill_n(sums, size, 0.0f);
    for (long n = parts.begin(part); n < parts.begin(part + 1); n++)
      add_tap_sums({x + n * height * row, g + n * out_height * out_row, zeros.data(), row, out_row, height, width,
                    channels, side, dilation, stride},
                   sums);
  }
  for (long i = 0; i < size; i++) {
    float sum = 0;
    for (long part = 0; part < parts.count; part++) sum += partial[part * size + i];
    dw[i] = sum;
  }
}

}  // namespace ISA
