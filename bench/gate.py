"""Whether a method's gradients are right, asked before anything of it is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.errors import ConfigError, GateError
from ..engine.spaces.space import space_named
from .step import build_step
from .variants import Variant

# Of the engine in fp64 against plain autograd in fp64, and of fp32 against the same truth.
ALLOWED = {"float64": 1e-12, "float32": 2e-5}
SEEDS = (0, 1, 2)
SMALL = {"channels": 8, "layers": 3, "batch": 2, "image": 16}
# A chain divides the side by 16, and BatchNorm over a few pixels magnifies rounding.
SMALL_CHAIN = {"channels": 8, "batch": 4, "image": 64}
# Of plain autograd's own error in fp32, as much is allowed in a chain.
CHAIN_ROUNDING = 2.0


@dataclass(frozen=True, slots=True)
class Gate:
    """The outcome.

    Attributes:
        passed: whether every error is within `ALLOWED`, in fp32 of a chain beyond plain autograd's own; true where
            there is nothing to compare.
        errors: the largest relative difference of a parameter's gradient, for each dtype; empty where only one of
            the two paths runs the method.
        reason: one line on what was compared, or why nothing was.
    """

    passed: bool
    errors: dict[str, float]
    reason: str

    def require(self, name: str) -> None:
        """Raise GateError for a red gate: there are no figures of wrong results."""
        if not self.passed:
            raise GateError(f"no figures of {name}: {self.reason}", next="pytest tests/engine/test_cell.py tells where")


def gradient_gate(method: str, space: str, impl: str = "auto") -> Gate:
    """Gradients of all weights and of alpha in a small net: the cell engine against plain autograd in fp64.

    The weights are made to differ from zero by their own initialisation only, the draw is the same.

    Args:
        method, space: as `build_step` takes them.
        impl: of the engine.
    """
    chain = space_named(space).chain is not None
    allowed = dict(ALLOWED)
    size = (SMALL_CHAIN if chain else SMALL) | {"method": method, "space": space, "gradients": "all"}
    largest: dict[str, float] = dict.fromkeys(ALLOWED, 0.0)
    for seed in SEEDS:
        try:
            truth = _gradients(policy="autograd", dtype="float64", seed=seed, **size)
        except ConfigError as error:
            return Gate(True, {}, f"nothing to compare, only the cell engine runs it: {error}")
        try:
            found = {
                dtype: _largest(truth, _gradients(policy="min", dtype=dtype, impl=impl, seed=seed, **size))
                for dtype in ALLOWED
            }
        except ConfigError as error:
            return Gate(True, {}, f"nothing to compare, only plain autograd runs it: {error}")
        if chain:
            # One of the many ReLU6 of a chain always has an input that rounds to another side.
            plain = _largest(truth, _gradients(policy="autograd", dtype="float32", seed=seed, **size))
            allowed["float32"] = ALLOWED["float32"] + CHAIN_ROUNDING * plain
        largest = {"float64": max(largest["float64"], found["float64"]), "float32": found["float32"]}
        # In fp32 a ReLU's input may round to the other side of zero in one net, plain autograd's too: ask another.
        if found["float32"] <= allowed["float32"]:
            break
    wrong = [f"{dtype} differs by {error:.1e}, allowed {allowed[dtype]:g}" for dtype, error in largest.items()
             if not error <= allowed[dtype]]  # fmt: skip
    reason = "; ".join(wrong) or "gradients of weights and alpha against plain autograd in fp64"
    return Gate(not wrong, largest, reason)


def gates_of(lines: Iterable[Variant], space: str) -> dict[tuple[str, str], Gate]:
    """The gate of every (method, impl) among the lines.

    Raises:
        GateError: for the first that is red.
    """
    gates: dict[tuple[str, str], Gate] = {}
    for line in lines:
        if line.key not in gates:
            gates[line.key] = gradient_gate(line.method, space, line.impl)
            gates[line.key].require(line.name)
    return gates


def _gradients(**options: Any) -> dict[str, Tensor | None]:
    step = build_step(**options)
    step.forward().backward()
    named = [*step.net.named_parameters(), *step.sampler.named_parameters()]
    return {name: parameter.grad for name, parameter in named}


def _largest(truth: dict[str, Tensor | None], ours: dict[str, Tensor | None]) -> float:
    """NaN where one has a gradient that is not finite, infinity where ours lacks one that is not zero."""
    worst = 0.0
    for name, theirs in truth.items():
        found = ours[name]
        if theirs is None or found is None:
            if theirs is not None and theirs.any():
                return float("inf")
            continue
        error = (found.double() - theirs).norm() / theirs.norm().clamp_min(1e-12)
        worst = torch.maximum(torch.tensor(worst, dtype=torch.float64), error).item()
    return worst
