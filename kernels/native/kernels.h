// What every instruction set offers; the files named after its functions say what it computes.
//
// All maps are fp32 NHWC, contiguous but where a `stride` says how far apart their rows of channels lie (a slice of a
// wider map along its channels). A result does not depend on `threads`.
#pragma once

#include "projection.h"
#include "separable.h"

#define MSGDAS_KERNELS(SET)                                                                                            \
  namespace SET {                                                                                                      \
  void depthwise_weight_grad(const float *x, const float *g, float *dw, long batch, long height, long width,           \
                             long channels, int side, int dilation, int stride, int threads);                          \
  void batch_stats(const float *z, long rows, long channels, float *stats, double epsilon, int threads);               \
  void accumulate(const float *z, long rows, long channels, double gate, float *out, long out_stride, float *stats,    \
                  double epsilon, int threads);                                                                        \
  double norm_backward(const float *dy, long dy_stride, float *z, long rows, long channels, double gate,               \
                       const float *stats, int threads);                                                               \
  void add_where_positive(float *d, long d_stride, const float *da, const float *x, long x_stride, long rows,          \
                          long channels, int threads);                                                                 \
  void max_pool(const float *x, long x_stride, float *y, long batch, long height, long width, long channels,           \
                int stride, int threads);                                                                              \
  void max_pool_backward(const float *x, long x_stride, const float *g, float *d, long d_stride, long batch,           \
                         long height, long width, long channels, int stride, int add, int threads);                    \
  void avg_pool(const float *x, long x_stride, float *y, long batch, long height, long width, long channels,           \
                int stride, int threads);                                                                              \
  void avg_pool_backward(const float *g, float *d, long d_stride, long batch, long height, long width, long channels,  \
                         int stride, int add, int threads);                                                            \
  void separable_forward(const Separable &call, int known, double gate, float *out, long out_stride);                  \
  double separable_backward(const Separable &call, const float *dy, long dy_stride, double gate,                       \
                            const SeparableGrads &grads);                                                              \
  void projection_forward(const Projection &call, float *xhat, float *stats, int known, double epsilon);               \
  void projection_backward(const Projection &call, const float *d, const float *xhat, const float *rstd, float *dx,    \
                           float *const dw[2]);                                                                        \
  }

MSGDAS_KERNELS(baseline)
#ifdef MSGDAS_X86
MSGDAS_KERNELS(avx2)
MSGDAS_KERNELS(avx512)
#endif
