"""Block sizes and warps of every launch, by channels and dtype; never by what was sampled.

Chosen from the compiler's report (`python -m msgdas.kernels.aot`): no spills on any architecture, then fewest
instructions per tap. Nothing here was timed: no GPU was at hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from .branches import Geometry


@dataclass(frozen=True, slots=True)
class Blocks:
    """One launch configuration.

    Attributes:
        pixels: pixels (or groups of four outputs) of a program.
        channels: channels read at a time.
        outputs: output channels of a program.
        num_warps: warps of a program.
        repeat: tiles that one program sums over.
        acc, dot: dtypes of sums and of the operands of matrix products.
        wide: the same as `acc`, for torch.
    """

    pixels: int
    channels: int
    outputs: int
    num_warps: int
    repeat: int
    acc: Any
    dot: Any
    wide: torch.dtype


@dataclass(frozen=True, slots=True)
class Rule:
    """Sizes for maps of up to `max_channels` channels; the first rule that fits is taken."""

    max_channels: int
    pixels: int
    channels: int
    outputs: int
    num_warps: int
    repeat: int = 1


RULES: dict[str, tuple[Rule, ...]] = {
    "stage": (Rule(16, 32, 16, 16, 4), Rule(1 << 30, 32, 16, 32, 4)),
    "combine": (Rule(16, 128, 16, 16, 4), Rule(1 << 30, 64, 32, 32, 4)),
    "reduce": (Rule(16, 64, 16, 16, 4, 4), Rule(1 << 30, 32, 32, 32, 4, 4)),
    "point": (Rule(16, 64, 16, 16, 4), Rule(32, 64, 32, 32, 4), Rule(1 << 30, 32, 32, 64, 4)),
    "taps": (Rule(16, 32, 16, 16, 4), Rule(1 << 30, 16, 32, 32, 4)),
    "gather": (Rule(16, 32, 16, 16, 4), Rule(1 << 30, 16, 32, 32, 4)),
    "weights": (Rule(16, 32, 16, 16, 4, 8), Rule(1 << 30, 32, 16, 32, 4, 8)),
    "mask": (Rule(1 << 30, 64, 16, 16, 4),),
}

# Instead of these, for fp32 and fp64: their products are exact, without tensor cores, and take more registers.
EXACT_RULES: dict[str, tuple[Rule, ...]] = {
    "combine": (Rule(16, 128, 16, 16, 4), Rule(1 << 30, 64, 16, 16, 4)),
    "point": (Rule(16, 64, 16, 16, 4), Rule(1 << 30, 32, 32, 32, 4)),
    "weights": (Rule(1 << 30, 16, 16, 32, 4, 8),),
}


_AS_SHIPPED: ContextVar[bool] = ContextVar("as_shipped", default=False)


@contextlib.contextmanager
def as_shipped() -> Iterator[None]:
    """Inside, the interpreter runs the sizes that a GPU would: what is counted is what ships."""
    token = _AS_SHIPPED.set(True)
    try:
        yield
    finally:
        _AS_SHIPPED.reset(token)


def blocks(kernel: str, maps: Tensor, geometry: Geometry) -> Blocks:
    """The configuration of `kernel` for maps of this dtype and size."""
    return blocks_of(kernel, maps.dtype, geometry.channels, maps.device.type == "cpu")


def blocks_of(kernel: str, dtype: torch.dtype, channels: int, interpreted: bool = False) -> Blocks:
    """As `blocks`, from the dtype and the channels alone.

    In the interpreter a program costs the same whatever its size, so that programs are larger there.
    """
    rules = RULES[kernel] if dtype == torch.bfloat16 else EXACT_RULES.get(kernel, RULES[kernel])
    rule = next(rule for rule in rules if channels <= rule.max_channels)
    grow = 4 if interpreted and not _AS_SHIPPED.get() else 1
    # Tiles of weight gradients stay as they ship: how they are grouped is part of what the tests look at.
    along, across = (1, grow) if kernel == "weights" else (grow, 1)
    most = max(16, triton.next_power_of_2(channels))
    double = dtype == torch.float64
    acc = tl.float64 if double else tl.float32
    dot = {torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}[dtype]
    return Blocks(
        rule.pixels * along, min(rule.channels * across, most), min(rule.outputs * across, most), rule.num_warps,
        rule.repeat, acc, dot, torch.float64 if double else torch.float32,
    )  # fmt: skip


def all_registers() -> dict[str, int]:
    """Launch option for kernels that NVIDIA's compiler would spill to fit one more program on a multiprocessor.

    Other compilers do not know it, and the interpreter has no compiler.
    """
    if triton.knobs.runtime.interpret:
        return {}
    return {"maxnreg": 255} if driver.active.get_current_target().backend == "cuda" else {}
