"""Triton's interpreter runs the kernels where there is no GPU; its bf16 is mended here for all tests below."""

from __future__ import annotations

from msgdas.kernels import backend

if backend.interpreting():
    from msgdas.kernels import interpreter

    interpreter.mend()
