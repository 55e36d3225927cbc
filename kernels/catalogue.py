"""Cells on which every kernel is launched once: what `aot` compiles and `ledger` counts.

A new launch function needs one line in `launch_all`; kernels, signatures and block sizes are then found by launching.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import bn_combine, drop_mask, gather_backward, grouped_stage, gumbel_topk, prepare, stage_backward
from . import branches as b
from .branches import Geometry
from .prepare_backward import prepare_backward
from .reference.gumbel_topk import Assign, Mode, Relaxation
from .stage_weights import stage_weight_grads

DARTS_CODES = (b.SEP3, b.MAX, b.SEP5, b.SKIP, b.DIL3, b.AVG, b.DIL5, b.NONE)
REDUCTION_CODES = (b.SEP3, b.MAX, b.SEP5, b.REDUCE, b.DIL3, b.AVG, b.DIL5, b.NONE)
NAS_BENCH_CODES = (b.CONV3, b.SKIP, b.CONV1, b.AVG_DIRECT, b.NONE)
# Rows of a launch, as the engine groups them.
ROWS = 4
SETTINGS: tuple[tuple[Relaxation, Mode, Assign], ...] = (
    ("masked", "union", "rank"), ("shared", "subgraphs", "rank"), ("soft", "subgraphs", "shuffle"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell whose third node is computed, forward and backward.

    Attributes:
        codes: operations of the branches; only their number matters where nothing is executed.
        side: height and width of the cell's inputs.
        planes: whether the nodes lie one after the other (NAS-Bench-201).
        drop: whether skip-connects are dropped.
    """

    name: str
    codes: tuple[int, ...]
    channels: int
    side: int
    dtype: torch.dtype
    batch: int = 64
    stride: int = 1
    planes: bool = False
    drop: bool = False

    @property
    def geometry(self) -> Geometry:
        out = self.side // self.stride
        inputs, nodes = (1, 3) if self.planes else (2, 4)
        plane = self.batch * out * out * self.channels
        strides = (plane, self.channels) if self.planes else (self.channels, nodes * self.channels)
        return Geometry(self.batch, self.side, self.side, self.channels, out, out, inputs, nodes, self.stride, *strides)


def _cells() -> dict[str, Cell]:
    bf16, fp32, fp64 = torch.bfloat16, torch.float32, torch.float64
    normal, reduction, dense = DARTS_CODES[:ROWS], REDUCTION_CODES[:ROWS], NAS_BENCH_CODES[:ROWS]
    cells = [
        Cell("darts-16", normal, 16, 32, bf16, drop=True),
        Cell("darts-16-fp32", normal, 16, 32, fp32),
        Cell("darts-16-fp64", normal, 16, 32, fp64, drop=True),
        Cell("darts-32-reduction", reduction, 32, 32, bf16, stride=2, drop=True),
        Cell("darts-32-reduction-fp32", reduction, 32, 32, fp32, stride=2, drop=True),
        Cell("darts-64", normal, 64, 8, bf16),
        Cell("darts-48", normal, 48, 28, bf16, drop=True),
        Cell("darts-96-reduction", reduction, 96, 28, bf16, stride=2),
        Cell("darts-192", normal, 192, 7, bf16, drop=True),
        Cell("darts-192-fp32", normal, 192, 7, fp32),
        Cell("nas-bench-16", dense, 16, 32, bf16, planes=True),
        Cell("nas-bench-16-fp32", dense, 16, 32, fp32, planes=True),
        Cell("nas-bench-64", dense, 64, 8, bf16, planes=True),
    ]
    return {cell.name: cell for cell in cells}


# Cells that ship: channels and sides of DARTS on CIFAR and ImageNet and of NAS-Bench-201.
CELLS = _cells()


class Tensors:
    """Makes a cell's tensors on a device; on `meta` they have no contents."""

    def __init__(self, cell: Cell, device: str) -> None:
        self.cell, self.device = cell, device
        self.wide = torch.float64 if cell.dtype == torch.float64 else torch.float32
        self.generator = torch.Generator().manual_seed(0)

    def random(self, *shape: int, wide: bool = False) -> Tensor:
        dtype = self.wide if wide else self.cell.dtype
        if self.device == "meta":
            return torch.empty(shape, dtype=dtype, device="meta")
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype).to(self.device)

    def nodes(self) -> Tensor:
        g = self.cell.geometry
        shape = (g.batch, g.out_height, g.out_width)
        return (
            self.random(g.nodes, *shape, g.channels) if self.cell.planes else self.random(*shape, g.nodes * g.channels)
        )

    def rows(self) -> Tensor:
        """A branch table of the third node; reductions read inputs, the other branches inputs and nodes in turn."""
        cell, g = self.cell, self.cell.geometry
        rows = torch.full((len(cell.codes), b.COLUMNS), -1, dtype=torch.int32)
        for j, code in enumerate(cell.codes):
            node = code == b.SKIP if g.stride == 2 else j % 2
            source = g.inputs + j // 2 % 2 if node and code != b.REDUCE else j % g.inputs
            rows[j, b.CODE], rows[j, b.SOURCE], rows[j, b.OUTPUT], rows[j, b.GATE] = code, source, 2, j
            for stage in range(2):
                rows[j, b.TAPS0 + stage] = 25 * (2 * j + stage)
                rows[j, b.POINT0 + stage] = 2 * j + stage if code != b.CONV3 else j
        return rows.to(self.device)


def launch_all(cell: Cell, device: str) -> None:
    """Launch every kernel on a cell: alpha, masks, inputs, one node forward and backward."""
    tensors = Tensors(cell, device)
    clock = torch.tensor([3, 5]).to(device)
    _launch_sampler(tensors, clock)
    _launch_inputs(tensors)
    _launch_node(tensors, clock)


def _launch_sampler(tensors: Tensors, clock: Tensor) -> None:
    edges, operations = (6, 5) if tensors.cell.planes else (14, 8)
    alpha, tau = tensors.random(edges, operations, wide=True), torch.ones((), device=tensors.device)
    for relaxation, mode, assign in SETTINGS:
        _, gates, _, places, ranks = found = gumbel_topk.draw(
            alpha, clock, tau, k=2, stream=0, relaxation=relaxation, noise=True, mode=mode, assign=assign
        )
        gumbel_topk.draw_backward(gates, found[0], places, ranks, tau, relaxation)


def _launch_inputs(tensors: Tensors) -> None:
    g, c = tensors.cell.geometry, tensors.cell.channels
    out = tensors.random(g.batch, g.height, g.width, c)
    x = tensors.random(g.batch, g.height, g.width, 2 * c)
    weight = tensors.random(c, 2 * c, wide=True)
    before = tensors.random(g.batch, 2 * g.height, 2 * g.width, c)
    halves = tensors.random(2, c // 2, c, wide=True)
    for source, first, second in ((x, weight, None), (before, halves[0], halves[1])):
        stats = prepare.prepare_into(source, first, second, out, None)
        prepare.prepare_into(source, first, second, out, stats)
        d_out = tensors.random(*out.shape)
        prepare_backward(d_out, out, source, first, second, stats, need_x=True, need_w=True)


def _launch_node(tensors: Tensors, clock: Tensor) -> None:
    cell, g, c = tensors.cell, tensors.cell.geometry, tensors.cell.channels
    count, two_stages = len(cell.codes), not cell.planes
    inputs, nodes, rows = (
        tensors.random(g.inputs, g.batch, g.height, g.width, c),
        tensors.nodes(),
        tensors.rows(),
    )
    arenas = (
        tensors.random(50 * count if two_stages else 0, c, wide=True),
        tensors.random(2 * count, c, c, wide=True),
        tensors.random(0 if two_stages else count, 9, c, c, wide=True),
    )
    gates = tensors.random(count, 1, wide=True).abs()
    z1 = stats1 = drop = scale = None
    if cell.drop:
        rate = torch.full((), 0.3, device=tensors.device)
        for kind in ("dropout", "dropblock"):
            drop, scale = drop_mask.drop_mask(rows, clock, 0, rate, g, kind=kind)
    stage = (inputs, nodes, rows, *arenas)
    if two_stages:
        z1, stats1 = grouped_stage.grouped_stage(*stage, None, None, g, last=False)
        grouped_stage.grouped_stage(*stage, None, None, g, last=False, stats_J2C=stats1)
    z, stats = grouped_stage.grouped_stage(*stage, z1, stats1, g, last=True)
    grouped_stage.grouped_stage(*stage, z1, stats1, g, last=True, stats_J2C=stats)
    for accumulate in (False, True):
        bn_combine.bn_combine(inputs, nodes, z, stats, rows, gates, drop, scale, g, accumulate=accumulate)

    d_nodes, d_inputs = tensors.nodes(), torch.zeros_like(inputs)
    d_depthwise, d_pointwise, d_dense = (torch.empty_like(arena) for arena in arenas)

    def weight_grads(
        v: Tensor | None, z: Tensor, stats: Tensor, sums: Tensor, u: Tensor, z1: Tensor | None, stats1: Tensor | None,
        *, last: bool,
    ) -> None:  # fmt: skip
        stage_weight_grads(
            d_nodes, v, z, stats, sums, u, inputs, nodes, z1, stats1, rows, gates, arenas[0], d_depthwise,
            d_pointwise, d_dense, g, last=last,
        )  # fmt: skip

    sums, _ = bn_combine.bn_combine_backward(d_nodes, inputs, nodes, z, stats, rows, drop, scale, g)
    point = (rows, gates, arenas[1], arenas[2], g)
    u = stage_backward.point_backward(d_nodes, None, z, stats, sums, *point, last=True)
    weight_grads(None, z, stats, sums, u, z1, stats1, last=True)
    if z1 is not None and stats1 is not None:
        v, sums1 = stage_backward.taps_backward(u, z1, stats1, rows, arenas[0], g)
        stage_backward.point_backward(d_nodes, v, z1, stats1, sums1, *point, last=False, out=u)
        weight_grads(v, z1, stats1, sums1, u, None, None, last=False)
    gather_backward.gather_backward(
        d_nodes, u, inputs, nodes, rows, gates, *arenas, drop, scale, d_inputs, g
    )  # fmt: skip
