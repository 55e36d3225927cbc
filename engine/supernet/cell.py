"""A cell as one autograd Function that keeps no more than its policy says.

Shape suffixes: B batch, H height, W width, C channels, E edges, O operations; maps are NHWC.

Forward adds gate * BatchNorm(op(state)) straight into the node's slice of the concat buffer. Backward walks
the nodes from last to first; what the policy did not keep is computed again, one operation at a time. The
policies (ours; measured in docs/memory.md):
    all    the inputs of pointwise convolutions and of BatchNorms (ReLU outputs are made again from them); with the
           C++ kernels as `bn`: they make the former again in the cache
    bn     the inputs of BatchNorms
    nodes  the nodes and the preprocessed inputs
    min    the nodes

Operations that were not sampled do not exist here: no map, no gradient. A gradient is computed only for what
autograd asks: a step on alpha computes no weight gradients, a step on the weights no gate gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...kernels.reference import batchnorm
from .cell_call import Branch, CellCall
from .operation import DirectOperation, Keep, NormalisedOperation, Source, Tape, Through
from .weights import Places

KEEPS = {"all": Keep(taps=True, inner=True), "bn": Keep(inner=True), "nodes": Keep(), "min": Keep()}


class CellFunction(torch.autograd.Function):
    """apply(call, gates_EO, *inputs, *weights) -> [B, H', W', C * len(concat)].

    `weights` are the cell's arenas and the weights of its preprocessing, as SuperNet hands them over.

    The gradient handed to backward is overwritten: the cell takes it to be its own, as in SuperNet, where a
    cell's output goes to the next cells and the classifier only.
    """

    @staticmethod
    def forward(ctx: Any, call: CellCall, gates_EO: Tensor, *tensors: Tensor) -> Tensor:
        num_inputs = call.layer.spec.inputs
        inputs, weights = tensors[:num_inputs], tensors[num_inputs:]
        keep_norm = call.policy in ("all", "bn")
        need_w = any(ctx.needs_input_grad[2 + num_inputs :])
        keep = KEEPS[call.policy] if need_w else Keep(inner=keep_norm)
        prepared, input_stats = _prepare_inputs(call, inputs, weights, None)
        buffer, states = _allocate_states(call, prepared)
        gates = call.gates
        assert gates is not None
        tapes = [_tape(call, branch, weights, need_w, gates_EO.shape[1]) for branch in call.branches]
        out_stats: list[batchnorm.Stats | None] = []
        kept_z: list[Tensor | None] = []
        for shortcut in call.shortcuts:
            x = states[shortcut.edge.source]
            factor = shortcut.factor(call.drop, call.index, gates, x)
            states[shortcut.edge.target].add_(x if factor is None else x * factor)
            del factor
        by_target = _by_target(call.branches)
        for target, numbers in by_target.items():
            mean_sum_C: Tensor | None = None
            source = Source(call.kernels, states[0])
            for number in numbers:
                branch, tape = call.branches[number], tapes[number]
                if source.x is not states[branch.edge.source]:
                    source = Source(call.kernels, states[branch.edge.source])
                gate = gates[branch.row][branch.column]
                operation = branch.operation
                if isinstance(operation, DirectOperation):
                    states[target].add_(operation.forward(tape, source, keep), alpha=gate)
                    out_stats.append(None)
                    kept_z.append(None)
                    continue
                assert isinstance(operation, NormalisedOperation)
                z, stats, constant_C = operation.accumulate_(tape, source, keep, states[target], gate)
                if constant_C is not None:
                    mean_sum_C = constant_C if mean_sum_C is None else mean_sum_C.add_(constant_C)
                out_stats.append(stats)
                kept_z.append(z if keep_norm else None)
                del z
            if mean_sum_C is not None:
                states[target].sub_(mean_sum_C)
        saved = _Saved(call, gates, tapes, out_stats, kept_z, input_stats, need_w)
        if call.policy != "min":
            saved.prepared = prepared
        ctx.saved = saved
        inner_nodes = [states[node] for node in _nodes_outside(call)]
        ctx.save_for_backward(*inputs, *inner_nodes, buffer, *weights)
        return buffer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_buffer: Tensor) -> tuple[Any, ...]:
        saved: _Saved = ctx.saved
        need_gates, needs = ctx.needs_input_grad[1], ctx.needs_input_grad[2:]
        return (None, *_Backward(saved, ctx.saved_tensors, needs, need_gates).run(d_buffer))


@dataclass(slots=True)
class _Saved:
    """What forward leaves on the context besides saved tensors."""

    call: CellCall
    gates: list[list[float]]
    tapes: list[Tape]
    out_stats: list[batchnorm.Stats | None]
    kept_z: list[Tensor | None]
    input_stats: list[batchnorm.Stats]
    need_w: bool
    prepared: list[Tensor] | None = None
    released: bool = False


class _Backward:
    """The backward pass of one cell."""

    def __init__(self, saved: _Saved, tensors: Sequence[Tensor], needs: Sequence[bool], need_gates: bool) -> None:
        call = saved.call
        if saved.released and call.policy != "min":
            raise RuntimeError(
                f"policy {call.policy} released the cell's maps in its first backward; "
                "run forward again, or use policy min"
            )
        saved.released = True
        self.saved, self.call, self.need_gates = saved, call, need_gates
        num_inputs, outside = call.layer.spec.inputs, _nodes_outside(call)
        self.inputs = tensors[:num_inputs]
        self.need_inputs = needs[:num_inputs]
        inner, (buffer, *weights) = tensors[num_inputs:][: len(outside)], tensors[num_inputs + len(outside) :]
        self.weights = weights
        self.prepared = saved.prepared or _prepare_inputs(call, self.inputs, weights, saved.input_stats)[0]
        saved.prepared = None
        self.states = _states(call, self.prepared, buffer, dict(zip(outside, inner, strict=True)))
        self.gate_grads: list[tuple[int, int, Tensor | float]] = []
        self.weight_grads: list[Tensor | None] = [None] * len(weights)

    def run(self, d_buffer: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the gates, the inputs and the weights, in the order of `apply`."""
        call, spec = self.call, self.call.layer.spec
        d_buffer = d_buffer.contiguous()
        channels = call.layer.channels
        grads: list[Tensor | None] = [None] * spec.num_states
        for place, node in enumerate(spec.concat):
            grads[node] = d_buffer[..., place * channels : (place + 1) * channels]
        branches, shadows = _by_target(call.branches), _by_target(call.shadows)
        for node in reversed(range(spec.inputs, spec.num_states)):
            dy = grads[node]
            if dy is not None:
                numbers = reversed(branches.get(node, []))
                self._node(dy, list(numbers), shadows.get(node, []), grads)
                self._shortcuts(node, dy, grads)
            grads[node] = None
            del dy
        d_gates = self._gates()
        self.states = []
        input_grads = self._inputs(grads)
        return (d_gates, *input_grads, *self.weight_grads)

    def _node(self, dy: Tensor, numbers: list[int], shadows: list[int], grads: list[Tensor | None]) -> None:
        """Send dy through the node's sampled branches, edge by edge."""
        sum_dy_C = self.call.kernels.node_sum(dy)
        while numbers:
            edge = self.call.branches[numbers[0]].edge
            source = Source(
                self.call.kernels, self.states[edge.source], grads[edge.source], self._need_state(edge.source)
            )
            while numbers and self.call.branches[numbers[0]].edge is edge:
                number = numbers.pop(0)
                self._branch(number, source, dy, sum_dy_C)
            source.close()
            grads[edge.source] = source.grad
        for number in shadows if self.need_gates else ():
            self._shadow(self.call.shadows[number], dy, sum_dy_C)

    def _shortcuts(self, node: int, dy: Tensor, grads: list[Tensor | None]) -> None:
        """Send dy, which is used up, past the node's operations."""
        for shortcut in self.call.shortcuts:
            source = shortcut.edge.source
            if shortcut.edge.target != node or not self._need_state(source):
                continue
            factor = shortcut.factor(self.call.drop, self.call.index, self.saved.gates, self.states[source])
            if factor is not None:
                dy.mul_(factor)
            before = grads[source]
            grads[source] = dy if before is None else before.add_(dy)

    def _branch(self, number: int, source: Source, dy: Tensor, sum_dy_C: Tensor | None) -> None:
        branch, tape = self.call.branches[number], self.saved.tapes[number]
        if tape.need_w:
            tape.weight_grads = self._weight_grads(branch.places)
        gate_grad = self._through(number, source, dy, sum_dy_C)
        # A view of an arena's gradient that lived on would make autograd copy it.
        tape.weight_grads = ()
        if gate_grad is not None:
            self.gate_grads.append((branch.row, branch.column, gate_grad))

    def _through(self, number: int, source: Source, dy: Tensor, sum_dy_C: Tensor | None) -> Tensor | float | None:
        """Send dy through one operation; its gate's gradient, where one is wanted."""
        saved, branch, tape = self.saved, self.call.branches[number], self.saved.tapes[number]
        gate, operation = saved.gates[branch.row][branch.column], branch.operation
        if isinstance(operation, DirectOperation):
            return operation.backward(tape, source, dy, gate, self.need_gates)
        assert isinstance(operation, NormalisedOperation)
        z, stats = saved.kept_z[number], saved.out_stats[number]
        saved.kept_z[number] = None
        assert stats is not None
        if z is None:
            z = operation.forward(tape, source, Keep(taps=tape.need_w, inner=True))
        gate_grad = operation.backward(tape, source, Through(dy, z, stats, sum_dy_C, gate))
        return gate_grad if self.need_gates else None

    def _weight_grads(self, places: Places) -> list[Tensor]:
        """Where an operation's gradients go; what was not sampled stays zero."""
        for place in places:
            if self.weight_grads[place.arena] is None:
                self.weight_grads[place.arena] = torch.zeros_like(self.weights[place.arena])
        return [place.view(self.weight_grads) for place in places]

    def _shadow(self, branch: Branch, dy: Tensor, sum_dy_C: Tensor | None) -> None:
        """The gate gradient <dy, out> of an operation that was not sampled."""
        source = Source(self.call.kernels, self.states[branch.edge.source])
        tape = _tape(self.call, branch, self.weights, False, len(self.saved.gates[0]))
        if isinstance(branch.operation, DirectOperation):
            grad = branch.operation.backward(tape, source, dy, 0.0, need_gate=True)
            assert grad is not None
        else:
            z = branch.operation.forward(tape, source, Keep())
            sum_dy_C = batchnorm.sum_rows(dy) if sum_dy_C is None else sum_dy_C
            grad = batchnorm.sum_dy_xhat(dy, z, batchnorm.batch_stats(z), sum_dy_C).sum()
        self.gate_grads.append((branch.row, branch.column, grad))

    def _need_state(self, state: int) -> bool:
        """Whether a state's gradient leads anywhere: inputs of the first cells have none in a step on alpha."""
        if state >= self.call.layer.spec.inputs:
            return True
        return self.need_inputs[state] or (bool(self.call.preprocess) and self.saved.need_w)

    def _gates(self) -> Tensor | None:
        if not self.need_gates:
            return None
        gates = self.saved.gates
        dtype = self.inputs[0].dtype
        wide = torch.float32 if dtype in batchnorm.NARROW else dtype
        d_gates_EO = self.inputs[0].new_zeros(len(gates), len(gates[0]), dtype=wide)
        if self.gate_grads:
            rows, columns, values = zip(*self.gate_grads, strict=True)
            numbers = [v for v in values if isinstance(v, float)]
            given = torch.tensor(numbers, dtype=d_gates_EO.dtype) if len(numbers) == len(values) else None
            if given is None:
                given = torch.stack([v.to(wide) if isinstance(v, Tensor) else d_gates_EO.new_tensor(v) for v in values])
            d_gates_EO[list(rows), list(columns)] = given
        return d_gates_EO

    def _inputs(self, grads: list[Tensor | None]) -> list[Tensor | None]:
        input_grads: list[Tensor | None] = []
        for number in reversed(range(self.call.layer.spec.inputs)):
            x, need_x = self.inputs[number], self.need_inputs[number]
            d_state, grads[number] = grads[number], None
            if not self.call.preprocess:
                input_grads.append(_or_zeros(d_state, x) if need_x else None)
                continue
            xhat = self.prepared.pop()
            if not (need_x or self.saved.need_w):
                input_grads.append(None)
                continue
            place = self.call.preprocess[number]
            dx, self.weight_grads[place] = self.call.kernels.prepared_grads(
                _or_zeros(d_state, xhat), xhat, x, self.weights[place], self.saved.input_stats[number],
                need_x=need_x, need_w=self.saved.need_w,
            )  # fmt: skip
            input_grads.append(dx)
        return input_grads[::-1]


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


def _by_target(branches: Sequence[Branch]) -> dict[int, list[int]]:
    """Numbers of the branches that end in each node, in the order of the edges."""
    numbers: dict[int, list[int]] = {}
    for number, branch in enumerate(branches):
        numbers.setdefault(branch.edge.target, []).append(number)
    return numbers


def _tape(call: CellCall, branch: Branch, weights: Sequence[Tensor], need_w: bool, num_operations: int) -> Tape:
    mask = None
    if call.drop is not None:
        drop, index, gate = call.drop, call.index, branch.row * num_operations + branch.column

        def mask(x_BHWC: Tensor) -> Tensor:
            return drop.mask(x_BHWC, index, gate)

    return Tape([place.view(weights) for place in branch.places], branch.edge.stride, need_w, call.kernels, mask)


def _prepare_inputs(
    call: CellCall, inputs: Sequence[Tensor], weights: Sequence[Tensor], stats: list[batchnorm.Stats] | None
) -> tuple[list[Tensor], list[batchnorm.Stats]]:
    if not call.preprocess:
        return list(inputs), []
    pairs = [
        call.kernels.prepare(x, weights[place], None if stats is None else stats[number])
        for number, (x, place) in enumerate(zip(inputs, call.preprocess, strict=True))
    ]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _nodes_outside(call: CellCall) -> list[int]:
    """Nodes that the output does not hold."""
    spec = call.layer.spec
    return [node for node in range(spec.inputs, spec.num_states) if node not in spec.concat]


def _allocate_states(call: CellCall, prepared: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    spec, channels = call.layer.spec, call.layer.channels
    batch, height, width = prepared[-1].shape[:3]
    stride = 2 if spec.reduction else 1
    shape = (batch, -(-height // stride), -(-width // stride))
    buffer = prepared[-1].new_zeros(*shape, channels * len(spec.concat))
    inner = {node: buffer.new_zeros(*shape, channels) for node in _nodes_outside(call)}
    return buffer, _states(call, prepared, buffer, inner)


def _states(call: CellCall, prepared: list[Tensor], buffer: Tensor, inner: dict[int, Tensor]) -> list[Tensor]:
    """All states: inputs, nodes inside the buffer as slices of it, nodes outside."""
    spec, channels = call.layer.spec, call.layer.channels
    states = list(prepared)
    for node in range(spec.inputs, spec.num_states):
        place = spec.concat.index(node) if node in spec.concat else -1
        states.append(inner[node] if place < 0 else buffer[..., place * channels : (place + 1) * channels])
    return states
