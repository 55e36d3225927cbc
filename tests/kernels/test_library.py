"""The operators as torch sees them: schema, shapes without data, autograd, and every argument's check."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from msgdas.kernels import branches as codes
from msgdas.kernels import gumbel_topk, library
from msgdas.kernels.errors import KernelError
from torch import Tensor

from .backward_cases import DEVICE, Case
from .cells import geometry_of, rows_of

# A whole-operator check runs an operator about six times: one tile of each.
SIZES = {"batch": 1, "height": 3, "width": 2, "channels": 16}
# Where every plane is written, so that two runs can be compared.
ALL_PLANES = [codes.SEP3, codes.SEP5]


def stage_calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Arguments of every operator of a node by name; with all statistics and without, first stage and last."""
    case = Case(ALL_PLANES, [0, 2], **SIZES)
    cell, values = case.cell, list(dataclasses.astuple(case.cell.geometry))
    forward = (cell.inputs, cell.nodes.nan_to_num(), cell.rows, *cell.weights)
    nodes, d_nodes, u = forward[1], case.d_nodes, torch.zeros_like(case.z)
    grads = tuple(torch.zeros_like(arena) for arena in cell.weights)
    point = (case.z, case.stats, case.sums, cell.rows, cell.gates, cell.pointwise, cell.dense)
    v, inner = torch.ones_like(case.z1), (case.z1, case.stats1)
    skips = rows_of([codes.SKIP, codes.SKIP], [0, 1], 2).to(DEVICE)
    clock, rate = torch.tensor([3, 5]).to(DEVICE), torch.full((), 0.3, device=DEVICE)
    drop, scale = library.drop_mask(skips, clock, 0, rate, cell.geometry, kind="dropout")
    weights = (cell.inputs, nodes)
    return {
        "first stage": (library._grouped_stage, (*forward, None, None, None, values, False)),
        "last stage": (library._grouped_stage, (*forward, *inner, None, values, True)),
        "known statistics": (library._grouped_stage, (*forward, *inner, case.stats, values, True)),
        "combine": (
            library._bn_combine,
            (cell.inputs, nodes, case.z, case.stats, cell.rows, cell.gates, None, None, values, True),
        ),
        "combine with masks": (
            library._bn_combine,
            (cell.inputs, nodes, case.z, case.stats, skips, cell.gates, drop, scale, values, False),
        ),
        "combine backward": (
            library._bn_combine_backward,
            (d_nodes, cell.inputs, nodes, case.z, case.stats, cell.rows, None, None, values),
        ),
        "point backward": (library._point_backward, (d_nodes, None, *point, u, values, True)),
        "point backward, first stage": (
            library._point_backward,
            (d_nodes, v, case.z1, case.stats1, *point[2:], u, values, False),
        ),
        "taps backward": (library._taps_backward, (v, *inner, cell.rows, cell.depthwise, values)),
        "gather": (
            library._gather_backward,
            (d_nodes, v, *weights, cell.rows, cell.gates, *cell.weights, None, None, case.d_inputs, values),
        ),
        "weights": (
            library._stage_weight_grads,
            (
                d_nodes, None, case.z, case.stats, case.sums, v, *weights, *inner, cell.rows, cell.gates,
                cell.depthwise, *grads, values, True,
            ),
        ),
        "masks": (library._drop_mask, (skips, clock, 0, rate, values, "dropblock")),
    }  # fmt: skip


def prepared_calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Arguments of the operators on a cell's inputs and on alpha."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE)

    x, first, second = random(1, 4, 2, 16), random(8, 16), random(8, 16)
    out = random(1, 2, 1, 16)
    stats = torch.stack((random(16), random(16).abs()))
    alpha, tau = random(3, 5), torch.ones((), device=DEVICE)
    clock = torch.tensor([3, 5]).to(DEVICE)
    indices, gates, _, places, ranks = gumbel_topk.draw(
        alpha, clock, tau, k=2, stream=0, relaxation="masked", noise=True, mode="union", assign="rank"
    )
    draw = (clock, tau, 2, 0, "masked", True, "union", "rank")
    return {
        "prepare": (library._prepare_into, (x, first, second, out, None)),
        "prepare, known statistics": (library._prepare_into, (x, first, None, random(1, 4, 2, 8), stats[:, :8] + 0.0)),
        "prepare backward": (library._prepare_backward, (random(*out.shape), out, x, first, second, stats, True, True)),
        "prepare backward, nothing": (
            library._prepare_backward,
            (random(*out.shape), out, x, first, second, stats, False, False),
        ),
        "draw": (library._draw, (alpha.clone().requires_grad_(), *draw)),
        "draw backward": (library._draw_backward, (torch.ones_like(gates), indices, places, ranks, tau, "masked")),
    }


CALLS: list[tuple[Callable[[], dict[str, tuple[Any, tuple[Any, ...]]]], str]] = [
    *((stage_calls, name) for name in stage_calls()),
    *((prepared_calls, name) for name in prepared_calls()),
]


@pytest.mark.parametrize(("calls", "name"), CALLS, ids=[name for _, name in CALLS])
def test_torch_accepts_every_operator(calls, name):
    operator, arguments = calls()[name]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if name == "draw":
        # It adds up the outputs in the dtype of the first, which is an integer here.
        checks.remove("test_aot_dispatch_dynamic")
    torch.library.opcheck(operator, arguments, test_utils=checks)


def test_every_operator_is_looked_at():
    registered = {value for value in vars(library).values() if isinstance(value, torch._library.custom_ops.CustomOpDef)}
    assert registered == {calls()[name][0] for calls, name in CALLS}


# What the kernels call an operator's arguments; the others are called by their names and shape suffixes.
LONG_NAMES = {"rows": "branches_J8", "scale": "drop_scale_J", "stats": "stats_", "alpha": "alpha_EO"}


def of_another_dtype(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() and tensor.dim() else tensor.to(torch.int16)


def of_another_layout(tensor: Tensor) -> Tensor:
    return torch.stack((tensor, tensor), -1)[..., 0]


def on_another_device(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


@pytest.mark.parametrize("spoil", [of_another_dtype, of_another_layout, on_another_device])
@pytest.mark.parametrize(("calls", "name"), CALLS, ids=[name for _, name in CALLS])
def test_a_wrong_tensor_is_named_before_a_launch(calls, name, spoil):
    operator, arguments = calls()[name]
    for place, argument in enumerate(operator._opoverload._schema.arguments):
        given = arguments[place]
        # Autograd gives gates' gradients in any layout.
        any_layout = argument.name == "d_gates" or not isinstance(given, Tensor) or given.numel() < 2
        if not isinstance(given, Tensor) or (spoil is of_another_layout and any_layout):
            continue
        spoilt = (*arguments[:place], spoil(given), *arguments[place + 1 :])
        with pytest.raises(KernelError, match=r"got .*; allowed: ") as caught:
            operator._init_fn(*spoilt)
        called = "out" if (operator, argument.name) == (library._point_backward, "u") else argument.name
        # Where it is the one that the devices of the others are compared with, one of those is named.
        if spoil is not on_another_device:
            assert caught.value.argument.startswith(LONG_NAMES.get(called, called)), argument.name


def test_too_many_elements_for_an_index_are_refused():
    geometry = geometry_of(batch=1 << 20, height=32, width=4)
    maps = torch.empty(2, 1 << 20, 32, 4, 16, device="meta")
    nodes = torch.empty(1 << 20, 32, 4, 48, device="meta")
    rows = torch.empty(1, codes.COLUMNS, dtype=torch.int32, device="meta")
    arena = torch.empty(0, 16, device="meta")
    dense = torch.empty(0, 9, 16, 16, device="meta")
    with pytest.raises(KernelError, match=r"geometry: got .* elements in a map"):
        library._grouped_stage._init_fn(
            maps, nodes, rows, arena, dense[:, 0], dense, None, None, None, list(dataclasses.astuple(geometry)), False
        )
