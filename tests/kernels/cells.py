"""Random cells for the tests of the kernels: maps, weights and branch tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from msgdas.kernels import branches as b
from msgdas.kernels.branches import Geometry
from torch import Tensor


def geometry_of(
    *, batch: int = 2, height: int = 9, width: int = 7, channels: int = 16, inputs: int = 2, nodes: int = 3,
    stride: int = 1, planes: bool = False,
) -> Geometry:  # fmt: skip
    """Sizes of a small cell; `planes` puts the nodes one after the other as NAS-Bench-201 does."""
    out_height, out_width = -(-height // stride), -(-width // stride)
    strides = (batch * out_height * out_width * channels, channels) if planes else (channels, nodes * channels)
    return Geometry(batch, height, width, channels, out_height, out_width, inputs, nodes, stride, *strides)


@dataclass
class Cell:
    """Everything that a launch reads."""

    geometry: Geometry
    inputs: Tensor
    nodes: Tensor
    rows: Tensor
    depthwise: Tensor
    pointwise: Tensor
    dense: Tensor
    gates: Tensor

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.depthwise, self.pointwise, self.dense


def rows_of(codes: list[int], sources: list[int], output: int, pointwise_only: bool = False) -> Tensor:
    """A branch table in which every branch has rows and slots of its own."""
    rows = torch.full((len(codes), b.COLUMNS), -1, dtype=torch.int32)
    taps = points = 0
    for j, (code, source) in enumerate(zip(codes, sources, strict=True)):
        rows[j, b.CODE], rows[j, b.SOURCE], rows[j, b.OUTPUT] = code, source, output
        rows[j, b.GATE] = -1 if code == b.NONE else j
        for stage in range(b.STAGES.get(code, 0)):
            rows[j, b.TAPS0 + stage] = taps
            taps += b.SIDE[code] ** 2
        for stage in range(b.STAGES.get(code, 1 if code in (b.REDUCE, b.CONV1, b.CONV3) else 0)):
            rows[j, b.POINT0 + stage] = points
            points += 1
    return rows


def cell_of(
    codes: list[int], sources: list[int], *, output: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0,
    device: str = "cpu", **sizes: int,
) -> Cell:  # fmt: skip
    """A cell with random maps and weights; later nodes than the sources are NaN."""
    geometry = geometry_of(**sizes)
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    g, c = geometry, geometry.channels
    planes = g.row_stride == g.channels
    shape = (g.batch, g.out_height, g.out_width)
    nodes = random(g.nodes, *shape, c)
    nodes[output:] = float("nan")
    if not planes:
        nodes = nodes.permute(1, 2, 3, 0, 4).reshape(*shape, g.nodes * c)
    count = len(codes)
    return Cell(
        geometry,
        random(g.inputs, g.batch, g.height, g.width, c).to(dtype).to(device),
        nodes.contiguous().to(dtype).to(device),
        rows_of(codes, sources, output).to(device),
        (0.3 * random(50 * count, c)).to(wide).to(device),
        (random(2 * count, c, c) / c**0.5).to(wide).to(device),
        (random(count, 9, c, c) / (3 * c**0.5)).to(wide).to(device),
        torch.rand(count, 1, generator=generator, dtype=torch.float64).to(wide).to(device),
    )


def relative_error(ours: Tensor, truth: Tensor) -> float:
    """Largest difference over the largest value."""
    scale = truth.double().abs().max().item()
    return (ours.double() - truth.double()).abs().max().item() / max(scale, 1e-12)
