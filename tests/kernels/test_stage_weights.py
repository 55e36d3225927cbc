"""Weight gradients of the branches of a node: the kernels against their plain-PyTorch twin."""

from __future__ import annotations

import pytest
import torch
from msgdas.kernels import stage_weights
from msgdas.kernels.errors import KernelError
from msgdas.kernels.reference import stage_backward as maps
from msgdas.kernels.reference.stage_weights import stage_weight_grads as twin

from .backward_cases import NAMES_AND_DTYPES, agree, case_of


def both_stages(case, run):
    """The arenas' gradients of the last stage and of the first one of sep_conv."""
    cell = case.cell
    u = case.point(maps.point_backward, last=True)
    last = case.weights(run, u, last=True)
    v, sums1 = maps.taps_backward(u, case.z1, case.stats1, cell.rows, cell.depthwise, cell.geometry)
    u = case.point(maps.point_backward, last=False, v=v, sums=sums1)
    return last, case.weights(run, u, last=False, v=v, sums=sums1)


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES, ids=str)
def test_against_the_twin(name, dtype):
    case = case_of(name, dtype)
    ours, truth = both_stages(case, stage_weights.stage_weight_grads), both_stages(case, twin)
    for stage, stage_truth in zip(ours, truth, strict=True):
        for grads, grads_truth in zip(stage, stage_truth, strict=True):
            agree(grads, grads_truth, dtype)


def test_tiles_share_the_groups_of_partial_sums(monkeypatch):
    case = case_of("C = 48", torch.float32, height=8, width=40)
    monkeypatch.setattr(stage_weights, "MAX_GROUPS", 2)
    run = stage_weights.stage_weight_grads
    u = case.point(maps.point_backward, last=True)
    for ours, truth in zip(case.weights(run, u, last=True), case.weights(twin, u, last=True), strict=True):
        agree(ours, truth, torch.float32)


def test_the_same_bytes_twice():
    case = case_of("stride 2", torch.bfloat16)
    first, second = (both_stages(case, stage_weights.stage_weight_grads) for _ in range(2))
    for a, b in zip(first[0] + first[1], second[0] + second[1], strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))


def test_wrong_arguments_are_named():
    case = case_of("C = 48", torch.float32)
    cell, u = case.cell, torch.zeros_like(case.z)
    run = stage_weights.stage_weight_grads
    grads = [torch.zeros_like(arena) for arena in cell.weights]
    for place, wrong, name in (
        (0, case.d_nodes.double(), "d_nodes"), (2, case.z[1:], "z_JBHWC"), (3, case.stats.double(), "stats_J2C"),
        (5, u.transpose(2, 3), "u_JBHWC"), (10, cell.rows.long(), "branches_J8"), (11, cell.gates.double(), "gates_EO"),
        (13, grads[0].double(), "d_depthwise_TC"),
    ):  # fmt: skip
        passed = [
            case.d_nodes, None, case.z, case.stats, case.sums, u, cell.inputs, cell.nodes, case.z1, case.stats1,
            cell.rows, cell.gates, cell.depthwise, *grads, cell.geometry,
        ]  # fmt: skip
        passed[place] = wrong
        with pytest.raises(KernelError, match=name):
            run(*passed, last=True)
