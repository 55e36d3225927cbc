"""What an operation of a cell is: its two passes, its memory between them, and the state it reads.

Shape suffixes: B batch, H height, W width, C channels; engine maps are NHWC.

An operation yields z; where it ends in BatchNorm (affine=False while searching), that BatchNorm and the gate
belong to the node that sums, not to the operation. `plain` is the same operation under ordinary autograd,
BatchNorm included: the oracle of the tests and the baseline of the benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...kernels.primitives import Reference
from ...kernels.reference import batchnorm, dropblock
from ...kernels.reference.inverted import Inverted
from ...kernels.reference.separable import Separable

Shape = tuple[int, ...]
MAX_NETWORKS = 64
# Draws of a search stay below 2**(MICRO_BATCH_BITS - 6), so that no two micro-batches share a clock.
MICRO_BATCH_BITS = 40


@dataclass(frozen=True, slots=True)
class Drop:
    """Dropblock-Identity of one network for one forward pass.

    Attributes:
        kind: blocks (DropBlock) or single values (dropout).
        rate: drop rate, fp32 [], 0 to 0.9.
        clock: (seed, draw) int64 [2] of this network (see `network_clock`); cells and edges are mixed in, so the
            same clock gives the same masks.
    """

    kind: Literal["dropblock", "dropout"]
    rate: Tensor
    clock: Tensor

    def mask(self, x_BHWC: Tensor, cell: int, gate: int) -> Tensor:
        """The mask of a skip-connect in cell number `cell`; `gate` is its place in gates_EO, flattened.

        Waits for the device: the kernels read rate and clock there.
        """
        seed, draw = self.clock.tolist()
        key = dropblock.mask_key(seed, draw, cell, gate)
        make = dropblock.block_mask if self.kind == "dropblock" else dropblock.value_mask
        return make(x_BHWC, self.rate.item(), key)


def network_clock(clock: Tensor, network: int, micro_batch: int = 0) -> Tensor:
    """The clock of one of a draw's networks on one micro-batch, so that each meets masks of its own."""
    seed, draw = clock.unbind()
    return torch.stack([seed, draw * MAX_NETWORKS + (network + (micro_batch << MICRO_BATCH_BITS))])


@dataclass(frozen=True, slots=True)
class Keep:
    """Which of an operation's intermediate maps its tape keeps between two passes.

    Attributes:
        taps: inputs of pointwise convolutions (needed for their weight gradients only).
        inner: inputs of inner BatchNorms.
    """

    taps: bool = False
    inner: bool = False


@dataclass(slots=True)
class Tape:
    """What one sampled operation remembers between forward and backward.

    Attributes:
        weights: the operation's parameters, detached.
        stride: of the edge.
        need_w: whether weight gradients are wanted.
        kernels: what computes.
        drop_mask: makes the mask of Dropblock-Identity for a map, or None.
        separable: what a separable convolution remembers.
        inverted: what an inverted residual remembers.
        weight_grads: where backward writes the gradient of each weight; empty where none is wanted.
    """

    weights: Sequence[Tensor]
    stride: int
    need_w: bool
    kernels: Reference
    drop_mask: Callable[[Tensor], Tensor] | None = None
    separable: Separable | None = None
    inverted: Inverted | None = None
    weight_grads: Sequence[Tensor] = ()


@dataclass(frozen=True, slots=True)
class Through:
    """A node's gradient on its way through an operation's BatchNorm and gate.

    Attributes:
        dy: of the node; not to be written to.
        z: input of the BatchNorm; used up.
        stats: its statistics.
        sum_dy_C: what `node_sum` said of dy.
        gate: of the operation.
    """

    dy: Tensor
    z: Tensor
    stats: batchnorm.Stats
    sum_dy_C: Tensor | None
    gate: float


class Source:
    """A state as the operations of one edge read it: its ReLU is made once, its gradients are summed once.

    Attributes:
        x: the state's map.
        grad: its gradient so far, None for zero; written in place.
        need_x: whether a gradient is wanted at all.
    """

    __slots__ = ("_kernels", "_relu", "_relu_grad", "grad", "need_x", "x")

    def __init__(self, kernels: Reference, x_BHWC: Tensor, grad: Tensor | None = None, need_x: bool = False) -> None:
        self._kernels = kernels
        self.x = x_BHWC
        self.grad = grad
        self.need_x = need_x
        self._relu: Tensor | None = None
        self._relu_grad: Tensor | None = None

    def relu(self) -> Tensor:
        if self._relu is None:
            self._relu = torch.relu(self.x)
        return self._relu

    def add_grad(self, dx_BHWC: Tensor | None) -> None:
        """Take over dx (it may be overwritten later)."""
        if dx_BHWC is None:
            return
        if self.grad is None:
            self.grad = dx_BHWC
        else:
            self.grad.add_(dx_BHWC)

    def add_relu_grad(self, da_BHWC: Tensor | None) -> None:
        """Take over the gradient of relu(x)."""
        if da_BHWC is None:
            return
        if self._relu_grad is None:
            self._relu_grad = da_BHWC
        else:
            self._relu_grad.add_(da_BHWC)

    def relu_grad_buffer(self) -> Tensor:
        """The gradient of relu(x) so far, as a map to add into."""
        if self._relu_grad is None:
            self._relu_grad = torch.zeros_like(self.relu())
        return self._relu_grad

    def close(self) -> None:
        """Pass the ReLU's gradient on and forget the edge's maps."""
        if self._relu_grad is not None:
            self.grad = self._kernels.add_relu_grad(self.grad, self._relu_grad, self.x, self.relu())
        self._relu = self._relu_grad = None


class Operation:
    """One candidate operation; stateless, so one object serves all edges.

    Attributes:
        is_identity: whether Dropblock-Identity applies to it.
    """

    is_identity = False

    def weight_shapes(self, channels_in: int, channels: int, stride: int) -> tuple[Shape, ...]:
        """Shapes of the parameters from a map of `channels_in` channels to one of `channels`; equal in most cells."""
        return ()

    def forward(self, tape: Tape, source: Source, keep: Keep) -> Tensor:
        """z of the source's state; a second call on the same tape reuses the inner statistics of the first."""
        raise NotImplementedError

    def plain(self, x_BCHW: Tensor, weights: Sequence[Tensor], stride: int) -> Tensor:
        """The whole operation under ordinary autograd, NCHW in shape, any memory format."""
        raise NotImplementedError


class NormalisedOperation(Operation):
    """Ends in a BatchNorm that the node applies."""

    def accumulate_(
        self, tape: Tape, source: Source, keep: Keep, out_BHWC: Tensor, gate: float
    ) -> tuple[Tensor, batchnorm.Stats, Tensor | None]:
        """out += gate * BatchNorm(z) in a first pass: (z, its statistics, a constant as in `Reference.accumulate_`)."""
        z = self.forward(tape, source, keep)
        return z, *tape.kernels.accumulate_(out_BHWC, z, gate)

    def backward(self, tape: Tape, source: Source, through: Through) -> Tensor | float:
        """Add to the source's gradient and write the weights'; returns the gate's."""
        dz, gate_grad = tape.kernels.norm_backward(through.dy, through.z, through.stats, through.sum_dy_C, through.gate)
        self.input_backward(tape, source, dz)
        return gate_grad

    def input_backward(self, tape: Tape, source: Source, dz_BHWC: Tensor) -> None:
        """The same from z's gradient on, which may be overwritten."""
        raise NotImplementedError


class DirectOperation(Operation):
    """Its output is added to the node as it is."""

    def backward(self, tape: Tape, source: Source, dy_BHWC: Tensor, gate: float, need_gate: bool) -> Tensor | None:
        """As above for out = gate * op(x); dy must not be written to. Returns the gate's gradient [] if wanted."""
        raise NotImplementedError
