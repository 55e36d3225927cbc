"""What PyTorch's CPU kernels allocate inside and give back: measured on this CPU, operator by operator.

oneDNN chooses among implementations by shape, layout and instruction set, and each has scratch of its own: reordered
weights, padded blocks, partial sums, copies of strided maps. No formula covers them, so each distinct call runs once
for real on a few samples, under the allocator's own events.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ...profiles.predictor import Call
from ...profiles.tracker import AllocatorBytes

_aten = torch.ops.aten
# The maps among each operator's arguments; their first dimension is the batch.
_MAPS: dict[Any, tuple[int, ...]] = {
    _aten.convolution.default: (0,),
    _aten.convolution_backward.default: (0, 1),
    _aten.max_pool2d_with_indices.default: (0,),
    _aten.max_pool2d_with_indices_backward.default: (0, 1, 7),
    _aten.native_batch_norm.default: (0,),
    _aten.native_batch_norm_backward.default: (0, 1),
    _aten.batch_norm_update_stats.default: (0,),
}
# Batches that are run; the scratch of larger ones lies on the line through these two.
FEW, MORE = 8, 16


class CpuScratch:
    """The scratch of a `Recorder` on meta tensors, each signature measured once.

    Some kernels hold partial sums for each thread: torch's number of threads has to be that of the search.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[int, int]] = {}

    def __call__(self, func: Any, call: Call) -> tuple[int, ...]:
        """Sizes in bytes, what is fixed and what grows with the batch."""
        maps = _MAPS.get(func)
        if maps is None:
            return ()
        args = call[0]
        batch = args[maps[0]].shape[0]
        key = (
            func,
            torch.get_num_threads(),
            min(batch, MORE + 1),
            *(_signature(a, n in maps) for n, a in enumerate(args)),
        )
        if key not in self._known:
            self._known[key] = _line(func, args, batch)
        fixed_bytes, per_sample_bytes = self._known[key]
        return tuple(size for size in (fixed_bytes, batch * per_sample_bytes) if size > 0)


def _line(func: Any, args: Sequence[Any], batch: int) -> tuple[int, int]:
    """(fixed bytes, bytes per sample)."""
    if batch <= MORE:
        return _measured_bytes(func, args, batch), 0
    few_bytes, more_bytes = (_measured_bytes(func, args, number) for number in (FEW, MORE))
    per_sample_bytes = max(0, more_bytes - few_bytes) // (MORE - FEW)
    return more_bytes - MORE * per_sample_bytes, per_sample_bytes


def _measured_bytes(func: Any, args: Sequence[Any], batch: int) -> int:
    """What the real operator has alive at most, beyond its results."""
    with torch.no_grad(), _disable_current_modes():
        real = [_real(arg, batch if n in _MAPS[func] else None) for n, arg in enumerate(args)]
        # The first call also makes what a library keeps from then on.
        func(*real)
        with AllocatorBytes() as allocated:
            results = func(*real)
    del results
    return allocated.peak_bytes - allocated.live_bytes


def _signature(arg: Any, is_map: bool) -> Hashable:
    if isinstance(arg, Tensor):
        return (tuple(arg.shape)[is_map:], arg.stride()[is_map:], arg.dtype)
    return tuple(arg) if isinstance(arg, list) else arg


def _real(arg: Any, batch: int | None) -> Any:
    """The argument with data; a map with another batch."""
    if not isinstance(arg, Tensor):
        return arg
    shape = arg.shape if batch is None else (batch, *arg.shape[1:])
    return torch.empty_strided(shape, arg.stride(), dtype=arg.dtype, device="cpu").zero_()
