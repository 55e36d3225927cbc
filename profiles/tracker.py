"""Live bytes of a stretch of code, counted storage by storage.

On a CPU there is no allocator to ask, so every new storage is counted when an operation returns it and
discounted when it dies. Against the CPU allocator's own events the peak is exact to a few bytes; scratch
memory that a kernel takes and frees inside is not seen by `LiveBytes`, but by `AllocatorBytes`.
"""

from __future__ import annotations

import time
import weakref
from array import array
from typing import Any

import torch
from torch._C._autograd import _disable_profiler_legacy
from torch.autograd import profiler_legacy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Context manager that counts the bytes of storages born inside it.

    Storages that lived before are not counted, nor is their end; a storage that is still alive on leaving
    stays in `live_bytes`.

    Args:
        history: whether to keep `times_ns` and `values`, some ten thousand numbers for a step.

    Attributes:
        live_bytes: alive now.
        peak_bytes: the most that was alive at once.
        times_ns, values: `time.monotonic_ns` and live bytes after each birth and each end.
    """

    def __init__(self, *, history: bool = False) -> None:
        super().__init__()
        self._history = history
        self.times_ns: array[int] = array("q")
        self.values: array[int] = array("q")
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # A result that shares its storage with an argument is a view or an in-place write, not a birth.
        arguments = {
            value.untyped_storage()._cdata for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)
        }
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in arguments:
                self._count(value)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size_bytes = storage._cdata, storage.nbytes()
        if key in self._sizes or not size_bytes:
            return
        self._sizes[key] = size_bytes
        self.live_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self._note()
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key, 0)
        self._note()

    def _note(self) -> None:
        if self._history:
            self.times_ns.append(time.monotonic_ns())
            self.values.append(self.live_bytes)


class AllocatorBytes:
    """Context manager that reads the CPU allocator's own events of this thread and its backward passes.

    Not torch.profiler, which writes to stderr. Cannot be nested, nor used inside another profiler.

    Attributes:
        live_bytes: allocated minus freed inside, after leaving; what lived before and ended inside counts against it.
        peak_bytes: the most that `live_bytes` was, after leaving.
    """

    def __init__(self) -> None:
        self.live_bytes = 0
        self.peak_bytes = 0

    def __enter__(self) -> AllocatorBytes:
        profiler_legacy.profile(profile_memory=True).__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        # As `profiler_legacy.profile` on leaving, which then sums the events up.
        for record in (record for thread in _disable_profiler_legacy() for record in thread):
            if str(record.kind()) == "memory_alloc":
                self.live_bytes += record.cpu_memory_usage()
                self.peak_bytes = max(self.peak_bytes, self.live_bytes)
