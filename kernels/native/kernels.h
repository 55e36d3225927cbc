// What every instruction set offers; norm.cpp, pool.cpp and depthwise.cpp say what it computes.
//
// All maps are fp32 NHWC, contiguous but where a `stride` says how far apart their rows of channels lie (a slice of a
// wider map along its channels). A result does not depend on `threads`.
#pragma once

#define MSGDAS_KERNELS(SET)                                                                                            \
  namespace SET {                                                                                                      \
  void depthwise_weight_grad(const float *x, const float *g, float *dw, long batch, long height, long width,           \
                             long channels, int side, int dilation, int stride, int threads);                          \
  void batch_stats(const float *z, long rows, long channels, float *mean, float *rstd, double epsilon, int threads);   \
  void scale_add(const float *z, long rows, long channels, const float *scale, const float *shift, float *out,         \
                 long out_stride, int threads);                                                                        \
  void scale_to(const float *z, long rows, long channels, const float *scale, const float *shift, float *out,          \
                int behind_relu, int threads);                                                                         \
  double norm_backward(const float *dy, long dy_stride, const float *z, long rows, long channels, double gate,         \
                       const float *mean, const float *rstd, float *dz, int behind_relu, int threads);                 \
  void xhat_backward(const float *dy, const float *xhat, long rows, long channels, const float *rstd, float *dz,       \
                     int threads);                                                                                     \
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
  }

MSGDAS_KERNELS(baseline)
#ifdef MSGDAS_X86
MSGDAS_KERNELS(avx2)
MSGDAS_KERNELS(avx512)
#endif
