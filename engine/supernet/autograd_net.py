"""The same network under ordinary autograd: the oracle of the engine's tests and the honest baseline.

Shape suffixes: B batch, C channels, H height, W width; maps are NCHW in shape, in any memory format. Every
operation is weighted and summed as the published DARTS code does it, `none` included.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spaces.space import StemSpec
from .cell_call import CellCall, Shortcut
from .operation import Operation
from .ops import plain_factorized_reduce, plain_norm

# (row of the edge, column of the gate, operation, weights)
PlainBranch = tuple[int, int, Operation, Sequence[Tensor]]


def plain_stem(spec: StemSpec, x_BCHW: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Convolutions with BatchNorm, joined by ReLU."""
    for number, conv_spec in enumerate(spec.convs):
        if number or spec.relu_first:
            x_BCHW = torch.relu(x_BCHW)
        w, weight, bias = parameters[3 * number : 3 * number + 3]
        x_BCHW = plain_norm(F.conv2d(x_BCHW, w, None, conv_spec.stride, 1), weight, bias)
    return F.relu6(x_BCHW) if spec.relu6_last else x_BCHW


def plain_head(x_BCHW: Tensor, w: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """1x1 convolution, BatchNorm, ReLU6, mean over the pixels: [B, C]."""
    return F.relu6(plain_norm(F.conv2d(x_BCHW, w), weight, bias)).mean((2, 3))


def plain_prepare(x_BCHW: Tensor, weights: Sequence[Tensor]) -> Tensor:
    if len(weights) == 2:
        return plain_factorized_reduce(x_BCHW, weights)
    return plain_norm(F.conv2d(torch.relu(x_BCHW), weights[0][:, :, None, None]))


def plain_cell(
    call: CellCall, branches: Sequence[PlainBranch], gates_EO: Tensor, tensors: Sequence[Tensor],
    *, edges_E: Tensor | None = None, partial: int = 1,
) -> Tensor:  # fmt: skip
    """A cell's output.

    Args:
        call, branches, gates_EO: what runs, with which gates.
        tensors: inputs and weights as CellFunction takes them.
        edges_E: weights of the edges' outputs with `partial` above 1; else they are in the gates.
        partial: see `partial_edge`.
    """
    spec = call.layer.spec
    inputs, weights = tensors[: spec.inputs], tensors[spec.inputs :]
    states = list(inputs)
    if call.preprocess:
        states = [plain_prepare(x, weights[place]) for x, place in zip(inputs, call.preprocess, strict=True)]
    for node in range(spec.inputs, spec.num_states):
        terms = []
        for row, edge in enumerate(spec.edges, start=call.layer.first_row):
            if edge.target != node:
                continue
            mine = [branch for branch in branches if branch[0] == row]
            if partial == 1:
                terms += _terms(call, mine, gates_EO, states[edge.source], edge.stride)
            elif mine:
                y = partial_edge(call, mine, gates_EO, states[edge.source], edge.stride, partial)
                terms.append(y if edges_E is None else edges_E[row] * y)
        terms += [_shortcut(call, one, gates_EO, states) for one in call.shortcuts if one.edge.target == node]
        states.append(sum(terms[1:], terms[0]))
    return torch.cat([states[node] for node in spec.concat], 1)


def _shortcut(call: CellCall, shortcut: Shortcut, gates_EO: Tensor, states: Sequence[Tensor]) -> Tensor:
    x_BCHW = states[shortcut.edge.source]
    factor = shortcut.factor(call.drop, call.index, gates_EO.detach(), x_BCHW.permute(0, 2, 3, 1))
    return x_BCHW if factor is None else x_BCHW * factor.permute(0, 3, 1, 2)


def _terms(
    call: CellCall, branches: Sequence[PlainBranch], gates_EO: Tensor, x_BCHW: Tensor, stride: int
) -> list[Tensor]:
    """Output of each operation of an edge times its gate."""
    terms = []
    for row, column, operation, weights in branches:
        y = operation.plain(x_BCHW, weights, stride)
        if call.drop is not None and operation.is_identity:
            gate = row * gates_EO.shape[1] + column
            y = y * call.drop.mask(x_BCHW.permute(0, 2, 3, 1), call.index, gate).permute(0, 3, 1, 2)
        terms.append(gates_EO[row, column] * y)
    return terms


def partial_edge(
    call: CellCall, branches: Sequence[PlainBranch], gates_EO: Tensor, x_BCHW: Tensor, stride: int, partial: int
) -> Tensor:
    """An edge whose operations see the first 1 / partial of the channels; the others pass, pooled where they must.

    The joined channels are shuffled over `partial` groups. Source: Xu et al., PC-DARTS (ICLR 2020), as
    yuhuixu1993/PC-DARTS computes it.
    """
    channels = x_BCHW.shape[1] // partial
    rest = x_BCHW[:, channels:]
    terms = _terms(call, branches, gates_EO, x_BCHW[:, :channels], stride)
    if stride > 1:
        rest = F.max_pool2d(rest, 2, 2)
    y_BCHW = torch.cat([sum(terms[1:], terms[0]), rest], 1)
    return y_BCHW.unflatten(1, (partial, channels)).transpose(1, 2).flatten(1, 2)


def plain_residual(x_BCHW: Tensor, first: Tensor, second: Tensor, shortcut: Tensor) -> Tensor:
    """NAS-Bench-201's reduction: two ReLU-3x3-BN, the first of stride 2, plus 2x2 mean and 1x1."""
    y = plain_norm(F.conv2d(torch.relu(x_BCHW), first, None, 2, 1))
    y = plain_norm(F.conv2d(torch.relu(y), second, None, 1, 1))
    return y + F.conv2d(F.avg_pool2d(x_BCHW, 2, 2), shortcut)
