// The library's C interface: a call goes to the kernels of the best instruction set that this CPU has.
#include "kernels.h"

namespace {

enum class Set { baseline, avx2, avx512 };

Set detect() {
#ifdef MSGDAS_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) return Set::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Set::avx2;
#endif
  return Set::baseline;
}

Set chosen = detect();

}  // namespace

#ifdef MSGDAS_X86
#define CALL(NAME, ...)                                        \
  (chosen == Set::avx512 ? avx512::NAME(__VA_ARGS__)           \
   : chosen == Set::avx2 ? avx2::NAME(__VA_ARGS__)             \
                         : baseline::NAME(__VA_ARGS__))
#else
#define CALL(NAME, ...) baseline::NAME(__VA_ARGS__)
#endif

extern "C" {

// One more with every change of a signature below; __init__.py has the same number.
int msgdas_interface() { return 3; }

int msgdas_instruction_set() { return static_cast<int>(chosen); }

// For tests and comparisons: 0 baseline, 1 AVX2, 2 AVX-512. Returns what is in use afterwards.
int msgdas_limit_instruction_set(int highest) {
  const Set best = detect();
  chosen = static_cast<int>(best) < highest ? best : static_cast<Set>(highest);
  return static_cast<int>(chosen);
}

void msgdas_depthwise_weight_grad(const float *x, const float *g, float *dw, long batch, long height, long width,
                                  long channels, int side, int dilation, int stride, int threads) {
  CALL(depthwise_weight_grad, x, g, dw, batch, height, width, channels, side, dilation, stride, threads);
}

void msgdas_batch_stats(const float *z, long rows, long channels, float *stats, double epsilon, int threads) {
  CALL(batch_stats, z, rows, channels, stats, epsilon, threads);
}

void msgdas_accumulate(const float *z, long rows, long channels, double gate, float *out, long stride, float *stats,
                       double epsilon, int threads) {
  CALL(accumulate, z, rows, channels, gate, out, stride, stats, epsilon, threads);
}

double msgdas_norm_backward(const float *dy, long dy_stride, float *z, long rows, long channels, double gate,
                            const float *stats, int threads) {
  return CALL(norm_backward, dy, dy_stride, z, rows, channels, gate, stats, threads);
}

void msgdas_add_where_positive(float *d, long d_stride, const float *da, const float *x, long x_stride, long rows,
                               long channels, int threads) {
  CALL(add_where_positive, d, d_stride, da, x, x_stride, rows, channels, threads);
}

void msgdas_max_pool(const float *x, long x_stride, float *y, long batch, long height, long width, long channels,
                     int stride, int threads) {
  CALL(max_pool, x, x_stride, y, batch, height, width, channels, stride, threads);
}

// `add`: to what is in d, else d is overwritten.
void msgdas_max_pool_backward(const float *x, long x_stride, const float *g, float *d, long d_stride, long batch,
                              long height, long width, long channels, int stride, int add, int threads) {
  CALL(max_pool_backward, x, x_stride, g, d, d_stride, batch, height, width, channels, stride, add, threads);
}

void msgdas_avg_pool(const float *x, long x_stride, float *y, long batch, long height, long width, long channels,
                     int stride, int threads) {
  CALL(avg_pool, x, x_stride, y, batch, height, width, channels, stride, threads);
}

void msgdas_avg_pool_backward(const float *g, float *d, long d_stride, long batch, long height, long width,
                              long channels, int stride, int add, int threads) {
  CALL(avg_pool_backward, g, d, d_stride, batch, height, width, channels, stride, add, threads);
}

void msgdas_separable_forward(const Separable *call, int known, double gate, float *out, long out_stride) {
  CALL(separable_forward, *call, known, gate, out, out_stride);
}

double msgdas_separable_backward(const Separable *call, const float *dy, long dy_stride, double gate,
                                 const SeparableGrads *grads) {
  return CALL(separable_backward, *call, dy, dy_stride, gate, *grads);
}

void msgdas_projection_forward(const Projection *call, float *xhat, float *stats, int known, double epsilon) {
  CALL(projection_forward, *call, xhat, stats, known, epsilon);
}

void msgdas_projection_backward(const Projection *call, const float *d, const float *xhat, const float *rstd, float *dx,
                                float *first_dw, float *second_dw) {
  float *const dw[2] = {first_dw, second_dw};
  CALL(projection_backward, *call, d, xhat, rstd, dx, dw);
}

}  // extern "C"
