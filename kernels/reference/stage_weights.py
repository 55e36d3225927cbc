"""Weight gradients of the branches of a node in plain PyTorch: the twin of `kernels.stage_weights`.

Shape suffixes: as in `kernels.branches`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..branches import AVG, AVG_DIRECT, CONV1, CONV3, MAX, NONE, REDUCE, SKIP, Geometry
from . import conv
from .grouped_stage import depthwise_output, inner_activation, wide
from .rows import Row, rows_of, source_map
from .stage_backward import inner_grad, output_grad

WITHOUT_WEIGHTS = (NONE, SKIP, MAX, AVG, AVG_DIRECT)


def stage_weight_grads(
    d_nodes: Tensor, v_JBHWC: Tensor | None, z_JBHWC: Tensor, stats_J2C: Tensor, sums_J2C: Tensor, u_JBHWC: Tensor,
    inputs_IBHWC: Tensor, nodes: Tensor, z1_JBHWC: Tensor | None, stats1_J2C: Tensor | None, branches_J8: Tensor,
    gates_EO: Tensor, depthwise_TC: Tensor, d_depthwise_TC: Tensor, d_pointwise_SCC: Tensor, d_dense_D9CC: Tensor,
    geometry: Geometry, *, last: bool,
) -> None:  # fmt: skip
    """Write the gradients of the rows and slots that the branches name; `last` as in `point_backward`.

    With `last` z1 and stats1 are those of the inner BatchNorms; without, z, stats and sums are.
    """
    dtype = wide(inputs_IBHWC.dtype)
    for row in rows_of(branches_J8, geometry):
        if row.code in WITHOUT_WEIGHTS or (not last and row.stages < 2):
            continue
        if last:
            dz = output_grad(row, d_nodes, z_JBHWC, stats_J2C, sums_J2C, gates_EO, geometry)
        else:
            dz = inner_grad(row, v_JBHWC, z_JBHWC, stats_J2C, sums_J2C)
        second = last and row.stages == 2
        if second:
            assert z1_JBHWC is not None and stats1_J2C is not None
            a = inner_activation(row, z1_JBHWC, stats1_J2C)
        else:
            a = torch.relu(source_map(inputs_IBHWC, nodes, row.source, geometry).to(dtype))
        if row.code == CONV3:
            _write_dense(row, dz, a, d_dense_D9CC)
        elif row.code == CONV1:
            d_pointwise_SCC[row.points[0]] = conv.pointwise_weight_grad(dz, a)
        elif row.code == REDUCE:
            half = dz.shape[-1] // 2
            for number, phase in enumerate(conv.phases_of_reduction(a)):
                part = slice(number * half, (number + 1) * half)
                d_pointwise_SCC[row.points[0], part] = conv.pointwise_weight_grad(dz[..., part], phase)
        else:
            stage = int(second)
            t = depthwise_output(row, a, depthwise_TC, stage)
            d_pointwise_SCC[row.points[stage]] = conv.pointwise_weight_grad(dz, t)
            _write_taps(row, stage, u_JBHWC[row.number].to(dtype), a, depthwise_TC, d_depthwise_TC)


def _write_taps(row: Row, stage: int, u: Tensor, a: Tensor, depthwise_TC: Tensor, d_depthwise_TC: Tensor) -> None:
    weight = row.depthwise(depthwise_TC, stage).to(u.dtype)
    stride = row.stride if stage == 0 else 1
    _, dw = conv.depthwise_grads(u, a, weight, row.dilation(), stride, need_x=False, need_w=True)
    assert dw is not None
    row.depthwise(d_depthwise_TC, stage).copy_(dw)


def _write_dense(row: Row, dz: Tensor, a: Tensor, d_dense_D9CC: Tensor) -> None:
    channels = dz.shape[-1]
    weight = dz.new_empty(channels, channels, 3, 3)
    _, dw = conv.conv_grads(dz, a, weight, 1, need_x=False, need_w=True)
    assert dw is not None
    d_dense_D9CC[row.points[0]] = dw.permute(2, 3, 1, 0).reshape(9, channels, channels)
