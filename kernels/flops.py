"""FLOPs of the operators for torch's FlopCounterMode: 2 for each multiply-add of convolutions and products.

Shapes do not tell what was sampled, so a branch counts as the dearest one: a 5x5 depthwise convolution and a
pointwise one. Shape suffixes: as in `branches`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from .branches import Geometry

Shape = Sequence[int]
TAPS = 25


def _outputs(rows: Shape, geometry: Sequence[int]) -> int:
    """Values of all branches' maps."""
    g = Geometry(*geometry)
    return rows[0] * g.pixels * g.channels


def _stage(values: int, channels: int) -> int:
    return 2 * values * (TAPS + channels)


def _grouped_stage(
    inputs: Shape, nodes: Shape, rows: Shape, depthwise: Shape, pointwise: Shape, dense: Shape, z1: Any, stats1: Any,
    stats: Any, geometry: Sequence[int], last: bool, **_: Any,
) -> int:  # fmt: skip
    return _stage(_outputs(rows, geometry), inputs[-1])


def _point_backward(
    d_nodes: Shape, v: Any, z: Shape, stats: Shape, sums: Shape, rows: Shape, gates: Shape, pointwise: Shape,
    dense: Shape, u: Shape, geometry: Sequence[int], last: bool, **_: Any,
) -> int:  # fmt: skip
    return 2 * math.prod(z) * z[-1]


def _taps_backward(u: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(u) * TAPS


def _gather_backward(d_nodes: Shape, u: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(u) * TAPS


def _stage_weight_grads(d_nodes: Shape, v: Any, z: Shape, *_: Any, **__: Any) -> int:
    # The depthwise output is made again, then both weights' gradients.
    return _stage(math.prod(z), z[-1]) + 2 * math.prod(z) * TAPS


def _prepare_into(x: Shape, first: Shape, second: Any, out: Shape, stats: Any, **_: Any) -> int:
    return 2 * math.prod(out) * x[-1]


def _prepare_backward(
    d: Shape, xhat: Shape, x: Shape, first: Shape, second: Any, stats: Shape, need_x: bool, need_w: bool, **_: Any
) -> int:
    return 2 * math.prod(d) * x[-1] * (need_x + need_w)


FORMULAS: dict[str, Callable[..., int]] = {
    "grouped_stage": _grouped_stage,
    "point_backward": _point_backward,
    "taps_backward": _taps_backward,
    "gather_backward": _gather_backward,
    "stage_weight_grads": _stage_weight_grads,
    "prepare_into": _prepare_into,
    "prepare_backward": _prepare_backward,
}


def register() -> None:
    """Tell torch's FLOP counter of the operators, which have to exist."""
    for name, formula in FORMULAS.items():
        register_flop_formula(getattr(torch.ops.msgdas, name))(formula)
