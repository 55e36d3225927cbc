// Weight gradient of depthwise convolutions on NHWC maps: dw[tap, c] = sum over pixels p of x[p + tap, c] * g[p, c].
#include "kernels.h"
#include "padded.h"
#include "parts.h"

namespace ISA {

void depthwise_weight_grad(const float *x, const float *g, float *dw, long batch, long height, long width,
                           long channels, int side, int dilation, int stride, int threads) {
  const long border = side / 2 * long(dilation), row = width * channels, size = side * side * channels;
  const long out_height = (height + stride - 1) / stride, out_row = (width + stride - 1) / stride * channels;
  const Parts parts(batch);
  float *partial = scratch<struct OfCall>(parts.count * size);
#pragma omp parallel num_threads(threads)
  {
    const Padded a = padded(scratch<struct OfThread>(padded_floats(height, width, channels, border)), height, width,
                            channels, border);
#pragma omp for schedule(static)
    for (long part = 0; part < parts.count; part++) {
      float *sums = partial + part * size;
      std::fill_n(sums, size, 0.0f);
      for (long n = parts.begin(part); n < parts.begin(part + 1); n++) {
        for (long h = 0; h < height; h++) std::copy_n(x + (n * height + h) * row, row, a.at(h, 0));
        const float *grads = g + n * out_height * out_row;
        add_tap_sums(a, side, dilation, stride, grads, out_row, out_height, out_row / channels, sums);
      }
    }
  }
  for (long i = 0; i < size; i++) {
    float sum = 0;
    for (long part = 0; part < parts.count; part++) sum += partial[part * size + i];
    dw[i] = sum;
  }
}

}  // namespace ISA
