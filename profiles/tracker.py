"""Live bytes of a stretch of code, counted storage by storage.

On a CPU there is no allocator to ask, so every new storage is counted when an operation returns it and
discounted when it dies. Against the CPU allocator's own events the peak is exact to a few bytes; scratch
memory that a kernel takes and frees inside is not seen.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Context manager that counts the bytes of storages born inside it.

    Storages that lived before are not counted, nor is their end; a storage that is still alive on leaving
    stays in `live_bytes`.

    Attributes:
        live_bytes: alive now.
        peak_bytes: the most that was alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
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
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key, 0)
