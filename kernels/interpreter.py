"""Triton's interpreter, made fit for proof: bf16 as a GPU computes it, and every access to memory seen.

The interpreter offers no hook for either, so this module puts subclasses of its builder and its launcher in place
of its own. That is the one place in the project where another package's objects are replaced; it is for tests and
for `ledger`, never for a search. Written for Triton 3.8.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

FLOATS = (tl.float32, tl.float64)


class Observer(Protocol):
    """What happens during launches. Addresses are uint64, in bytes, of the lanes that are not masked out."""

    def begin(self, kernel: str, arguments: list[Any]) -> None:
        """A launch starts; `arguments` are the tensors and numbers that it was given."""

    def end(self) -> None:
        """The launch is over."""

    def access(self, kind: str, addresses: np.ndarray, size_bytes: int, program: tuple[int, ...]) -> None:
        """`load`, `store` or `atomic` of elements of `size_bytes`, before it happens; may raise."""

    def product(self, flops: int) -> None:
        """A matrix product."""


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Bits (uint16) of fp32 values, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.reshape(np.shape(values)))


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """fp32 values of bf16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


class MendedBuilder(interpreter.InterpreterBuilder):  # type: ignore[misc]
    """Rounds to bf16 instead of cutting off, and multiplies bf16 matrices by value instead of by bit pattern."""

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if target == tl.bfloat16 and source in FLOATS:
            return interpreter.TensorHandle(to_bf16(src.data.astype(np.float32)), target)
        if source == tl.bfloat16 and target in FLOATS:
            values = from_bf16(src.data).astype(interpreter._get_np_dtype(target))
            return interpreter.TensorHandle(values, target)
        return super().cast_impl(src, dst_type)

    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        to_nearest = rounding_mode in (None, interpreter._ir.ROUNDING_MODE.RTNE)
        if dst_type.scalar == tl.bfloat16 and src.dtype.scalar in FLOATS and to_nearest:
            return self.cast_impl(src, dst_type)
        return super().create_fp_to_fp(src, dst_type, rounding_mode)

    def create_dot(self, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        return super().create_dot(_by_value(a), _by_value(b), d, input_precision, max_num_imprecise_acc)


def _by_value(matrix: Any) -> Any:
    if matrix.dtype.scalar != tl.bfloat16:
        return matrix
    return interpreter.TensorHandle(from_bf16(matrix.data), tl.float32)


class WatchedBuilder(MendedBuilder):
    """Tells an observer of every access before it happens."""

    observer: Observer

    def _tell(self, kind: str, pointers: Any, mask: np.ndarray | None) -> None:
        addresses = pointers.data
        if mask is not None:
            addresses, mask = np.broadcast_arrays(addresses, mask)
            addresses = addresses[mask.astype(bool)]
        size_bytes = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        self.observer.access(kind, addresses.ravel(), size_bytes, tuple(self.grid_idx))

    def create_masked_load(self, ptrs: Any, mask: Any, *rest: Any) -> Any:
        self._tell("load", ptrs, mask.data)
        return super().create_masked_load(ptrs, mask, *rest)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        self._tell("store", ptrs, mask.data)
        return super().create_masked_store(ptrs, value, mask, *rest)

    def create_atomic_rmw(self, rmw_op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
        self._tell("atomic", ptr, mask.data)
        return super().create_atomic_rmw(rmw_op, ptr, val, mask, *rest)

    def create_atomic_cas(self, ptr: Any, *rest: Any) -> Any:
        self._tell("atomic", ptr, None)
        return super().create_atomic_cas(ptr, *rest)

    def create_dot(self, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        self.observer.product(2 * d.data.size * a.data.shape[-1])
        return super().create_dot(a, b, d, *rest)


@contextlib.contextmanager
def _builder_is(builder_class: type) -> Iterator[None]:
    before = type(interpreter.interpreter_builder)
    interpreter.interpreter_builder.__class__ = builder_class
    try:
        yield
    finally:
        interpreter.interpreter_builder.__class__ = before


def mend() -> None:
    """From now on bf16 in this process is rounded and multiplied as on a GPU."""
    interpreter.interpreter_builder.__class__ = MendedBuilder


def unmended() -> contextlib.AbstractContextManager[None]:
    """The interpreter as Triton ships it, for the test that notices when `mend` has become superfluous."""
    return _builder_is(interpreter.InterpreterBuilder)


@contextlib.contextmanager
def watched(observer: Observer) -> Iterator[None]:
    """Tell `observer` of all launches inside; its exceptions come out of the launch as they are."""

    class Launch(interpreter.GridExecutor):  # type: ignore[misc]
        def __call__(self, *arguments: Any, **keywords: Any) -> None:
            observer.begin(self.fn.__name__, [*arguments, *keywords.values()])
            try:
                super().__call__(*arguments, **keywords)
            except interpreter.InterpreterError as error:
                raise _first_cause(error) from None
            observer.end()

    plain = interpreter.GridExecutor
    interpreter.GridExecutor = Launch
    try:
        with _builder_is(WatchedBuilder):
            interpreter.interpreter_builder.observer = observer
            yield
    finally:
        interpreter.GridExecutor = plain
        interpreter.interpreter_builder.__dict__.pop("observer", None)


def _first_cause(error: BaseException) -> BaseException:
    while isinstance(error, interpreter.InterpreterError) and error.__cause__ is not None:
        error = error.__cause__
    return error
