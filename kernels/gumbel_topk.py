"""Gumbel-Top-K in one launch, its closed-form gradient in another.

Shape suffixes: as in the twin `reference.gumbel_topk`. A program owns some edges, which do not depend on each other.
The noise is computed from counters in device memory, so nothing here waits for the host and a captured launch draws
anew whenever the clock was advanced.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .errors import KernelError
from .reference import gumbel_topk as twin
from .reference.gumbel_topk import Assign, Mode, Relaxation

STREAM_BITS, STEP_BITS = tl.constexpr(twin.STREAM_BITS), tl.constexpr(twin.STEP_BITS)
SHUFFLE_STREAM = tl.constexpr(twin.SHUFFLE_STREAM)
UNIFORM_LOW, UNIFORM_HIGH = tl.constexpr(twin.UNIFORM_LOW), tl.constexpr(twin.UNIFORM_HIGH)
RELAXATIONS = ("masked", "shared", "soft")
MASKED, SHARED, SOFT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# Edges of a program. One warp: a cell's whole table is some hundred numbers.
EDGES, NUM_WARPS = 16, 1


@triton.jit
def _softmax(x):
    """Of each row, [BE, BO]; minus infinity counts for nothing."""
    e = tl.exp(x - tl.max(x, 1)[:, None])
    return e / tl.sum(e, 1)[:, None]


@triton.jit
def _noise(u):
    """-log(-log u); in fp64, since the GPU's fast fp32 logarithm is wrong where u is near 1."""
    u = tl.minimum(tl.maximum(u, UNIFORM_LOW), UNIFORM_HIGH).to(tl.float64)
    return (-tl.log(-tl.log(u))).to(tl.float32)


@triton.jit
def _place(seed, start, e, rank, K: tl.constexpr, BK: tl.constexpr):
    """[BE] position of a rank in the edge's shuffle: how many uniform numbers of the edge come before its own."""
    k = tl.arange(0, BK)[None, :]
    u = tl.rand(seed, start + e[:, None] * K + k)
    own = tl.rand(seed, start + e * K + rank)[:, None]
    before = (u < own) | ((u == own) & (k < rank))
    return tl.sum((before & (k < K)).to(tl.int32), 1)


@triton.jit(do_not_specialize=["edges", "stream"])
def draw_kernel(
    alpha, clock, tau, indices, places, gates, soft, ranks, edges, stream,
    O: tl.constexpr, K: tl.constexpr, RELAXATION: tl.constexpr, NOISE: tl.constexpr, UNION: tl.constexpr,
    SHUFFLE: tl.constexpr, BE: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of edges. ranks: p_KEO, for the backward; places: the network that runs each rank, [E, K]."""
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    o = tl.arange(0, BO)[None, :]
    alive = e < edges
    exists = o < O
    inside = alive[:, None] & exists
    own = e[:, None] * O + o
    plane = edges * O
    t = tl.load(tau).to(ACC)
    a = tl.load(alpha + own, mask=inside, other=0.0)
    a = tl.where(exists, a, float("-inf"))
    s = a - tl.max(a, 1)[:, None]
    s = s - tl.log(tl.sum(tl.exp(s), 1))[:, None]
    seed = tl.cast(0, tl.int64)
    start = tl.cast(0, tl.int64)
    if NOISE | SHUFFLE:
        seed = tl.load(clock)
        start = (tl.load(clock + 1) << STEP_BITS) + (tl.cast(stream, tl.int64) << STREAM_BITS)
    if NOISE:
        s += _noise(tl.rand(seed, start + own)).to(ACC)
    taken = (o >= O) & (e >= 0)[:, None]
    left = s
    behind = tl.zeros((BE, BO), ACC)
    last = tl.zeros((BE, BO), ACC)
    for rank in range(K):
        # The first operation that is not taken among those with the largest score; NaN counts as the largest.
        key = tl.where(taken, float("-inf"), tl.where(s == s, s, float("inf")))
        best = (key == tl.max(key, 1)[:, None]) & (taken == 0)
        chosen = tl.min(tl.where(best, o, BO), 1)
        hit = o == chosen[:, None]
        if RELAXATION == MASKED:
            p = _softmax(tl.where(taken, float("-inf"), s) / t)
        elif RELAXATION == SHARED:
            p = _softmax(tl.where(exists, s, float("-inf")) / t)
        else:
            p = _softmax(tl.where(exists, left, float("-inf")) / t)
            left = left + tl.log(tl.maximum(1 - p, UNIFORM_LOW))
        place = tl.zeros((BE,), tl.int32)
        if not UNION:
            place += rank
            if SHUFFLE:
                place = _place(seed, start + (SHUFFLE_STREAM << STREAM_BITS), e, rank, K, BK)
            target = place[:, None] * plane + own
            tl.store(gates + target, tl.where(hit, (1 - p) + p, 0.0), mask=inside)
            tl.store(soft + target, p, mask=inside)
        else:
            behind = tl.where(hit, p, behind)
            last = p
        tl.store(ranks + rank * plane + own, p, mask=inside)
        tl.store(indices + e * K + rank, chosen, mask=alive)
        tl.store(places + e * K + rank, place, mask=alive)
        taken = taken | hit
    if UNION:
        runs = taken & exists
        behind = tl.where(runs, behind, last)
        value = _softmax(tl.where(runs, s, float("-inf")) / t)
        tl.store(gates + own, tl.where(runs, (value - behind) + behind, 0.0), mask=inside)
        tl.store(soft + own, behind, mask=inside)


@triton.jit(do_not_specialize=["edges"])
def draw_backward_kernel(
    d_gates, indices, places, ranks, tau, d_alpha, edges,
    O: tl.constexpr, K: tl.constexpr, RELAXATION: tl.constexpr, BE: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """sum_k p_k (V_k - <p_k, V_k>) / tau, last rank first. Grid: blocks of edges.

    V_k is the gradient of p_k: that of the one gate that rank k feeds, and with `soft` what the later ranks pass
    back through log(1 - p_k). Rows sum to 0, so it is the gradient in alpha as well as in its log-softmax.
    """
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    o = tl.arange(0, BO)[None, :]
    alive = e < edges
    inside = alive[:, None] & (o < O)
    own = e[:, None] * O + o
    plane = edges * O
    t = tl.load(tau).to(ACC)
    total = tl.zeros((BE, BO), ACC)
    for i in range(K):
        rank = K - 1 - i
        p = tl.load(ranks + rank * plane + own, mask=inside, other=0.0)
        chosen = tl.load(indices + e * K + rank, mask=alive, other=0)
        place = tl.load(places + e * K + rank, mask=alive, other=0)
        v = tl.load(d_gates + place * plane + e * O + chosen, mask=alive, other=0.0)
        grad = tl.where(o == chosen[:, None], v[:, None], 0.0)
        if RELAXATION == SOFT:
            left = 1 - p
            grad -= tl.where(left >= UNIFORM_LOW, total / tl.maximum(left, UNIFORM_LOW), 0.0)
        total += p * (grad - tl.sum(p * grad, 1)[:, None]) / t
    tl.store(d_alpha + own, total, mask=inside)


def draw(
    alpha_EO: Tensor, clock: Tensor, tau: Tensor, *, k: int, stream: int, relaxation: Relaxation, noise: bool,
    mode: Mode, assign: Assign,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(indices_EK, gates_NEO, soft_NEO) as `gumbel_topk`, without gradient, and what `draw_backward` needs:
    (places_EK int32, ranks_KEO).

    Raises:
        KernelError: for a tensor of a wrong dtype, device, shape or layout, or a setting out of range.
    """
    _check(alpha_EO, clock, tau, k, stream)
    codes = _codes(relaxation, mode, assign)
    edges, operations = alpha_EO.shape
    networks = 1 if mode == "union" else k
    indices = torch.empty(edges, k, dtype=torch.int32, device=alpha_EO.device)
    places = torch.empty_like(indices)
    gates = alpha_EO.new_empty(networks, edges, operations)
    soft = torch.empty_like(gates)
    ranks = alpha_EO.new_empty(k, edges, operations)
    draw_kernel[(triton.cdiv(edges, EDGES),)](
        alpha_EO, clock, tau, indices, places, gates, soft, ranks, edges, stream, O=operations, K=k, NOISE=noise,
        BE=EDGES, BO=triton.next_power_of_2(operations), BK=triton.next_power_of_2(k), ACC=_acc(alpha_EO),
        num_warps=NUM_WARPS, **codes,
    )  # fmt: skip
    return indices, gates, soft, places, ranks


def draw_backward(
    d_gates_NEO: Tensor, indices_EK: Tensor, places_EK: Tensor, ranks_KEO: Tensor, tau: Tensor,
    relaxation: Relaxation,
) -> Tensor:  # fmt: skip
    """Gradient of the gates in alpha, [E, O]; the tensors are those of `draw`.

    Raises:
        KernelError: for a tensor of a wrong dtype, device or shape, and an unknown relaxation.
    """
    _check_gradient(d_gates_NEO, indices_EK, places_EK, ranks_KEO, tau, relaxation)
    edges, operations = ranks_KEO.shape[1:]
    d_alpha = torch.empty_like(ranks_KEO[0])
    draw_backward_kernel[(triton.cdiv(edges, EDGES),)](
        d_gates_NEO.contiguous(), indices_EK, places_EK, ranks_KEO, tau, d_alpha, edges, O=operations,
        K=indices_EK.shape[1], RELAXATION=RELAXATIONS.index(relaxation), BE=EDGES,
        BO=triton.next_power_of_2(operations), ACC=_acc(ranks_KEO), num_warps=NUM_WARPS,
    )  # fmt: skip
    return d_alpha


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, alpha_EO: Tensor, clock: Tensor, tau: Tensor, settings: dict[str, Any]) -> Any:
        indices, gates, soft, places, ranks = draw(alpha_EO, clock, tau, **settings)
        ctx.save_for_backward(indices, places, ranks, tau)
        ctx.relaxation = settings["relaxation"]
        ctx.mark_non_differentiable(indices, soft)
        return indices, gates, soft

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        indices, places, ranks, tau = ctx.saved_tensors
        return draw_backward(grads[1], indices, places, ranks, tau, ctx.relaxation), None, None, None


def gumbel_topk(
    alpha_EO: Tensor, clock: Tensor, tau: Tensor, *, k: int, stream: int, relaxation: Relaxation, noise: bool,
    mode: Mode, assign: Assign,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(indices_EK int32, gates_NEO, soft_NEO); see the twin `reference.gumbel_topk.gumbel_topk`.

    Raises:
        KernelError: for a tensor of a wrong dtype, device, shape or layout, or a setting out of range.
    """
    settings = {
        "k": k, "stream": stream, "relaxation": relaxation, "noise": noise, "mode": mode, "assign": assign
    }  # fmt: skip
    indices, gates, soft = _Draw.apply(alpha_EO, clock, tau, settings)
    return indices, gates, soft


def _acc(like: Tensor) -> tl.dtype:
    return tl.float64 if like.dtype == torch.float64 else tl.float32


def _codes(relaxation: str, mode: str, assign: str) -> dict[str, Any]:
    choices = (
        ("relaxation", relaxation, RELAXATIONS),
        ("mode", mode, ("union", "subgraphs")),
        ("assign", assign, ("rank", "shuffle")),
    )
    for name, got, allowed in choices:
        if got not in allowed:
            raise KernelError(name, got=got, allowed=", ".join(allowed))
    union = mode == "union"
    return {
        "RELAXATION": RELAXATIONS.index(relaxation), "UNION": union, "SHUFFLE": assign == "shuffle" and not union
    }  # fmt: skip


def _check(alpha_EO: Tensor, clock: Tensor, tau: Tensor, k: int, stream: int) -> None:
    if alpha_EO.dtype not in (torch.float32, torch.float64):
        raise KernelError("alpha_EO", got=alpha_EO.dtype, allowed="float32 or float64")
    if alpha_EO.dim() != 2 or not alpha_EO.is_contiguous() or not 0 < alpha_EO.numel() <= 1 << twin.STREAM_BITS:
        got = f"shape {tuple(alpha_EO.shape)}, strides {alpha_EO.stride()}"
        raise KernelError("alpha_EO", got=got, allowed=f"contiguous [E, O] of at most {1 << twin.STREAM_BITS} numbers")
    if clock.dtype != torch.int64 or clock.shape != (2,) or not clock.is_contiguous():
        raise KernelError("clock", got=f"{clock.dtype} {list(clock.shape)}", allowed="int64 [2], (seed, draw)")
    _check_tau(tau)
    for name, tensor in (("clock", clock), ("tau", tau)):
        if tensor.device != alpha_EO.device:
            raise KernelError(name, got=f"on {tensor.device}", allowed=f"alpha's device, {alpha_EO.device}")
    if not 1 <= k <= alpha_EO.shape[1]:
        raise KernelError("k", got=k, allowed=f"1 to {alpha_EO.shape[1]}")
    if not 0 <= stream < twin.SHUFFLE_STREAM:
        raise KernelError("stream", got=stream, allowed=f"0 to {twin.SHUFFLE_STREAM - 1}")


def _check_tau(tau: Tensor) -> None:
    if not tau.is_floating_point() or tau.dim():
        raise KernelError("tau", got=f"{tau.dtype} {list(tau.shape)}", allowed="a floating-point number []")


def _check_gradient(
    d_gates_NEO: Tensor, indices_EK: Tensor, places_EK: Tensor, ranks_KEO: Tensor, tau: Tensor, relaxation: str
) -> None:  # fmt: skip
    if ranks_KEO.dtype not in (torch.float32, torch.float64) or ranks_KEO.dim() != 3 or not ranks_KEO.is_contiguous():
        got = f"{ranks_KEO.dtype} {tuple(ranks_KEO.shape)}"
        raise KernelError("ranks_KEO", got=got, allowed="contiguous [K, E, O] of float32 or float64")
    k, edges, operations = ranks_KEO.shape
    networks = d_gates_NEO.shape[0]
    if d_gates_NEO.shape[1:] != (edges, operations) or networks not in (1, k) or d_gates_NEO.dtype != ranks_KEO.dtype:
        got = f"{d_gates_NEO.dtype} {tuple(d_gates_NEO.shape)}"
        raise KernelError("d_gates_NEO", got=got, allowed=f"{ranks_KEO.dtype} [1 or {k}, {edges}, {operations}]")
    for name, tensor in (("indices_EK", indices_EK), ("places_EK", places_EK)):
        if tensor.dtype != torch.int32 or tensor.shape != (edges, k) or not tensor.is_contiguous():
            got = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise KernelError(name, got=got, allowed=f"contiguous int32 ({edges}, {k})")
    _check_tau(tau)
    given = {"d_gates_NEO": d_gates_NEO, "indices_EK": indices_EK, "places_EK": places_EK, "tau": tau}
    for name, tensor in given.items():
        if tensor.device != ranks_KEO.device:
            raise KernelError(name, got=f"on {tensor.device}", allowed=f"the ranks' device, {ranks_KEO.device}")
    if relaxation not in RELAXATIONS:
        raise KernelError("relaxation", got=relaxation, allowed=", ".join(RELAXATIONS))
