"""What each operator allocates and frees inside, moves and computes, from the shapes of its arguments.

Sizes are those of the launchers in the modules of the same names, on a GPU. Bytes and operations are those of the
dearest sample, for a launch has the same shape whatever was sampled: every branch a 5x5 depthwise convolution and a
pointwise one, every map read or written once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from triton import cdiv

from .branches import Geometry
from .drop_mask import ELEMENTS, ROWS
from .launch import blocks_of
from .library import TAPS
from .stage_weights import MAX_GROUPS

Arguments = Mapping[str, Any]
# Maps of a branch that a launch reads and writes, and the operations on each of their values: fixed, and per channel.
_EFFORTS: dict[str, tuple[int, int, int]] = {
    "grouped_stage": (2, 2 * TAPS, 2),
    "bn_combine": (2, 4, 0),
    "bn_combine_backward": (2, 4, 0),
    "point_backward": (3, 6, 2),
    "taps_backward": (3, 2 * TAPS, 0),
    "gather_backward": (3, 2 * TAPS, 0),
    "stage_weight_grads": (4, 2 * TAPS, 2),
}


def scratch_sizes(func: Any, call: tuple[Sequence[Any], Mapping[str, Any]]) -> tuple[int, ...]:
    """Sizes in bytes of what an operator of this library has alive inside at most; none for all others.

    Args:
        func: the operator.
        call: its positional and keyword arguments.
    """
    if func.namespace != "msgdas":
        return ()
    name = _name(func)
    size_bytes = _SCRATCH[name](_arguments(func, call)) if name in _SCRATCH else 0
    return (size_bytes,) if size_bytes else ()


def effort(func: Any, call: tuple[Sequence[Any], Mapping[str, Any]]) -> tuple[int, int] | None:
    """(bytes moved, floating-point operations) of an operator of this library; None where its arguments tell."""
    if func.namespace != "msgdas" or _name(func) not in _EFFORTS:
        return None
    given = _arguments(func, call)
    geometry, num = Geometry(*given["geometry"]), given["rows"].shape[0]
    maps, fixed, per_channel = _EFFORTS[_name(func)]
    values = num * geometry.pixels * geometry.channels
    like = given["inputs"] if "inputs" in given else given["z" if "z" in given else "u"]
    return maps * values * like.element_size(), values * (fixed + per_channel * geometry.channels)


def _name(func: Any) -> str:
    return func._schema.name.rpartition("::")[2]


def _arguments(func: Any, call: tuple[Sequence[Any], Mapping[str, Any]]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, call[0], strict=False)) | dict(call[1])


def _wide_bytes(like: Tensor) -> int:
    return 8 if like.dtype == torch.float64 else 4


def _groups(pixels: int, block: int) -> int:
    tiles = cdiv(pixels, block)
    return cdiv(tiles, cdiv(tiles, MAX_GROUPS))


def _grouped_stage(given: Arguments) -> int:
    if given["stats"] is not None:
        return 0
    geometry, like = Geometry(*given["geometry"]), given["inputs"]
    quads = geometry.batch * geometry.out_height * 2 * cdiv(geometry.out_width, 8)
    tiles = cdiv(quads, blocks_of("stage", like.dtype, geometry.channels).pixels)
    return given["rows"].shape[0] * tiles * (2 * geometry.channels + 1) * _wide_bytes(like)


def _bn_combine_backward(given: Arguments) -> int:
    geometry, like = Geometry(*given["geometry"]), given["inputs"]
    b = blocks_of("reduce", like.dtype, geometry.channels)
    tiles = cdiv(geometry.pixels, b.pixels * b.repeat)
    return (1 + given["rows"].shape[0]) * tiles * geometry.channels * _wide_bytes(like)


def _taps_backward(given: Arguments) -> int:
    geometry, like = Geometry(*given["geometry"]), given["u"]
    quads = geometry.batch * geometry.out_height * cdiv(geometry.out_width, 4)
    tiles = cdiv(quads, blocks_of("taps", like.dtype, geometry.channels).pixels)
    return given["rows"].shape[0] * tiles * 2 * geometry.channels * _wide_bytes(like)


def _stage_weight_grads(given: Arguments) -> int:
    """Partial sums of one arena at a time; the next one's are made before the last one's go."""
    geometry, like = Geometry(*given["geometry"]), given["inputs"]
    num, c = given["rows"].shape[0], geometry.channels
    block = blocks_of("weights", like.dtype, c).pixels
    quads = geometry.batch * geometry.out_height * cdiv(geometry.out_width, 4)
    sizes = [_groups(quads, block) * num * c * c]
    if given["d_depthwise"].shape[0]:
        sizes.append(_groups(quads, block) * num * TAPS * c)
    if given["last"] and given["d_dense"].shape[0]:
        sizes.append(_groups(geometry.pixels, block) * num * 9 * c * c)
    pairs = [first + second for first, second in itertools.pairwise(sizes)]
    return max(sizes + pairs) * _wide_bytes(like)


def _prepare_into(given: Arguments) -> int:
    if given["stats"] is not None:
        return 0
    out = given["out"]
    c = out.shape[-1]
    tiles = cdiv(out.numel() // c, blocks_of("point", out.dtype, c).pixels)
    return tiles * 2 * c * _wide_bytes(out)


def _prepare_backward(given: Arguments) -> int:
    d = given["d"]
    c = d.shape[-1]
    pixels = d.numel() // c
    r = blocks_of("reduce", d.dtype, c)
    values = (cdiv(pixels, r.pixels * r.repeat) + 1) * 2 * c
    if given["need_w"]:
        values += _groups(pixels, blocks_of("weights", d.dtype, c).pixels) * c * given["x"].shape[-1]
    return values * _wide_bytes(d)


def _drop_mask(given: Arguments) -> int:
    geometry = Geometry(*given["geometry"])
    parts = cdiv(geometry.batch * geometry.out_width * geometry.channels, ELEMENTS)
    return given["rows"].shape[0] * cdiv(geometry.out_height, ROWS) * parts * 4


_SCRATCH: dict[str, Callable[[Arguments], int]] = {
    "grouped_stage": _grouped_stage,
    "bn_combine_backward": _bn_combine_backward,
    "taps_backward": _taps_backward,
    "stage_weight_grads": _stage_weight_grads,
    "prepare_into": _prepare_into,
    "prepare_backward": _prepare_backward,
    "drop_mask": _drop_mask,
}
