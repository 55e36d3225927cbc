"""The C++ kernels of the CPU beside plain PyTorch for the same job, in turn in one process.

The weight gradient of a depthwise convolution is held against torch's own `convolution_backward`, the others against
what the engine runs where the kernels are not built.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels import native
from ..kernels.primitives import Native, Reference
from ..kernels.reference.batchnorm import Stats
from ..kernels.reference.separable import Separable

TOLERANCE = 1e-4
GATE = 0.5
KERNELS = (Reference(), Native())
Run = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """One job.

    Attributes:
        name: of the kernel and its shape.
        plain, ours: do the job and return what to compare.
    """

    name: str
    plain: Run
    ours: Run


def cases(channels: int, side: int, batch: int) -> Iterator[Case]:
    """Jobs on maps of [batch, side, side, channels], channels last; nodes are slices of a buffer of four."""
    generator = torch.Generator().manual_seed(0)

    def maps(width: int, stride: int = 1) -> Tensor:
        return torch.randn(batch, side // stride, side // stride, width, generator=generator)

    yield from _depthwise(maps, channels)
    x, dy = maps(4 * channels)[..., channels : 2 * channels], maps(4 * channels)[..., :channels]
    node, z, a = maps(4 * channels), maps(channels), maps(channels)
    stats, relu = KERNELS[1].stats(z), x.relu()

    def accumulate(k: Reference, node: Tensor) -> Tensor:
        out = node[..., channels : 2 * channels]
        _, constant = k.accumulate_(out, z, GATE)
        return out if constant is None else out.sub_(constant)

    yield _case("BatchNorm statistics", lambda k: k.stats(z)[1])
    yield _case("BatchNorm, gate, added to a node", accumulate, node)
    yield _case(
        "backward of these, gate's gradient", lambda k, z: k.norm_backward(dy, z, stats, k.node_sum(dy), GATE)[0], z
    )
    yield _case("ReLU backward, added", lambda k, d, da: k.add_relu_grad(d, da, x, relu), z, a)
    yield from _separable(x, dy, node, channels)
    wide, weights = maps(4 * channels), [torch.randn(channels, 4 * channels, generator=generator)]
    xhat, found = KERNELS[1].prepare(wide, weights, None)
    yield _case("preparation of an input", lambda k: k.prepare(wide, weights, None)[0])
    yield _case(
        "preparation, backward",
        lambda k, d: k.prepared_grads(d, xhat, wide, weights, found, need_x=True, need_w=True)[0], z,
    )  # fmt: skip
    for stride in (1, 2):
        yield from _pools(x, maps(channels, stride), z, stride)


def _case(name: str, job: Callable[..., Tensor], *written: Tensor) -> Case:
    """A job for either of KERNELS; what it writes to, it has copies of, made once: an allocation can cost more."""

    def bound(k: Reference) -> Run:
        own = [tensor.clone() for tensor in written]
        return lambda: job(k, *own)

    return Case(name, bound(KERNELS[0]), bound(KERNELS[1]))


def _depthwise(maps: Callable[..., Tensor], channels: int) -> Iterator[Case]:
    x = maps(channels)
    for side, dilation in ((3, 1), (5, 1), (3, 2), (5, 2)):
        for stride in (1, 2):
            g, w = maps(channels, stride), torch.zeros(channels, 1, side, side)
            padding = dilation * (side // 2)

            def plain(
                g: Tensor = g, w: Tensor = w, stride: int = stride, padding: int = padding, dilation: int = dilation
            ) -> Tensor:
                return torch.ops.aten.convolution_backward(
                    g.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), w, None, [stride] * 2, [padding] * 2,
                    [dilation] * 2, False, [0, 0], channels, [False, True, False],
                )[1]  # fmt: skip

            def ours(g: Tensor = g, side: int = side, dilation: int = dilation, stride: int = stride) -> Tensor:
                return native.depthwise_weight_grad(g, x, side, dilation, stride)

            yield Case(f"depthwise {side}x{side} dilation {dilation} stride {stride}, weight gradient", plain, ours)


def _separable(x: Tensor, dy: Tensor, node: Tensor, channels: int) -> Iterator[Case]:
    """Whole operations, into a node and back."""
    for name, side, dilation, stages in (("sep", 3, 1, 2), ("sep", 5, 1, 2), ("dil", 3, 2, 1), ("dil", 5, 2, 1)):
        generator = torch.Generator().manual_seed(side)
        weights = []
        for _ in range(stages):
            weights.append(torch.randn(side, side, channels, generator=generator).permute(2, 0, 1).unsqueeze(1) / side)
            weights.append(torch.randn(channels, channels, generator=generator) / channels**0.5)

        def forward(
            k: Reference, node: Tensor, weights: list[Tensor] = weights, dilation: int = dilation
        ) -> tuple[Separable, Tensor, Stats]:
            one = Separable(weights, dilation, 1)
            z, stats, _ = k.accumulate_separable_(node[..., channels : 2 * channels], one, x, GATE)
            return one, z, stats

        def both(k: Reference, node: Tensor, d: Tensor, *grads: Tensor, run: Callable[..., Any] = forward) -> Tensor:
            one, z, stats = run(k, node)
            k.separable_backward(one, x, dy, z, stats, k.node_sum(dy), GATE, d, grads, need_x=True)
            return d

        def alone(k: Reference, node: Tensor, run: Callable[..., Any] = forward) -> Tensor:
            return run(k, node)[1]

        kind = f"{name}_conv_{side}x{side}"
        yield _case(f"{kind} into a node", alone, node)
        d = torch.zeros_like(dy)
        yield _case(f"{kind}, and its gradients", both, node, d, *weights)
        yield _case(f"{kind}, and all but its weights'", both, node, d)


def _pools(x: Tensor, g: Tensor, d: Tensor, stride: int) -> Iterator[Case]:
    yield _case(f"max pool stride {stride}", lambda k: k.max_pool(x, stride))
    yield _case(f"max pool stride {stride}, backward, added", lambda k, d: k.add_max_pool_grad(d, g, x, stride), d)
    yield _case(f"average pool stride {stride}", lambda k: k.avg_pool(x, stride))
    yield _case(f"average pool stride {stride}, backward, added", lambda k, d: k.add_avg_pool_grad(d, g, x, stride), d)


def error(case: Case) -> float:
    """Relative difference of the two results, as a norm; before any timing, since jobs write over their maps."""
    plain = case.plain().clone()
    return ((case.ours() - plain).norm() / plain.norm().clamp_min(1e-12)).item()


def times_ms(case: Case, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of single calls, (plain, ours), in turn after a warm-up."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for run, values in zip((case.plain, case.ours), found, strict=True):
            begin = time.perf_counter()
            run()
            if number:
                values.append(1e3 * (time.perf_counter() - begin))
    return found
