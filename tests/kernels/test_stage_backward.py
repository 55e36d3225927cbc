"""Gradients of maps through the branches of a node: the kernels against their plain-PyTorch twins."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import random

import pytest
import torch
from cells import cell_of, relative_error
from msgdas.kernels import branches as codes
from msgdas.kernels.backend import function as implementation
from msgdas.kernels.errors import KernelError
from msgdas.kernels.reference import grouped_stage as stages
from msgdas.kernels.reference import stage_backward as twin
from msgdas.kernels.reference.bn_combine import bn_combine_backward
from msgdas.kernels.reference.rows import rows_of

ALL_AT_STRIDE_1 = [
    codes.SEP3, codes.MAX, codes.SKIP, codes.SEP5, codes.DIL3, codes.AVG, codes.NONE, codes.DIL5, codes.CONV1,
    codes.CONV3, codes.AVG_DIRECT,
]  # fmt: skip
AT_STRIDE_2 = [codes.SEP3, codes.MAX, codes.REDUCE, codes.SEP5, codes.DIL3, codes.AVG, codes.NONE, codes.DIL5]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}


def kernel(name, tensor):
    return implementation(name, tensor)


class Case:
    """A cell with everything that the backward launches read, made by the twins."""

    def __init__(self, which, sources, *, dtype=torch.float32, seed=0, drop=False, **sizes):
        self.cell = cell = cell_of(which, sources, dtype=dtype, seed=seed, **sizes)
        g, random_ = cell.geometry, torch.Generator().manual_seed(seed + 1)
        cell.inputs.copy_((4 * cell.inputs).round() / 4)  # ties in the max pools
        self.d_nodes = torch.randn(cell.nodes.shape, generator=random_, dtype=torch.float64).to(dtype)
        self.d_inputs = torch.randn(cell.inputs.shape, generator=random_, dtype=torch.float64).to(dtype)
        self.drop = self.scale = None
        count = len(which)
        maps = (count, g.batch, g.out_height, g.out_width, g.channels)
        if drop:
            self.drop = (torch.rand(maps, generator=random_) > 0.3).to(torch.uint8)
            self.scale = torch.rand(count, generator=random_) + 1
        forward = (cell.inputs, cell.nodes, cell.rows, *cell.weights)
        self.z1, self.stats1 = stages.grouped_stage(*forward, None, None, g, last=False)
        self.z, self.stats = stages.grouped_stage(*forward, self.z1, self.stats1, g, last=True)
        self._poison(self.z1, lambda row: row.stages == 2)
        self._poison(self.z, lambda row: row.code not in (codes.NONE, codes.SKIP))
        self.sums, _ = bn_combine_backward(
            self.d_nodes, cell.inputs, cell.nodes, self.z, self.stats, cell.rows, self.drop, self.scale, g
        )

    def _poison(self, maps, is_real):
        """Planes that nobody may read become NaN."""
        for row in rows_of(self.cell.rows, self.cell.geometry):
            if not is_real(row):
                maps[row.number] = float("nan")

    def planes(self, *which):
        return [row.number for row in rows_of(self.cell.rows, self.cell.geometry) if row.code in which]

    def point(self, run, *, last, z=None, stats=None, sums=None, v=None):
        cell, g = self.cell, self.cell.geometry
        out = torch.full_like(self.z, float("nan"))
        run(
            self.d_nodes, v, self.z if last else self.z1, self.stats if last else self.stats1,
            self.sums if sums is None else sums, cell.rows, cell.gates, cell.pointwise, cell.dense, g, last=last,
            out=out,
        )  # fmt: skip
        return out

    def gather(self, run, u, *, want_inputs=True):
        cell = self.cell
        d_nodes, d_inputs = self.d_nodes.clone(), self.d_inputs.clone()
        run(
            d_nodes, u, cell.inputs, cell.nodes, cell.rows, cell.gates, *cell.weights, self.drop, self.scale,
            d_inputs if want_inputs else None, cell.geometry,
        )  # fmt: skip
        return d_nodes, d_inputs


def agree(ours, truth, dtype):
    """Same places of NaN (planes that are not written), and close elsewhere."""
    assert torch.equal(ours.isnan(), truth.isnan())
    assert relative_error(ours.nan_to_num(), truth.nan_to_num()) < TOLERANCE[dtype]


def sources_of(which, stride, seed=0):
    """A random state below node 2 for every branch; skip-connects and dense ones where the edge has stride 1."""
    chosen = random.Random(seed)
    strided = [2, 3] if stride == 2 else [0, 1, 2, 3]
    able = {codes.SKIP: strided, codes.CONV1: strided, codes.CONV3: strided, codes.REDUCE: [0, 1]}
    return [chosen.choice(able.get(code, [0, 1, 2, 3])) for code in which]


CASES = {
    "stride 1": dict(which=ALL_AT_STRIDE_1, height=9, width=7, channels=16),
    "stride 1, planes, odd channels": dict(which=ALL_AT_STRIDE_1, height=5, width=6, channels=24, planes=True),
    "stride 2": dict(which=[*AT_STRIDE_2, codes.SKIP, codes.DIL5, codes.MAX], height=10, width=6, channels=16, stride=2),
    "stride 2, odd channels": dict(which=AT_STRIDE_2, height=6, width=10, channels=24, stride=2, planes=True),
    "C = 48": dict(which=[codes.SEP3, codes.MAX, codes.CONV3, codes.DIL5], height=3, width=3, channels=48, batch=1),
    "C = 192": dict(which=[codes.DIL3, codes.SEP5, codes.SKIP], height=3, width=2, channels=192, batch=1),
    "C = 192, stride 2": dict(which=[codes.REDUCE, codes.SEP3], height=4, width=2, channels=192, batch=1, stride=2),
}
BOTH = [
    pytest.param(name, dtype, id=f"{name}, {str(dtype)[6:]}")
    for name in CASES
    for dtype in ((torch.float32, torch.bfloat16, torch.float64) if "= " not in name else (torch.bfloat16,))
]


def case_of(name, dtype, **more):
    sizes = dict(CASES[name])
    which = sizes.pop("which")
    return Case(which, sources_of(which, sizes.get("stride", 1)), dtype=dtype, **sizes, **more)


@pytest.mark.parametrize(("name", "dtype"), BOTH)
def test_point_and_taps_against_the_twins(name, dtype):
    case = case_of(name, dtype)
    cell, g = case.cell, case.cell.geometry
    u = case.point(kernel("point_backward", cell.inputs), last=True)
    truth = case.point(twin.point_backward, last=True)
    agree(u, truth, dtype)
    inner = (truth, case.z1, case.stats1, cell.rows, cell.depthwise, g)
    v, sums1 = kernel("taps_backward", cell.inputs)(*inner)
    v_truth, sums_truth = twin.taps_backward(*inner)
    two_stages = case.planes(codes.SEP3, codes.SEP5)
    for number in two_stages:
        assert relative_error(v[number], v_truth[number]) < TOLERANCE[dtype]
        assert relative_error(sums1[number], sums_truth[number]) < max(TOLERANCE[dtype] * 0.1, 1e-12)
    agree(
        case.point(kernel("point_backward", cell.inputs), last=False, v=v_truth, sums=sums_truth),
        case.point(twin.point_backward, last=False, v=v_truth, sums=sums_truth),
        dtype,
    )


@pytest.mark.parametrize("want_inputs", [True, False])
@pytest.mark.parametrize(("name", "dtype"), BOTH)
def test_gather_against_the_twin(name, dtype, want_inputs):
    case = case_of(name, dtype, drop="odd" in name)
    u = case.point(twin.point_backward, last=True)
    ours = case.gather(kernel("gather_backward", case.cell.inputs), u, want_inputs=want_inputs)
    truth = case.gather(twin.gather_backward, u, want_inputs=want_inputs)
    for a, b in zip(ours, truth, strict=True):
        agree(a, b, dtype)
    if not want_inputs:
        assert torch.equal(ours[1], case.d_inputs)


def test_the_same_bytes_twice():
    case = case_of("stride 2", torch.bfloat16)
    cell = case.cell
    u = [case.point(kernel("point_backward", cell.inputs), last=True) for _ in range(2)]
    assert torch.equal(u[0].view(torch.int16), u[1].view(torch.int16))
    inner = (u[0], case.z1, case.stats1, cell.rows, cell.depthwise, cell.geometry)
    first, second = (kernel("taps_backward", cell.inputs)(*inner) for _ in range(2))
    for number in case.planes(codes.SEP3, codes.SEP5):
        assert torch.equal(first[0][number], second[0][number])
        assert torch.equal(first[1][number], second[1][number])
    for a, b in zip(*(case.gather(kernel("gather_backward", cell.inputs), u[0]) for _ in range(2)), strict=True):
        assert torch.equal(a, b)


def test_wrong_arguments_are_named():
    case = case_of("C = 48", torch.float32)
    cell, g = case.cell, case.cell.geometry
    u = torch.zeros_like(case.z)
    point, taps = kernel("point_backward", u), kernel("taps_backward", u)
    gather = kernel("gather_backward", u)
    own = (case.d_nodes, None, case.z, case.stats, case.sums, cell.rows, cell.gates, cell.pointwise, cell.dense, g)
    for place, wrong, name in (
        (0, case.d_nodes[..., :-1], "d_nodes"), (2, case.z.transpose(2, 3), "z_JBHWC"), (3, case.stats.double(), "stats_J2C"),
        (4, case.sums[:, :1], "sums_J2C"), (5, cell.rows.long(), "branches_J8"), (6, cell.gates.double(), "gates_EO"),
    ):  # fmt: skip
        with pytest.raises(KernelError, match=name):
            point(*own[:place], wrong, *own[place + 1 :], last=True)
    with pytest.raises(KernelError, match="z1_JBHWC"):
        taps(u, case.z1.double(), case.stats1, cell.rows, cell.depthwise, g)
    for place, wrong, name in (
        (0, case.d_nodes.double(), "d_nodes"), (1, u[:1], "u_JBHWC"), (2, cell.inputs.half(), "inputs_IBHWC"),
        (6, cell.depthwise.bfloat16(), "depthwise_TC"), (7, cell.pointwise[:, :1], "pointwise_SCC"),
    ):  # fmt: skip
        passed = [
            case.d_nodes, u, cell.inputs, cell.nodes, cell.rows, cell.gates, *cell.weights, None, None, case.d_inputs, g,
        ]  # fmt: skip
        passed[place] = wrong
        with pytest.raises(KernelError, match=name):
            gather(*passed)
