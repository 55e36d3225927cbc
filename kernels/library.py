"""The kernels as torch operators: schema, shapes without data, FLOPs, and the scratch that they allocate inside.

Each operator runs its Triton kernel on CUDA tensors (and on CPU tensors in Triton's interpreter) and its
plain-PyTorch twin on other CPU tensors. Shape suffixes: as in `branches`; R rows of a branch table.

FLOP formulas and scratch are those of the dearest sample, since shapes do not depend on it: every branch a 5x5
depthwise convolution and a pointwise one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import backend, flops
from .branches import Geometry

# Taps of the dearest depthwise convolution.
TAPS = 25


def _geometry(values: Sequence[int]) -> Geometry:
    return Geometry(*values)


@functools.cache
def _values(geometry: Geometry) -> tuple[int, ...]:
    return dataclasses.astuple(geometry)


def _maps(like: Tensor, rows: Tensor, geometry: Geometry) -> Tensor:
    return like.new_empty(rows.shape[0], geometry.batch, geometry.out_height, geometry.out_width, geometry.channels)


def _wide(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _vectors(like: Tensor, rows: Tensor, geometry: Geometry) -> Tensor:
    return like.new_empty(rows.shape[0], 2, geometry.channels, dtype=_wide(like))


@torch.library.custom_op("msgdas::grouped_stage", mutates_args=())
def _grouped_stage(
    inputs: Tensor, nodes: Tensor, rows: Tensor, depthwise: Tensor, pointwise: Tensor, dense: Tensor,
    z1: Tensor | None, stats1: Tensor | None, stats: Tensor | None, geometry: Sequence[int], last: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    run = backend.function("grouped_stage", inputs)
    z, found = run(
        inputs, nodes, rows, depthwise, pointwise, dense, z1, stats1, _geometry(geometry), last=last, stats_J2C=stats
    )
    return z, found if stats is None else found.new_empty(0)


@_grouped_stage.register_fake
def _(
    inputs: Tensor, nodes: Tensor, rows: Tensor, depthwise: Tensor, pointwise: Tensor, dense: Tensor,
    z1: Tensor | None, stats1: Tensor | None, stats: Tensor | None, geometry: Sequence[int], last: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    geo = _geometry(geometry)
    found = _vectors(inputs, rows, geo) if stats is None else inputs.new_empty(0, dtype=_wide(inputs))
    return _maps(inputs, rows, geo), found


def grouped_stage(
    inputs_IBHWC: Tensor, nodes: Tensor, branches_J8: Tensor, depthwise_TC: Tensor, pointwise_SCC: Tensor,
    dense_D9CC: Tensor, z1_JBHWC: Tensor | None, stats1_J2C: Tensor | None, geometry: Geometry, *, last: bool,
    stats_J2C: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(z_JBHWC, stats_J2C): one stage of every branch; see `grouped_stage.grouped_stage`."""
    z, found = _grouped_stage(
        inputs_IBHWC, nodes, branches_J8, depthwise_TC, pointwise_SCC, dense_D9CC, z1_JBHWC, stats1_J2C, stats_J2C,
        _values(geometry), last,
    )  # fmt: skip
    return z, found if stats_J2C is None else stats_J2C


@torch.library.custom_op("msgdas::bn_combine", mutates_args=("nodes",))
def _bn_combine(
    inputs: Tensor, nodes: Tensor, z: Tensor, stats: Tensor, rows: Tensor, gates: Tensor, drop: Tensor | None,
    scale: Tensor | None, geometry: Sequence[int], accumulate: bool,
) -> None:  # fmt: skip
    run = backend.function("bn_combine", inputs)
    run(inputs, nodes, z, stats, rows, gates, drop, scale, _geometry(geometry), accumulate=accumulate)


@_bn_combine.register_fake
def _(
    inputs: Tensor, nodes: Tensor, z: Tensor, stats: Tensor, rows: Tensor, gates: Tensor, drop: Tensor | None,
    scale: Tensor | None, geometry: Sequence[int], accumulate: bool,
) -> None:  # fmt: skip
    return None


def bn_combine(
    inputs_IBHWC: Tensor, nodes: Tensor, z_JBHWC: Tensor, stats_J2C: Tensor, branches_J8: Tensor, gates_EO: Tensor,
    drop_JBHWC: Tensor | None, drop_scale_J: Tensor | None, geometry: Geometry, *, accumulate: bool,
) -> None:  # fmt: skip
    """Add gate * BatchNorm(z) of every branch to its node; see `bn_combine.bn_combine`."""
    _bn_combine(
        inputs_IBHWC, nodes, z_JBHWC, stats_J2C, branches_J8, gates_EO, drop_JBHWC, drop_scale_J, _values(geometry),
        accumulate,
    )  # fmt: skip


@torch.library.custom_op("msgdas::bn_combine_backward", mutates_args=())
def _bn_combine_backward(
    d_nodes: Tensor, inputs: Tensor, nodes: Tensor, z: Tensor, stats: Tensor, rows: Tensor, drop: Tensor | None,
    scale: Tensor | None, geometry: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    run = backend.function("bn_combine_backward", inputs)
    return run(d_nodes, inputs, nodes, z, stats, rows, drop, scale, _geometry(geometry))


@_bn_combine_backward.register_fake
def _(
    d_nodes: Tensor, inputs: Tensor, nodes: Tensor, z: Tensor, stats: Tensor, rows: Tensor, drop: Tensor | None,
    scale: Tensor | None, geometry: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _vectors(inputs, rows, _geometry(geometry)), inputs.new_empty(rows.shape[0], dtype=_wide(inputs))


def bn_combine_backward(
    d_nodes: Tensor, inputs_IBHWC: Tensor, nodes: Tensor, z_JBHWC: Tensor, stats_J2C: Tensor, branches_J8: Tensor,
    drop_JBHWC: Tensor | None, drop_scale_J: Tensor | None, geometry: Geometry,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(sums_J2C, d_gates_J); see `bn_combine.bn_combine_backward`."""
    return _bn_combine_backward(
        d_nodes, inputs_IBHWC, nodes, z_JBHWC, stats_J2C, branches_J8, drop_JBHWC, drop_scale_J, _values(geometry)
    )


@torch.library.custom_op("msgdas::point_backward", mutates_args=("u",))
def _point_backward(
    d_nodes: Tensor, v: Tensor | None, z: Tensor, stats: Tensor, sums: Tensor, rows: Tensor, gates: Tensor,
    pointwise: Tensor, dense: Tensor, u: Tensor, geometry: Sequence[int], last: bool,
) -> None:  # fmt: skip
    run = backend.function("point_backward", z)
    run(d_nodes, v, z, stats, sums, rows, gates, pointwise, dense, _geometry(geometry), last=last, out=u)


@_point_backward.register_fake
def _(
    d_nodes: Tensor, v: Tensor | None, z: Tensor, stats: Tensor, sums: Tensor, rows: Tensor, gates: Tensor,
    pointwise: Tensor, dense: Tensor, u: Tensor, geometry: Sequence[int], last: bool,
) -> None:  # fmt: skip
    return None


def point_backward(
    d_nodes: Tensor, v_JBHWC: Tensor | None, z_JBHWC: Tensor, stats_J2C: Tensor, sums_J2C: Tensor,
    branches_J8: Tensor, gates_EO: Tensor, pointwise_SCC: Tensor, dense_D9CC: Tensor, geometry: Geometry, *,
    last: bool, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """u_JBHWC, gradient of the depthwise outputs; see `stage_backward.point_backward`."""
    u = _maps(z_JBHWC, branches_J8, geometry) if out is None else out
    _point_backward(
        d_nodes, v_JBHWC, z_JBHWC, stats_J2C, sums_J2C, branches_J8, gates_EO, pointwise_SCC, dense_D9CC, u,
        _values(geometry), last,
    )  # fmt: skip
    return u


@torch.library.custom_op("msgdas::taps_backward", mutates_args=())
def _taps_backward(
    u: Tensor, z1: Tensor, stats1: Tensor, rows: Tensor, depthwise: Tensor, geometry: Sequence[int]
) -> tuple[Tensor, Tensor]:
    return backend.function("taps_backward", u)(u, z1, stats1, rows, depthwise, _geometry(geometry))


@_taps_backward.register_fake
def _(
    u: Tensor, z1: Tensor, stats1: Tensor, rows: Tensor, depthwise: Tensor, geometry: Sequence[int]
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u), _vectors(u, rows, _geometry(geometry))


def taps_backward(
    u_JBHWC: Tensor, z1_JBHWC: Tensor, stats1_J2C: Tensor, branches_J8: Tensor, depthwise_TC: Tensor,
    geometry: Geometry,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(v_JBHWC, sums1_J2C) of sep_conv's inner BatchNorm; see `stage_backward.taps_backward`."""
    return _taps_backward(u_JBHWC, z1_JBHWC, stats1_J2C, branches_J8, depthwise_TC, _values(geometry))


@torch.library.custom_op("msgdas::gather_backward", mutates_args=("d_nodes", "d_inputs"))
def _gather_backward(
    d_nodes: Tensor, u: Tensor, inputs: Tensor, nodes: Tensor, rows: Tensor, gates: Tensor, depthwise: Tensor,
    pointwise: Tensor, dense: Tensor, drop: Tensor | None, scale: Tensor | None, d_inputs: Tensor | None,
    geometry: Sequence[int],
) -> None:  # fmt: skip
    run = backend.function("gather_backward", inputs)
    geo = _geometry(geometry)
    run(d_nodes, u, inputs, nodes, rows, gates, depthwise, pointwise, dense, drop, scale, d_inputs, geo)


@_gather_backward.register_fake
def _(
    d_nodes: Tensor, u: Tensor, inputs: Tensor, nodes: Tensor, rows: Tensor, gates: Tensor, depthwise: Tensor,
    pointwise: Tensor, dense: Tensor, drop: Tensor | None, scale: Tensor | None, d_inputs: Tensor | None,
    geometry: Sequence[int],
) -> None:  # fmt: skip
    return None


def gather_backward(
    d_nodes: Tensor, u_JBHWC: Tensor, inputs_IBHWC: Tensor, nodes: Tensor, branches_J8: Tensor, gates_EO: Tensor,
    depthwise_TC: Tensor, pointwise_SCC: Tensor, dense_D9CC: Tensor, drop_JBHWC: Tensor | None,
    drop_scale_J: Tensor | None, d_inputs_IBHWC: Tensor | None, geometry: Geometry,
) -> None:  # fmt: skip
    """Add the branches' gradients to their sources; see `stage_backward.gather_backward`."""
    _gather_backward(
        d_nodes, u_JBHWC, inputs_IBHWC, nodes, branches_J8, gates_EO, depthwise_TC, pointwise_SCC, dense_D9CC,
        drop_JBHWC, drop_scale_J, d_inputs_IBHWC, _values(geometry),
    )  # fmt: skip


@torch.library.custom_op("msgdas::stage_weight_grads", mutates_args=("d_depthwise", "d_pointwise", "d_dense"))
def _stage_weight_grads(
    d_nodes: Tensor, v: Tensor | None, z: Tensor, stats: Tensor, sums: Tensor, u: Tensor, inputs: Tensor,
    nodes: Tensor, z1: Tensor | None, stats1: Tensor | None, rows: Tensor, gates: Tensor, depthwise: Tensor,
    d_depthwise: Tensor, d_pointwise: Tensor, d_dense: Tensor, geometry: Sequence[int], last: bool,
) -> None:  # fmt: skip
    run = backend.function("stage_weight_grads", inputs)
    run(
        d_nodes, v, z, stats, sums, u, inputs, nodes, z1, stats1, rows, gates, depthwise, d_depthwise, d_pointwise,
        d_dense, _geometry(geometry), last=last,
    )  # fmt: skip


@_stage_weight_grads.register_fake
def _(
    d_nodes: Tensor, v: Tensor | None, z: Tensor, stats: Tensor, sums: Tensor, u: Tensor, inputs: Tensor,
    nodes: Tensor, z1: Tensor | None, stats1: Tensor | None, rows: Tensor, gates: Tensor, depthwise: Tensor,
    d_depthwise: Tensor, d_pointwise: Tensor, d_dense: Tensor, geometry: Sequence[int], last: bool,
) -> None:  # fmt: skip
    return None


def stage_weight_grads(
    d_nodes: Tensor, v_JBHWC: Tensor | None, z_JBHWC: Tensor, stats_J2C: Tensor, sums_J2C: Tensor, u_JBHWC: Tensor,
    inputs_IBHWC: Tensor, nodes: Tensor, z1_JBHWC: Tensor | None, stats1_J2C: Tensor | None, branches_J8: Tensor,
    gates_EO: Tensor, depthwise_TC: Tensor, d_depthwise_TC: Tensor, d_pointwise_SCC: Tensor, d_dense_D9CC: Tensor,
    geometry: Geometry, *, last: bool,
) -> None:  # fmt: skip
    """Write the sampled operations' weight gradients; see `stage_weights.stage_weight_grads`."""
    _stage_weight_grads(
        d_nodes, v_JBHWC, z_JBHWC, stats_J2C, sums_J2C, u_JBHWC, inputs_IBHWC, nodes, z1_JBHWC, stats1_J2C,
        branches_J8, gates_EO, depthwise_TC, d_depthwise_TC, d_pointwise_SCC, d_dense_D9CC, _values(geometry), last,
    )  # fmt: skip


@torch.library.custom_op("msgdas::drop_mask", mutates_args=())
def _drop_mask(
    rows: Tensor, clock: Tensor, stream: int, rate: Tensor, geometry: Sequence[int], kind: str
) -> tuple[Tensor, Tensor]:
    return backend.function("drop_mask", rows)(rows, clock, stream, rate, _geometry(geometry), kind=kind)


@_drop_mask.register_fake
def _(
    rows: Tensor, clock: Tensor, stream: int, rate: Tensor, geometry: Sequence[int], kind: str
) -> tuple[Tensor, Tensor]:
    geo = _geometry(geometry)
    return _maps(rate, rows, geo).to(torch.uint8), rate.new_empty(rows.shape[0], dtype=torch.float32)


def drop_mask(
    branches_J8: Tensor, clock: Tensor, stream: int, rate: Tensor, geometry: Geometry, *, kind: str
) -> tuple[Tensor, Tensor]:
    """(drop_JBHWC, drop_scale_J) of Dropblock-Identity; see `drop_mask.drop_mask`."""
    return _drop_mask(branches_J8, clock, stream, rate, _values(geometry), kind)


@torch.library.custom_op("msgdas::prepare_into", mutates_args=("out",))
def _prepare_into(x: Tensor, first: Tensor, second: Tensor | None, out: Tensor, stats: Tensor | None) -> Tensor:
    found = backend.function("prepare_into", x)(x, first, second, out, stats)
    return found if stats is None else found.new_empty(0)


@_prepare_into.register_fake
def _(x: Tensor, first: Tensor, second: Tensor | None, out: Tensor, stats: Tensor | None) -> Tensor:
    return out.new_empty((2, out.shape[-1]) if stats is None else (0,), dtype=_wide(out))


def prepare_into(
    x_BHWI: Tensor, first_OI: Tensor, second_OI: Tensor | None, out_BHWO: Tensor, stats_2O: Tensor | None
) -> Tensor:
    """Statistics [2, O] of ReLU-1x1, whose normalised map is written to `out`; see `prepare.prepare_into`."""
    found = _prepare_into(x_BHWI, first_OI, second_OI, out_BHWO, stats_2O)
    return found if stats_2O is None else stats_2O


@torch.library.custom_op("msgdas::prepare_backward", mutates_args=())
def _prepare_backward(
    d: Tensor, xhat: Tensor, x: Tensor, first: Tensor, second: Tensor | None, stats: Tensor, need_x: bool, need_w: bool
) -> tuple[Tensor, Tensor]:
    run = backend.function("prepare_backward", x)
    return run(d, xhat, x, first, second, stats, need_x=need_x, need_w=need_w)


@_prepare_backward.register_fake
def _(
    d: Tensor, xhat: Tensor, x: Tensor, first: Tensor, second: Tensor | None, stats: Tensor, need_x: bool, need_w: bool
) -> tuple[Tensor, Tensor]:
    shape = (d.shape[-1], x.shape[-1]) if need_w else (0,)
    return torch.empty_like(x) if need_x else x.new_empty(0), x.new_empty(shape, dtype=_wide(x))


def prepare_backward(
    d_BHWO: Tensor, xhat_BHWO: Tensor, x_BHWI: Tensor, first_OI: Tensor, second_OI: Tensor | None, stats_2O: Tensor,
    *, need_x: bool, need_w: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dx, dw) of a prepared input; see `prepare_backward.prepare_backward`."""
    return _prepare_backward(d_BHWO, xhat_BHWO, x_BHWI, first_OI, second_OI, stats_2O, need_x, need_w)


@torch.library.custom_op("msgdas::draw", mutates_args=())
def _draw(
    alpha: Tensor, clock: Tensor, tau: Tensor, k: int, stream: int, relaxation: str, noise: bool, mode: str, assign: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from .gumbel_topk import draw

    settings: dict[str, Any] = {"relaxation": relaxation, "noise": noise, "mode": mode, "assign": assign}
    return draw(alpha.detach(), clock, tau, k=k, stream=stream, **settings)


@_draw.register_fake
def _(
    alpha: Tensor, clock: Tensor, tau: Tensor, k: int, stream: int, relaxation: str, noise: bool, mode: str, assign: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    edges = alpha.shape[0]
    networks = 1 if mode == "union" else k
    indices = alpha.new_empty(edges, k, dtype=torch.int32)
    gates = alpha.new_empty(networks, *alpha.shape)
    return indices, gates, torch.empty_like(gates), torch.empty_like(indices), alpha.new_empty(k, *alpha.shape)


@torch.library.custom_op("msgdas::draw_backward", mutates_args=())
def _draw_backward(
    d_gates: Tensor, indices: Tensor, places: Tensor, ranks: Tensor, tau: Tensor, relaxation: str
) -> Tensor:
    from .gumbel_topk import draw_backward

    choice: Any = relaxation
    return draw_backward(d_gates, indices, places, ranks, tau, choice)


@_draw_backward.register_fake
def _(d_gates: Tensor, indices: Tensor, places: Tensor, ranks: Tensor, tau: Tensor, relaxation: str) -> Tensor:
    return torch.empty_like(ranks[0])


def _keep_for_backward(ctx: Any, inputs: Any, output: Any) -> None:
    indices, _, soft, places, ranks = output
    ctx.save_for_backward(indices, places, ranks, inputs[2])
    ctx.relaxation = inputs[5]
    ctx.mark_non_differentiable(indices, soft, places, ranks)


def _backward_of_draw(ctx: Any, *grads: Any) -> Any:
    indices, places, ranks, tau = ctx.saved_tensors
    return _draw_backward(grads[1], indices, places, ranks, tau, ctx.relaxation), *[None] * 8


_draw.register_autograd(_backward_of_draw, setup_context=_keep_for_backward)


def gumbel_topk(
    alpha_EO: Tensor, clock: Tensor, tau: Tensor, *, k: int, stream: int, relaxation: Any, noise: bool, mode: Any,
    assign: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(indices_EK, gates_NEO, soft_NEO), differentiable in alpha; see `reference.gumbel_topk.gumbel_topk`."""
    if backend.runs_triton(alpha_EO):
        indices, gates, soft, _, _ = _draw(alpha_EO, clock, tau, k, stream, relaxation, noise, mode, assign)
        return indices, gates, soft
    twin = backend.function("gumbel_topk", alpha_EO)
    return twin(alpha_EO, clock, tau, k=k, stream=stream, relaxation=relaxation, noise=noise, mode=mode, assign=assign)


flops.register()
