// The preparation of a cell's input as the C interface hands it over; __init__.py has the same fields.
#pragma once

struct Projection {
  const float *x;           // [batch, height, width, inputs], contiguous.
  const float *weights[2];  // [outputs, inputs], or two of [outputs / 2, inputs].
  long batch, height, width, inputs, outputs;
  int threads;
};
