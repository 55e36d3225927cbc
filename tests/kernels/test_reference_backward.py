"""The plain-PyTorch twins as a chain, forward and backward, against ordinary autograd in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from msgdas.kernels import branches as codes
from msgdas.kernels.reference import batchnorm, bn_combine, grouped_stage, stage_backward, stage_weights
from msgdas.kernels.reference.rows import node_map, rows_of

from .backward_cases import case_of
from .cells import relative_error

CELLS = ["stride 1", "stride 1, planes, odd channels", "stride 2", "stride 2, odd channels"]


def norm(z_BCHW):
    return F.batch_norm(z_BCHW, None, None, training=True, eps=batchnorm.EPSILON)


def separable(x, row, depthwise, pointwise):
    """ReLU, depthwise, pointwise, BatchNorm, once or twice."""
    side, dilation = codes.SIDE[row.code], codes.DILATION[row.code]
    for stage in range(row.stages):
        taps = depthwise[row.taps[stage] : row.taps[stage] + side * side].T.reshape(-1, 1, side, side)
        stride = row.stride if stage == 0 else 1
        t = F.conv2d(F.relu(x), taps, None, stride, dilation * (side // 2), dilation, x.shape[1])
        x = norm(F.conv2d(t, pointwise[row.points[stage]][:, :, None, None]))
    return x


def operation(x_BHWC, row, case, depthwise, pointwise, dense):
    """What a branch adds to its node, before its gate."""
    x = x_BHWC.permute(0, 3, 1, 2)
    slot = row.points[0]
    if row.code == codes.SKIP:
        y = x if case.drop is None else x * (case.drop[row.number] * case.scale[row.number]).permute(0, 3, 1, 2)
    elif row.code == codes.MAX:
        y = norm(F.max_pool2d(x, 3, row.stride, 1))
    elif row.code in (codes.AVG, codes.AVG_DIRECT):
        y = F.avg_pool2d(x, 3, row.stride, 1, count_include_pad=False)
        y = norm(y) if row.code == codes.AVG else y
    elif row.code == codes.REDUCE:
        halves = pointwise[slot][:, :, None, None].chunk(2)
        a = F.relu(x)
        y = norm(torch.cat([F.conv2d(a, halves[0], stride=2), F.conv2d(a[:, :, 1:, 1:], halves[1], stride=2)], 1))
    elif row.code == codes.CONV1:
        y = norm(F.conv2d(F.relu(x), pointwise[slot][:, :, None, None]))
    elif row.code == codes.CONV3:
        channels = x.shape[1]
        weight = dense[slot].reshape(3, 3, channels, channels).permute(3, 2, 0, 1)
        y = norm(F.conv2d(F.relu(x), weight, padding=1))
    else:
        y = separable(x, row, depthwise, pointwise)
    return y.permute(0, 2, 3, 1)


def by_autograd(case):
    """(node, gradients of the states, the gates and the arenas) of one node's branches."""
    cell, g = case.cell, case.cell.geometry
    states = [cell.inputs[0], cell.inputs[1], node_map(cell.nodes, 0, g), node_map(cell.nodes, 1, g)]
    leaves = [leaf.clone().requires_grad_() for leaf in (*states, cell.gates, *cell.weights)]
    gates = leaves[4].flatten()
    node = sum(
        gates[row.gate] * operation(leaves[row.source], row, case, *leaves[5:])
        for row in rows_of(cell.rows, g)
        if row.code != codes.NONE
    )
    return node, torch.autograd.grad(node, leaves, node_map(case.d_nodes, 2, g), allow_unused=True)


def by_twins(case):
    """The same by the launches' twins, in the order of a cell's two passes."""
    cell, g = case.cell, case.cell.geometry
    drop = (case.drop, case.scale)
    forward = (cell.inputs, cell.nodes, cell.rows, *cell.weights)
    z1, stats1 = grouped_stage.grouped_stage(*forward, None, None, g, last=False)
    z, stats = grouped_stage.grouped_stage(*forward, z1, stats1, g, last=True)
    nodes = cell.nodes.clone()
    bn_combine.bn_combine(
        cell.inputs, nodes, z, stats, cell.rows, cell.gates, *drop, g, accumulate=False
    )  # fmt: skip
    _, d_gates = bn_combine.bn_combine_backward(
        case.d_nodes, cell.inputs, cell.nodes, z, stats, cell.rows, *drop, g
    )  # fmt: skip
    u = case.point(stage_backward.point_backward, last=True)
    arenas = case.weights(stage_weights.stage_weight_grads, u, last=True)
    v, sums1 = stage_backward.taps_backward(u, z1, stats1, cell.rows, cell.depthwise, g)
    inner = case.point(stage_backward.point_backward, last=False, v=v, sums=sums1)
    first = case.weights(stage_weights.stage_weight_grads, inner, last=False, v=v, sums=sums1)
    for row in rows_of(cell.rows, g):
        if row.stages == 2:
            u[row.number] = inner[row.number]
    arenas = [torch.where(a.isnan(), b, a) for a, b in zip(arenas, first, strict=True)]
    d_nodes, d_inputs = case.gather(stage_backward.gather_backward, u)
    d_nodes, d_inputs = d_nodes - case.d_nodes, d_inputs - case.d_inputs
    states = [d_inputs[0], d_inputs[1], node_map(d_nodes, 0, g), node_map(d_nodes, 1, g)]
    return node_map(nodes, 2, g), [*states, d_gates, *arenas]


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_every_gradient_is_autograds(name, drop):
    case = case_of(name, torch.float64, drop=drop)
    expected, grads = by_autograd(case)
    node, ours = by_twins(case)
    assert relative_error(node, expected.detach()) < 1e-12
    for number, (mine, truth) in enumerate(zip(ours, grads, strict=True)):
        truth = torch.zeros_like(mine) if truth is None else truth
        mine = mine.view_as(truth) if number == 4 else mine.nan_to_num()
        assert relative_error(mine, truth) < 1e-12, f"gradient number {number}"
