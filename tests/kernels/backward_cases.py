"""One launch of a cell's backward: the branches of a node, and all that the kernels read, made by the twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from msgdas.kernels import backend
from msgdas.kernels import branches as codes
from msgdas.kernels.reference import grouped_stage as stages
from msgdas.kernels.reference.bn_combine import bn_combine_backward
from msgdas.kernels.reference.rows import rows_of
from torch import Tensor

from .cells import cell_of, relative_error

if not backend.interpreting() and not torch.cuda.is_available():
    pytest.skip("neither a GPU nor Triton's interpreter", allow_module_level=True)

DEVICE = "cpu" if backend.interpreting() else "cuda"
AT_STRIDE_1 = [
    codes.SEP3, codes.MAX, codes.SKIP, codes.SEP5, codes.DIL3, codes.AVG, codes.NONE, codes.DIL5, codes.CONV1,
    codes.CONV3, codes.AVG_DIRECT, codes.SEP5, codes.SKIP, codes.MAX, codes.CONV3,
]  # fmt: skip
AT_STRIDE_2 = [codes.SEP3, codes.MAX, codes.REDUCE, codes.SEP5, codes.DIL3, codes.AVG, codes.NONE, codes.DIL5]
BOTH_STRIDES = [*AT_STRIDE_2, codes.SKIP, codes.DIL5, codes.DIL3, codes.AVG, codes.SEP5, codes.SEP3, codes.MAX]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}


class Case:
    """A cell with everything that the backward launches read; planes that nobody may read are NaN.

    Args:
        which, sources: code and state of every branch; all add to node 2.
        drop: whether skip-connects have masks.
        sizes: see `cells.geometry_of`.
    """

    def __init__(
        self, which: list[int], sources: list[int], *, dtype: torch.dtype = torch.float32, seed: int = 0,
        drop: bool = False, **sizes: Any,
    ) -> None:  # fmt: skip
        self.cell = cell = cell_of(which, sources, dtype=dtype, seed=seed, device=DEVICE, **sizes)
        g, generator = cell.geometry, torch.Generator().manual_seed(seed + 1)
        cell.inputs.copy_((4 * cell.inputs).round() / 4)  # ties in the max pools
        self.d_nodes = torch.randn(cell.nodes.shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
        self.d_inputs = torch.randn(cell.inputs.shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
        self.drop = self.scale = None
        count = len(which)
        maps = (count, g.batch, g.out_height, g.out_width, g.channels)
        if drop:
            self.drop = (torch.rand(maps, generator=generator) > 0.3).to(DEVICE, torch.uint8)
            self.scale = (torch.rand(count, generator=generator) + 1).to(DEVICE)
        forward = (cell.inputs, cell.nodes, cell.rows, *cell.weights)
        self.z1, self.stats1 = stages.grouped_stage(*forward, None, None, g, last=False)
        self.z, self.stats = stages.grouped_stage(*forward, self.z1, self.stats1, g, last=True)
        self._poison(self.z1, lambda row: row.stages == 2)
        self._poison(self.z, lambda row: row.code not in (codes.NONE, codes.SKIP))
        self.sums, _ = bn_combine_backward(
            self.d_nodes, cell.inputs, cell.nodes, self.z, self.stats, cell.rows, self.drop, self.scale, g
        )

    def _poison(self, maps: Tensor, is_real: Callable[[Any], bool]) -> None:
        for row in rows_of(self.cell.rows, self.cell.geometry):
            if not is_real(row):
                maps[row.number] = float("nan")

    def planes(self, *which: int) -> list[int]:
        """Numbers of the branches with these codes."""
        return [row.number for row in rows_of(self.cell.rows, self.cell.geometry) if row.code in which]

    def point(
        self, run: Callable[..., Tensor], *, last: bool, v: Tensor | None = None, sums: Tensor | None = None
    ) -> Tensor:
        """u of `point_backward`; planes that it does not write are NaN."""
        cell, g = self.cell, self.cell.geometry
        out = torch.full_like(self.z, float("nan"))
        run(
            self.d_nodes, v, self.z if last else self.z1, self.stats if last else self.stats1,
            self.sums if sums is None else sums, cell.rows, cell.gates, cell.pointwise, cell.dense, g, last=last,
            out=out,
        )  # fmt: skip
        return out

    def weights(
        self, run: Callable[..., None], u: Tensor, *, last: bool, v: Tensor | None = None, sums: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The arenas' gradients of `stage_weight_grads`; what it does not write is NaN."""
        cell = self.cell
        grads = tuple(torch.full_like(arena, float("nan")) for arena in cell.weights)
        own = (self.z, self.stats) if last else (self.z1, self.stats1)
        inner = (self.z1, self.stats1) if last else (None, None)
        run(
            self.d_nodes, v, *own, self.sums if sums is None else sums, u, cell.inputs, cell.nodes, *inner, cell.rows,
            cell.gates, cell.depthwise, *grads, cell.geometry, last=last,
        )  # fmt: skip
        return grads

    def gather(self, run: Callable[..., None], u: Tensor, *, want_inputs: bool = True) -> tuple[Tensor, Tensor]:
        """(d_nodes, d_inputs) after `gather_backward` added to them."""
        cell = self.cell
        d_nodes, d_inputs = self.d_nodes.clone(), self.d_inputs.clone()
        run(
            d_nodes, u, cell.inputs, cell.nodes, cell.rows, cell.gates, *cell.weights, self.drop, self.scale,
            d_inputs if want_inputs else None, cell.geometry,
        )  # fmt: skip
        return d_nodes, d_inputs


def agree(ours: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """Same places of NaN (planes that are not written), and close elsewhere."""
    assert torch.equal(ours.isnan(), truth.isnan())
    assert relative_error(ours.nan_to_num(), truth.nan_to_num()) < TOLERANCE[dtype]


def sources_of(which: list[int], stride: int) -> list[int]:
    """A state below node 2 for every branch: of one code, the first reads an input and the next a node."""
    found: list[int] = []
    for number, code in enumerate(which):
        first = code not in which[:number] and not (stride == 2 and code in (codes.SKIP, codes.CONV1, codes.CONV3))
        found.append(number % 2 if first or code == codes.REDUCE else 2 + number % 2)
    return found


# Codes of the branches, and the cell's sizes.
CASES: dict[str, tuple[list[int], dict[str, Any]]] = {
    "stride 1": (AT_STRIDE_1, {"height": 9, "width": 7}),
    "stride 1, planes, odd channels": (AT_STRIDE_1, {"height": 5, "width": 6, "channels": 24, "planes": True}),
    "stride 2": (BOTH_STRIDES, {"height": 10, "width": 6, "stride": 2}),
    "stride 2, odd channels": (AT_STRIDE_2, {"height": 6, "width": 14, "channels": 24, "stride": 2, "planes": True}),
    "C = 48": (
        [codes.SEP3, codes.MAX, codes.CONV3, codes.DIL5], {"height": 3, "width": 3, "channels": 48, "batch": 1},
    ),
    "C = 192": ([codes.SEP5, codes.SKIP], {"height": 3, "width": 2, "channels": 192, "batch": 1}),
    "C = 192, stride 2": (
        [codes.REDUCE], {"height": 4, "width": 2, "channels": 192, "batch": 1, "stride": 2},
    ),
}  # fmt: skip
# Every dtype on maps of 16 channels; one for each other size, so that the interpreter is done in time.
NAMES_AND_DTYPES = [
    *((name, dtype) for name in ("stride 1", "stride 2") for dtype in (torch.float32, torch.bfloat16, torch.float64)),
    *((name, torch.float32) for name in CASES if "odd channels" in name),
    *((name, torch.bfloat16) for name in CASES if "C = " in name),
]


def case_of(name: str, dtype: torch.dtype, **changes: Any) -> Case:
    """One of the cases above."""
    which, sizes = CASES[name]
    return Case(which, sources_of(which, sizes.get("stride", 1)), dtype=dtype, **{**sizes, **changes})
