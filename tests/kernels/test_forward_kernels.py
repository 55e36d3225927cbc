"""Stages, sums of branches and prepared inputs against their twins: odd sizes, every operation, every layout."""

from __future__ import annotations

import pytest
import torch
from msgdas.kernels import backend, prepare, prepare_backward
from msgdas.kernels import bn_combine as combine
from msgdas.kernels import branches as b
from msgdas.kernels import grouped_stage as stage
from msgdas.kernels.errors import KernelError
from msgdas.kernels.reference import bn_combine as combine_twin
from msgdas.kernels.reference import grouped_stage as stage_twin
from msgdas.kernels.reference import prepare as prepare_twin

from .cells import cell_of, relative_error

if not backend.interpreting() and not torch.cuda.is_available():
    pytest.skip("neither a GPU nor Triton's interpreter", allow_module_level=True)

DEVICE = "cpu" if backend.interpreting() else "cuda"
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}
DARTS = ([b.NONE, b.SKIP, b.MAX, b.AVG, b.SEP3, b.SEP5, b.DIL3, b.DIL5, b.SKIP], [0, 1, 0, 3, 1, 2, 3, 0, 3])
REDUCTION = (
    [b.NONE, b.REDUCE, b.MAX, b.AVG, b.SEP3, b.SEP5, b.DIL3, b.DIL5, b.SEP3, b.DIL5, b.SKIP],
    [0, 1, 0, 1, 1, 0, 0, 1, 2, 3, 3],
)
NAS_BENCH = ([b.NONE, b.SKIP, b.CONV1, b.CONV3, b.AVG_DIRECT], [0, 1, 0, 2, 1])
CELLS = {
    "darts": (DARTS, {}),
    "darts-24": (DARTS, {"channels": 24, "height": 5, "width": 6}),
    "darts-48": (DARTS, {"channels": 48, "height": 3, "width": 4, "batch": 1}),
    "reduction": (REDUCTION, {"stride": 2, "height": 10, "width": 6}),
    "reduction-24": (REDUCTION, {"stride": 2, "height": 6, "width": 10, "channels": 24, "batch": 1}),
    "nas-bench": (NAS_BENCH, {"planes": True, "inputs": 1}),
}
WIDE = ([b.SEP5, b.DIL3, b.REDUCE, b.MAX], [0, 1, 0, 1])


def stages(module, cell):
    """(z1, stats1, z, stats) of both stages."""
    launch = (cell.inputs, cell.nodes, cell.rows, *cell.weights)
    z1, stats1 = module.grouped_stage(*launch, None, None, cell.geometry, last=False)
    return z1, stats1, *module.grouped_stage(*launch, z1, stats1, cell.geometry, last=True)


def close(ours, truth, rows, dtype, *, first):
    """Planes that the stage writes agree; others mean nothing."""
    for j, code in enumerate(rows[:, b.CODE].tolist()):
        written = b.STAGES.get(code, 0) == 2 if first else code not in (b.NONE, b.SKIP)
        if written:
            assert relative_error(ours[j], truth[j]) <= TOLERANCE[dtype], (j, code)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
def test_stages_against_the_twin(name, dtype):
    (which, sources), sizes = CELLS[name]
    cell = cell_of(which, sources, dtype=dtype, device=DEVICE, **sizes)
    ours, truth = stages(stage, cell), stages(stage_twin, cell)
    close(ours[0], truth[0], cell.rows, dtype, first=True)
    close(ours[2], truth[2], cell.rows, dtype, first=False)
    for number in (1, 3):
        assert ours[number].dtype == truth[number].dtype
        assert relative_error(ours[number], truth[number]) <= 20 * TOLERANCE[dtype]


def test_wide_maps():
    cell = cell_of(*WIDE, channels=192, stride=2, height=4, width=4, batch=1, device=DEVICE)
    ours, truth = stages(stage, cell), stages(stage_twin, cell)
    close(ours[2], truth[2], cell.rows, torch.float32, first=False)


def test_statistics_of_an_earlier_pass_give_the_same_bytes():
    cell = cell_of(*DARTS, device=DEVICE)
    launch = (cell.inputs, cell.nodes, cell.rows, *cell.weights)
    z1, stats1, z, stats = stages(stage, cell)
    again, same = stage.grouped_stage(*launch, z1, stats1, cell.geometry, last=True, stats_J2C=stats)
    assert same is stats
    close(again, z, cell.rows, torch.float64, first=False)
    second = stages(stage, cell)
    close(second[0], z1, cell.rows, torch.float64, first=True)
    close(second[2], z, cell.rows, torch.float64, first=False)
    assert torch.equal(second[1], stats1) and torch.equal(second[3], stats)


def test_a_range_of_rows_is_a_launch_of_its_own():
    cell = cell_of(*DARTS, device=DEVICE)
    _, _, z, stats = stages(stage, cell)
    launch = (cell.inputs, cell.nodes, cell.rows[6:8], *cell.weights)
    part, part_stats = stage.grouped_stage(*launch, None, None, cell.geometry, last=True)
    assert torch.equal(part, z[6:8]) and torch.equal(part_stats, stats[6:8])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("name", ["darts", "darts-24", "nas-bench"])
def test_fault_32_sums_against_the_twin(name, drop, dtype):
    (which, sources), sizes = CELLS[name]
    cell = cell_of(which, sources, dtype=dtype, device=DEVICE, **sizes)
    _, _, z, stats = stages(stage_twin, cell)
    for j, code in enumerate(which):
        if code in (b.NONE, b.SKIP):
            z[j] = float("nan")
    generator = torch.Generator().manual_seed(0)
    masks = (None, None)
    if drop:
        bits = (torch.rand(z.shape, generator=generator) > 0.3).to(DEVICE, torch.uint8)
        masks = (bits, (torch.rand(len(which), generator=generator) + 1).to(DEVICE))
    d_nodes = torch.randn(cell.nodes.shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
    found = []
    for module in (combine, combine_twin):
        nodes = cell.nodes.clone()
        for accumulate in (False, True):
            module.bn_combine(
                cell.inputs, nodes, z, stats, cell.rows, cell.gates, *masks, cell.geometry, accumulate=accumulate
            )
        sums, d_gates = module.bn_combine_backward(
            d_nodes, cell.inputs, cell.nodes, z, stats, cell.rows, *masks, cell.geometry
        )
        found.append((nodes, sums, d_gates))
    for ours, truth in zip(*found, strict=True):
        assert torch.equal(ours.isnan(), truth.isnan())
        assert relative_error(ours.nan_to_num(), truth.nan_to_num()) <= 10 * TOLERANCE[dtype]


def test_a_node_of_nothing_is_zero():
    cell = cell_of([b.NONE, b.NONE], [0, 1], device=DEVICE)
    z = torch.full((2, 2, 9, 7, 16), float("nan"), device=DEVICE)
    stats = torch.zeros(2, 2, 16, device=DEVICE)
    combine.bn_combine(
        cell.inputs, cell.nodes, z, stats, cell.rows, cell.gates, None, None, cell.geometry, accumulate=False
    )
    assert not cell.nodes[..., 32:].any()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("channels_in", "channels", "reduce"), [(20, 16, False), (24, 10, True), (48, 64, False)])
def test_prepared_inputs_against_the_twin(channels_in, channels, reduce, dtype):
    generator = torch.Generator().manual_seed(0)

    def random(*shape, wide=False):
        found = torch.randn(shape, generator=generator, dtype=torch.float64)
        return found.to(DEVICE, torch.float32 if wide and dtype == torch.bfloat16 else dtype)

    x = random(2, 6, 4, channels_in)
    halves = 2 if reduce else 1
    weights = [random(channels // halves, channels_in, wide=True) for _ in range(halves)]
    second = weights[1] if reduce else None
    outs = [torch.empty(2, 6 // halves, 4 // halves, channels, dtype=dtype, device=DEVICE) for _ in range(3)]
    stats = prepare.prepare_into(x, weights[0], second, outs[0], None)
    truth = prepare_twin.prepare_into(x, weights[0], second, outs[1], None)
    prepare.prepare_into(x, weights[0], second, outs[2], stats)
    assert relative_error(outs[0], outs[1]) <= 3 * TOLERANCE[dtype]
    assert relative_error(outs[2], outs[0]) <= TOLERANCE[dtype]
    assert relative_error(stats, truth) <= 10 * TOLERANCE[dtype]
    d = random(*outs[0].shape)
    given = (d, outs[1], x, weights[0], second, truth.to(stats.dtype))
    pairs = zip(
        prepare_backward.prepare_backward(*given, need_x=True, need_w=True),
        prepare_twin.prepare_backward(*given, need_x=True, need_w=True),
        strict=True,
    )
    for ours, expected in pairs:
        assert relative_error(ours, expected) <= 3 * TOLERANCE[dtype]
    dx, dw = prepare_backward.prepare_backward(*given, need_x=False, need_w=False)
    assert not dx.numel() and not dw.numel()


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"inputs": lambda t: t.half()}, "inputs_IBHWC"),
        ({"inputs": lambda t: t.transpose(2, 3)}, "inputs_IBHWC"),
        ({"nodes": lambda t: t[..., :-1]}, "nodes"),
        ({"nodes": lambda t: t.double()}, "nodes"),
        ({"rows": lambda t: t.long()}, "branches_J8"),
        ({"rows": lambda t: t[:0]}, "branches_J8"),
        ({"depthwise": lambda t: t[:, :-1]}, "depthwise_TC"),
        ({"pointwise": lambda t: t.double()}, "pointwise_SCC"),
    ],
)
def test_a_wrong_tensor_is_named_before_a_launch(change, argument):
    cell = cell_of(*DARTS, device=DEVICE)
    for name, make in change.items():
        setattr(cell, name, make(getattr(cell, name)))
    launch = (cell.inputs, cell.nodes, cell.rows, *cell.weights)
    with pytest.raises(KernelError, match=argument) as caught:
        stage.grouped_stage(*launch, None, None, cell.geometry, last=False)
    assert "allowed" in str(caught.value)
