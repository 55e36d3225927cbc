"""One stage of the branches of a node in plain PyTorch: the twin of `kernels.grouped_stage`.

Shape suffixes: as in `kernels.branches`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..branches import AVG, AVG_DIRECT, CONV1, CONV3, MAX, NONE, REDUCE, SKIP, Geometry
from . import batchnorm, conv, pooling
from .rows import SEPARABLE, Row, rows_of, source_map


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums and products of maps of this dtype are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def grouped_stage(
    inputs_IBHWC: Tensor, nodes: Tensor, branches_J8: Tensor, depthwise_TC: Tensor, pointwise_SCC: Tensor,
    dense_D9CC: Tensor, z1_JBHWC: Tensor | None, stats1_J2C: Tensor | None, geometry: Geometry, *, last: bool,
    stats_J2C: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(z_JBHWC, stats_J2C): the outputs before BatchNorm and their statistics.

    Args:
        last: False for the first stage of sep_conv (the other branches' planes are left as they are), True for
            the last or only stage of every branch.
        z1_JBHWC, stats1_J2C: of the first stage, where `last`; None if no branch can have two stages.
        stats_J2C: statistics of an earlier pass; then none are computed.
    """
    shape = (geometry.batch, geometry.out_height, geometry.out_width, geometry.channels)
    z_JBHWC = inputs_IBHWC.new_empty(len(branches_J8), *shape)
    dtype = wide(inputs_IBHWC.dtype)
    found = torch.zeros(len(branches_J8), 2, geometry.channels, dtype=dtype, device=inputs_IBHWC.device)
    found[:, 1] = 1
    for row in rows_of(branches_J8, geometry):
        if row.code in (NONE, SKIP) or (not last and row.stages < 2):
            continue
        if last and row.stages == 2:
            assert z1_JBHWC is not None and stats1_J2C is not None
            z = second_stage(row, z1_JBHWC, stats1_J2C, depthwise_TC, pointwise_SCC)
        else:
            x = source_map(inputs_IBHWC, nodes, row.source, geometry).to(dtype)
            z = first_stage(row, x, depthwise_TC, pointwise_SCC, dense_D9CC)
        if stats_J2C is None and row.code != AVG_DIRECT:
            mean_C, rstd_C = batchnorm.batch_stats(z.contiguous())
            found[row.number, 0], found[row.number, 1] = mean_C, rstd_C
        z_JBHWC[row.number] = z.to(z_JBHWC.dtype)
    return z_JBHWC, found if stats_J2C is None else stats_J2C


def inner_activation(row: Row, z1_JBHWC: Tensor, stats1_J2C: Tensor) -> Tensor:
    """relu(BatchNorm(z1)), input of the second stage."""
    z1 = z1_JBHWC[row.number].to(wide(z1_JBHWC.dtype))
    return batchnorm.normalize_relu(z1, (stats1_J2C[row.number, 0], stats1_J2C[row.number, 1]))


def depthwise_output(row: Row, a: Tensor, depthwise_TC: Tensor, stage: int) -> Tensor:
    """Input of a stage's pointwise convolution."""
    weight = row.depthwise(depthwise_TC, stage).to(a.dtype)
    return conv.depthwise(a, weight, row.dilation(), row.stride if stage == 0 else 1)


def second_stage(row: Row, z1_JBHWC: Tensor, stats1_J2C: Tensor, depthwise_TC: Tensor, pointwise_SCC: Tensor) -> Tensor:
    t = depthwise_output(row, inner_activation(row, z1_JBHWC, stats1_J2C), depthwise_TC, 1)
    return conv.pointwise(t, pointwise_SCC[row.points[1]].to(t.dtype))


def first_stage(row: Row, x: Tensor, depthwise_TC: Tensor, pointwise_SCC: Tensor, dense_D9CC: Tensor) -> Tensor:
    """The first or only stage of a branch that has a map."""
    if row.code == MAX:
        return pooling.max_pool(x, row.stride)
    if row.code in (AVG, AVG_DIRECT):
        return pooling.avg_pool(x, row.stride)
    a = torch.relu(x)
    if row.code in SEPARABLE:
        t = depthwise_output(row, a, depthwise_TC, 0)
        return conv.pointwise(t, pointwise_SCC[row.points[0]].to(t.dtype))
    if row.code == CONV3:
        return conv.conv(a, dense_weight(row, dense_D9CC).to(a.dtype), 1)
    weight = pointwise_SCC[row.points[0]].to(a.dtype)
    if row.code == REDUCE:
        half = weight.shape[0] // 2
        return conv.factorized_reduce(a, (weight[:half], weight[half:]))
    assert row.code == CONV1
    return conv.pointwise(a, weight)


def dense_weight(row: Row, dense_D9CC: Tensor) -> Tensor:
    """[out, in, 3, 3] view of a dense slot."""
    channels = dense_D9CC.shape[-1]
    return dense_D9CC[row.points[0]].view(3, 3, channels, channels).permute(3, 2, 0, 1)
