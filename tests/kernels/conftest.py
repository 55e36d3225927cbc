"""Triton's interpreter runs the kernels where there is no GPU."""
