"""What the kernels require of their arguments, checked before a launch.

Shape suffixes: as in `branches`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .branches import COLUMNS, Geometry
from .errors import KernelError

MAP_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums and statistics of maps of this dtype are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_maps(inputs_IBHWC: Tensor, nodes: Tensor, geometry: Geometry) -> None:
    """The cell's maps have the geometry's sizes, one dtype and one device."""
    g = geometry
    if inputs_IBHWC.dtype not in MAP_DTYPES:
        raise KernelError("inputs_IBHWC", got=inputs_IBHWC.dtype, allowed="float32, bfloat16 or float64")
    expected = (g.inputs, g.batch, g.height, g.width, g.channels)
    if tuple(inputs_IBHWC.shape) != expected or not inputs_IBHWC.is_contiguous():
        got = f"shape {tuple(inputs_IBHWC.shape)}, strides {inputs_IBHWC.stride()}"
        raise KernelError("inputs_IBHWC", got=got, allowed=f"contiguous {expected}")
    check_nodes("nodes", nodes, inputs_IBHWC, geometry)
    elements = max(g.batch * g.height * g.width * g.channels, g.pixels * g.row_stride)
    if elements >= 1 << 31:
        raise KernelError("geometry", got=f"{elements} elements in a map", allowed="fewer than 2**31")
    if g.stride == 2 and (g.height % 2 or g.width % 2):
        raise KernelError("geometry", got=f"{g.height} x {g.width} at stride 2", allowed="even sides")


def check_nodes(name: str, nodes: Tensor, like: Tensor, geometry: Geometry) -> None:
    """A tensor in the layout of the nodes."""
    g = geometry
    side_by_side = (g.batch, g.out_height, g.out_width, g.nodes * g.channels)
    one_by_one = (g.nodes, g.batch, g.out_height, g.out_width, g.channels)
    allowed = one_by_one if g.row_stride == g.channels else side_by_side
    if tuple(nodes.shape) not in (allowed, one_by_one if g.nodes == 1 else allowed) or not nodes.is_contiguous():
        got = f"shape {tuple(nodes.shape)}, strides {nodes.stride()}"
        raise KernelError(name, got=got, allowed=f"contiguous {allowed}")
    check_like(name, nodes, like)


def check_like(name: str, tensor: Tensor, like: Tensor) -> None:
    """Same dtype and device as the maps."""
    if tensor.dtype != like.dtype:
        raise KernelError(name, got=tensor.dtype, allowed=str(like.dtype))
    if tensor.device != like.device:
        raise KernelError(name, got=tensor.device, allowed=str(like.device))


def check_rows(branches_J8: Tensor, like: Tensor) -> None:
    """A range of rows of a branch table."""
    if branches_J8.dtype != torch.int32:
        raise KernelError("branches_J8", got=branches_J8.dtype, allowed="int32")
    if branches_J8.dim() != 2 or branches_J8.shape[1] != COLUMNS or not branches_J8.is_contiguous():
        raise KernelError("branches_J8", got=f"shape {tuple(branches_J8.shape)}", allowed=f"contiguous [J, {COLUMNS}]")
    if branches_J8.shape[0] == 0:
        raise KernelError("branches_J8", got="no rows", allowed="at least one")
    if branches_J8.device != like.device:
        raise KernelError("branches_J8", got=branches_J8.device, allowed=str(like.device))


def check_weights(depthwise_TC: Tensor, pointwise_SCC: Tensor, dense_D9CC: Tensor, like: Tensor) -> None:
    """The arenas, in the precision of sums."""
    c = like.shape[-1]
    shapes = {"depthwise_TC": (c,), "pointwise_SCC": (c, c), "dense_D9CC": (9, c, c)}
    for (name, shape), tensor in zip(shapes.items(), (depthwise_TC, pointwise_SCC, dense_D9CC), strict=True):
        check_slots(name, tensor, shape, like)


def check_slots(name: str, arena: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """An arena of slots of this shape, or gradients of one, in the precision of sums."""
    if tuple(arena.shape[1:]) != shape or not arena.is_contiguous():
        allowed = f"contiguous [slots, {', '.join(map(str, shape))}]"
        raise KernelError(name, got=f"shape {tuple(arena.shape)}", allowed=allowed)
    check_wide(name, arena, like)


def check_wide(name: str, tensor: Tensor, like: Tensor) -> None:
    """Precision of the sums over these maps, and their device."""
    if tensor.dtype != wide(like.dtype) or tensor.device != like.device:
        got = f"{tensor.dtype} on {tensor.device}"
        raise KernelError(name, got=got, allowed=f"{wide(like.dtype)} on {like.device}")


def check_drop(drop_JBHWC: Tensor | None, drop_scale_J: Tensor | None, maps_JBHWC: Tensor) -> None:
    """Masks of the branches and their scales, both or neither."""
    if (drop_JBHWC is None) != (drop_scale_J is None):
        raise KernelError("drop_scale_J", got="one of mask and scale", allowed="both or neither")
    if drop_JBHWC is None or drop_scale_J is None:
        return
    expected, count, device = tuple(maps_JBHWC.shape), maps_JBHWC.shape[0], maps_JBHWC.device
    if drop_JBHWC.dtype != torch.uint8 or tuple(drop_JBHWC.shape) != expected or not drop_JBHWC.is_contiguous():
        got = f"{drop_JBHWC.dtype} {tuple(drop_JBHWC.shape)}"
        raise KernelError("drop_JBHWC", got=got, allowed=f"contiguous uint8 {expected}")
    if drop_scale_J.dtype != torch.float32 or tuple(drop_scale_J.shape) != (count,) or not drop_scale_J.is_contiguous():
        got = f"{drop_scale_J.dtype} {tuple(drop_scale_J.shape)}"
        raise KernelError("drop_scale_J", got=got, allowed=f"contiguous float32 ({count},)")
    for name, tensor in (("drop_JBHWC", drop_JBHWC), ("drop_scale_J", drop_scale_J)):
        if tensor.device != device:
            raise KernelError(name, got=tensor.device, allowed=str(device))


def check_first_stage(
    z1_JBHWC: Tensor | None, stats1_J2C: Tensor | None, branches_J8: Tensor, like: Tensor, geometry: Geometry
) -> None:
    """The first stage's maps and statistics, both or neither."""
    if (z1_JBHWC is None) != (stats1_J2C is None):
        raise KernelError("stats1_J2C", got="one of z1_JBHWC and stats1_J2C", allowed="both or neither")
    if z1_JBHWC is not None and stats1_J2C is not None:
        check_branch_maps("z1_JBHWC", z1_JBHWC, branches_J8, like, geometry)
        check_vectors("stats1_J2C", stats1_J2C, branches_J8, like)


def check_branch_maps(name: str, maps_JBHWC: Tensor, branches_J8: Tensor, like: Tensor, geometry: Geometry) -> None:
    """One map of a node's size for each branch."""
    g = geometry
    expected = (branches_J8.shape[0], g.batch, g.out_height, g.out_width, g.channels)
    if tuple(maps_JBHWC.shape) != expected or not maps_JBHWC.is_contiguous():
        raise KernelError(name, got=f"shape {tuple(maps_JBHWC.shape)}", allowed=f"contiguous {expected}")
    if maps_JBHWC.dtype not in MAP_DTYPES:
        raise KernelError(name, got=maps_JBHWC.dtype, allowed="float32, bfloat16 or float64")
    check_like(name, maps_JBHWC, like)


def check_vectors(name: str, vectors_J2C: Tensor, branches_J8: Tensor, like: Tensor) -> None:
    """Statistics or sums of each branch."""
    expected = (branches_J8.shape[0], 2, like.shape[-1])
    if tuple(vectors_J2C.shape) != expected or not vectors_J2C.is_contiguous():
        raise KernelError(name, got=f"shape {tuple(vectors_J2C.shape)}", allowed=f"contiguous {expected}")
    check_wide(name, vectors_J2C, like)


def check_gates(gates_EO: Tensor, like: Tensor) -> None:
    """The gates, in the precision of sums."""
    if gates_EO.dtype != wide(like.dtype) or not gates_EO.is_contiguous() or gates_EO.device != like.device:
        got = f"{gates_EO.dtype} on {gates_EO.device}, strides {gates_EO.stride()}"
        raise KernelError("gates_EO", got=got, allowed=f"contiguous {wide(like.dtype)} on {like.device}")


def check_arena_grads(grads: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Gradients of the arenas: the arenas' shape, dtype and device."""
    for name, (grad, arena) in grads.items():
        if grad.shape != arena.shape or grad.dtype != arena.dtype or not grad.is_contiguous():
            got = f"{grad.dtype} {tuple(grad.shape)}"
            raise KernelError(name, got=got, allowed=f"contiguous {arena.dtype} {tuple(arena.shape)}")
        check_like(name, grad, arena)
