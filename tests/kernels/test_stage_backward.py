"""Gradients of maps through the branches of a node: the kernels against their plain-PyTorch twins."""

from __future__ import annotations

import pytest
import torch
from msgdas.kernels import branches as codes
from msgdas.kernels.errors import KernelError
from msgdas.kernels.gather_backward import gather_backward
from msgdas.kernels.reference import stage_backward as twin
from msgdas.kernels.stage_backward import point_backward, taps_backward

from .backward_cases import NAMES_AND_DTYPES, TOLERANCE, agree, case_of
from .cells import relative_error


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES, ids=str)
def test_point_and_taps_against_the_twins(name, dtype):
    case = case_of(name, dtype)
    cell, g = case.cell, case.cell.geometry
    u = case.point(point_backward, last=True)
    truth = case.point(twin.point_backward, last=True)
    agree(u, truth, dtype)
    inner = (truth, case.z1, case.stats1, cell.rows, cell.depthwise, g)
    v, sums1 = taps_backward(*inner)
    v_truth, sums_truth = twin.taps_backward(*inner)
    two_stages = case.planes(codes.SEP3, codes.SEP5)
    for number in two_stages:
        assert relative_error(v[number], v_truth[number]) < TOLERANCE[dtype]
        assert relative_error(sums1[number], sums_truth[number]) < TOLERANCE[dtype]
    agree(
        case.point(point_backward, last=False, v=v_truth, sums=sums_truth),
        case.point(twin.point_backward, last=False, v=v_truth, sums=sums_truth),
        dtype,
    )


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES, ids=str)
def test_gather_against_the_twin(name, dtype):
    case = case_of(name, dtype, drop="odd" in name)
    u = case.point(twin.point_backward, last=True)
    ours, truth = case.gather(gather_backward, u), case.gather(twin.gather_backward, u)
    for a, b in zip(ours, truth, strict=True):
        agree(a, b, dtype)


@pytest.mark.parametrize("name", ["stride 1", "stride 2"])
def test_inputs_without_a_wanted_gradient_are_left_alone(name):
    case = case_of(name, torch.float32)
    u = case.point(twin.point_backward, last=True)
    d_nodes, d_inputs = case.gather(gather_backward, u, want_inputs=False)
    agree(d_nodes, case.gather(twin.gather_backward, u)[0], torch.float32)
    assert torch.equal(d_inputs, case.d_inputs)


def test_the_same_bytes_twice():
    case = case_of("stride 2", torch.bfloat16)
    cell = case.cell
    u = [case.point(point_backward, last=True) for _ in range(2)]
    assert torch.equal(u[0].view(torch.int16), u[1].view(torch.int16))
    inner = (u[0], case.z1, case.stats1, cell.rows, cell.depthwise, cell.geometry)
    first, second = (taps_backward(*inner) for _ in range(2))
    for number in case.planes(codes.SEP3, codes.SEP5):
        assert torch.equal(first[0][number], second[0][number])
        assert torch.equal(first[1][number], second[1][number])
    for a, b in zip(*(case.gather(gather_backward, u[0]) for _ in range(2)), strict=True):
        assert torch.equal(a, b)


def test_wrong_arguments_are_named():
    case = case_of("C = 48", torch.float32)
    cell, g = case.cell, case.cell.geometry
    u = torch.zeros_like(case.z)
    own = (case.d_nodes, None, case.z, case.stats, case.sums, cell.rows, cell.gates, cell.pointwise, cell.dense, g)
    for place, wrong, name in (
        (0, case.d_nodes[..., :-1], "d_nodes"), (2, case.z.transpose(2, 3), "z_JBHWC"),
        (3, case.stats.double(), "stats_J2C"),
        (4, case.sums[:, :1], "sums_J2C"), (5, cell.rows.long(), "branches_J8"), (6, cell.gates.double(), "gates_EO"),
    ):  # fmt: skip
        with pytest.raises(KernelError, match=name):
            point_backward(*own[:place], wrong, *own[place + 1 :], last=True)
    with pytest.raises(KernelError, match="z1_JBHWC"):
        taps_backward(u, case.z1.double(), case.stats1, cell.rows, cell.depthwise, g)
    for place, wrong, name in (
        (0, case.d_nodes.double(), "d_nodes"), (1, u[:1], "u_JBHWC"), (2, cell.inputs.half(), "inputs_IBHWC"),
        (6, cell.depthwise.bfloat16(), "depthwise_TC"), (7, cell.pointwise[:, :1], "pointwise_SCC"),
    ):  # fmt: skip
        passed = [
            case.d_nodes, u, cell.inputs, cell.nodes, cell.rows, cell.gates, *cell.weights, None, None, case.d_inputs,
            g,
        ]  # fmt: skip
        passed[place] = wrong
        with pytest.raises(KernelError, match=name):
            gather_backward(*passed)
