"""BatchNorm, gate and sum of a node's branches in plain PyTorch: the twin of `kernels.bn_combine`.

Shape suffixes: as in `kernels.branches`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..branches import AVG_DIRECT, NONE, SKIP, Geometry
from . import batchnorm
from .grouped_stage import wide
from .rows import Row, node_map, rows_of, source_map


def bn_combine(
    inputs_IBHWC: Tensor, nodes: Tensor, z_JBHWC: Tensor, stats_J2C: Tensor, branches_J8: Tensor, gates_EO: Tensor,
    drop_JBHWC: Tensor | None, drop_scale_J: Tensor | None, geometry: Geometry, *, accumulate: bool,
) -> None:  # fmt: skip
    """nodes[output] (+)= sum over branches of gate * BatchNorm(z), or gate * drop * x for skip-connects."""
    dtype = wide(inputs_IBHWC.dtype)
    gates = gates_EO.flatten()
    rows = list(rows_of(branches_J8, geometry))
    out = node_map(nodes, rows[0].output, geometry)
    total = out.to(dtype) if accumulate else torch.zeros_like(out, dtype=dtype)
    for row in rows:
        if row.code == NONE:
            continue
        if row.code == SKIP:
            y = dropped_source(row, inputs_IBHWC, nodes, drop_JBHWC, drop_scale_J, geometry)
        else:
            mean_C, rstd_C = stats_J2C[row.number]
            y = (z_JBHWC[row.number].to(dtype) - mean_C) * rstd_C
        total = total + gates[row.gate] * y
    out.copy_(total)


def dropped_source(
    row: Row, inputs_IBHWC: Tensor, nodes: Tensor, drop_JBHWC: Tensor | None, drop_scale_J: Tensor | None,
    geometry: Geometry,
) -> Tensor:  # fmt: skip
    """What a skip-connect passes on."""
    x = source_map(inputs_IBHWC, nodes, row.source, geometry).to(wide(inputs_IBHWC.dtype))
    if drop_JBHWC is None or drop_scale_J is None:
        return x
    return x * (drop_JBHWC[row.number] * drop_scale_J[row.number])


def bn_combine_backward(
    d_nodes: Tensor, inputs_IBHWC: Tensor, nodes: Tensor, z_JBHWC: Tensor, stats_J2C: Tensor, branches_J8: Tensor,
    drop_JBHWC: Tensor | None, drop_scale_J: Tensor | None, geometry: Geometry,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(sums_J2C, d_gates_J): sum of dy and of dy * xhat, and the gates' gradients, which are sums of the latter."""
    dtype = wide(inputs_IBHWC.dtype)
    sums = torch.zeros_like(stats_J2C)
    d_gates = stats_J2C.new_zeros(len(branches_J8))
    for row in rows_of(branches_J8, geometry):
        dy = node_map(d_nodes, row.output, geometry).to(dtype)
        if row.code == NONE:
            continue
        if row.code == SKIP:
            x = dropped_source(row, inputs_IBHWC, nodes, drop_JBHWC, drop_scale_J, geometry)
            d_gates[row.number] = (dy * x).sum()
            continue
        z = z_JBHWC[row.number].to(dtype)
        if row.code == AVG_DIRECT:
            d_gates[row.number] = (dy * z).sum()
            continue
        sums[row.number, 0] = batchnorm.sum_rows(dy)
        stats = (stats_J2C[row.number, 0], stats_J2C[row.number, 1])
        sums[row.number, 1] = batchnorm.sum_dy_xhat(dy, z, stats, sums[row.number, 0])
        d_gates[row.number] = sums[row.number, 1].sum()
    return sums, d_gates
