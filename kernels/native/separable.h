// A separable convolution as the C interface hands it over; __init__.py has the same fields.
#pragma once

struct Separable {
  const float *x;     // Input; its pixels lie x_stride values apart.
  const float *depthwise[2], *pointwise[2];  // Of each stage: [taps, C] and [out, in].
  float *z[2];        // Of each stage before its BatchNorm, contiguous.
  float *stats[2];    // (mean, rstd) [2, C] of each z.
  long x_stride, batch, height, width, channels;
  int side, dilation, stride, stages, threads;
  double epsilon;
};

// Where gradients go; null where they are not wanted. dx is added to where `add` says so.
struct SeparableGrads {
  float *dx, *depthwise[2], *pointwise[2];
  long dx_stride;
  int add;
};
