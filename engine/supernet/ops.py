"""Candidate operations with hand-written backward formulas, each beside its plain form.

Shape suffixes: B batch, H height, W width, C channels; engine maps are NHWC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ...kernels.reference import batchnorm, conv, inverted
from ...kernels.reference.inverted import Inverted
from ...kernels.reference.separable import Separable
from ..errors import ConfigError
from ..spaces.chain import BLOCKS, FBNET_BLOCKS, FBNET_SKIP, MOBILE_BLOCKS, MOBILE_FIXED, MOBILE_ZERO
from ..spaces.space import SKIP, ZERO
from .operation import DirectOperation, Keep, NormalisedOperation, Operation, Shape, Source, Tape, Through


@dataclass(frozen=True, slots=True)
class DepthwiseSeparable(NormalisedOperation):
    """ReLU, depthwise k x k, pointwise, BatchNorm, `stages` times; the first stage has the edge's stride.

    Two stages are DARTS' sep_conv, one with dilation 2 its dil_conv.
    """

    side: int
    dilation: int
    stages: int

    def weight_shapes(self, channels_in: int, channels: int, stride: int) -> tuple[Shape, ...]:
        return ((channels, 1, self.side, self.side), (channels, channels)) * self.stages

    def forward(self, tape: Tape, source: Source, keep: Keep) -> Tensor:
        one = self._on(tape)
        z = tape.kernels.separable(one, source.x)
        one.release(inner=not keep.inner, taps=not keep.taps)
        return z

    def accumulate_(
        self, tape: Tape, source: Source, keep: Keep, out_BHWC: Tensor, gate: float
    ) -> tuple[Tensor, batchnorm.Stats, Tensor | None]:
        one = self._on(tape)
        found = tape.kernels.accumulate_separable_(out_BHWC, one, source.x, gate)
        one.release(inner=not keep.inner, taps=not keep.taps)
        return found

    def backward(self, tape: Tape, source: Source, through: Through) -> Tensor | float:
        gate_grad, source.grad = tape.kernels.separable_backward(
            self._on(tape), source.x, through.dy, through.z, through.stats, through.sum_dy_C, through.gate, source.grad,
            tape.weight_grads, need_x=source.need_x,
        )  # fmt: skip
        return gate_grad

    def _on(self, tape: Tape) -> Separable:
        if tape.separable is None:
            tape.separable = Separable(tape.weights, self.dilation, tape.stride)
        return tape.separable

    def plain(self, x_BCHW: Tensor, weights: Sequence[Tensor], stride: int) -> Tensor:
        padding = self.dilation * (self.side // 2)
        for stage in range(self.stages):
            depthwise_w, pointwise_w = weights[2 * stage : 2 * stage + 2]
            x_BCHW = F.conv2d(
                torch.relu(x_BCHW), depthwise_w, None, stride if stage == 0 else 1, padding, self.dilation,
                x_BCHW.shape[1],
            )  # fmt: skip
            x_BCHW = plain_norm(F.conv2d(x_BCHW, pointwise_w[:, :, None, None]))
        return x_BCHW


@dataclass(frozen=True, slots=True)
class ReluConv(NormalisedOperation):
    """ReLU, dense k x k convolution, BatchNorm (NAS-Bench-201's nor_conv)."""

    side: int

    def weight_shapes(self, channels_in: int, channels: int, stride: int) -> tuple[Shape, ...]:
        return ((channels, channels, self.side, self.side),)

    def forward(self, tape: Tape, source: Source, keep: Keep) -> Tensor:
        return conv.conv(source.relu(), tape.weights[0], tape.stride)

    def input_backward(self, tape: Tape, source: Source, dz_BHWC: Tensor) -> None:
        if not (source.need_x or tape.need_w):
            return
        da, dw = conv.conv_grads(
            dz_BHWC, source.relu(), tape.weights[0], tape.stride, need_x=source.need_x, need_w=tape.need_w
        )
        source.add_relu_grad(da)
        if dw is not None:
            tape.weight_grads[0].copy_(dw)

    def plain(self, x_BCHW: Tensor, weights: Sequence[Tensor], stride: int) -> Tensor:
        return plain_norm(F.conv2d(torch.relu(x_BCHW), weights[0], None, stride, self.side // 2))


@dataclass(frozen=True, slots=True)
class NormalisedPool(NormalisedOperation):
    """3x3 pooling and BatchNorm, as in DARTS' search."""

    kind: Literal["max", "avg"]

    def forward(self, tape: Tape, source: Source, keep: Keep) -> Tensor:
        if self.kind == "max":
            return tape.kernels.max_pool(source.x, tape.stride)
        return tape.kernels.avg_pool(source.x, tape.stride)

    def input_backward(self, tape: Tape, source: Source, dz_BHWC: Tensor) -> None:
        if not source.need_x:
            return
        if self.kind == "max":
            source.grad = tape.kernels.add_max_pool_grad(source.grad, dz_BHWC, source.x, tape.stride)
        else:
            source.grad = tape.kernels.add_avg_pool_grad(source.grad, dz_BHWC, source.x, tape.stride)

    def plain(self, x_BCHW: Tensor, weights: Sequence[Tensor], stride: int) -> Tensor:
        if self.kind == "max":
            return plain_norm(F.max_pool2d(x_BCHW, 3, stride, 1))
        return plain_norm(F.avg_pool2d(x_BCHW, 3, stride, 1, count_include_pad=False))


class AveragePool(DirectOperation):
    """3x3 mean without BatchNorm (NAS-Bench-201)."""

    def forward(self, tape: Tape, source: Source, keep: Keep) -> Tensor:
        return tape.kernels.avg_pool(source.x, tape.stride)

    def backward(self, tape: Tape, source: Source, dy_BHWC: Tensor, gate: float, need_gate: bool) -> Tensor | None:
        dgate = (dy_BHWC * tape.kernels.avg_pool(source.x, tape.stride)).sum() if need_gate else None
        if source.need_x:
            source.grad = tape.kernels.add_avg_pool_grad(source.grad, dy_BHWC * gate, source.x, tape.stride)
        return dgate

    def plain(self, x_BCHW: Tensor, weights: Sequence[Tensor], stride: int) -> Tensor:
        return F.avg_pool2d(x_BCHW, 3, stride, 1, count_include_pad=False)


class Skip(DirectOperation):
    """Identity at stride 1, with Dropblock-Identity where the step asks for it."""

    is_identity = True

    def forward(self, tape: Tape, source: Source, keep: Keep) -> Tensor:
        return source.x if tape.drop_mask is None else source.x * tape.drop_mask(source.x)

    def backward(self, tape: Tape, source: Source, dy_BHWC: Tensor, gate: float, need_gate: bool) -> Tensor | None:
        if tape.drop_mask is not None:
            dy_BHWC = dy_BHWC * tape.drop_mask(source.x)
        dgate = torch.mul(dy_BHWC, source.x).sum() if need_gate else None
        if source.need_x:
            if source.grad is None:
                source.add_grad(dy_BHWC * gate)
            else:
                source.grad.add_(dy_BHWC, alpha=gate)
        return dgate

    def plain(self, x_BCHW: Tensor, weights: Sequence[Tensor], stride: int) -> Tensor:
        return x_BCHW


class FactorizedReduce(NormalisedOperation):
    """ReLU, two 1x1 convolutions of stride 2 (the second shifted by a pixel) joined on channels, BatchNorm."""

    def weight_shapes(self, channels_in: int, channels: int, stride: int) -> tuple[Shape, ...]:
        return ((channels // 2, channels),) * 2

    def forward(self, tape: Tape, source: Source, keep: Keep) -> Tensor:
        return conv.factorized_reduce(source.relu(), (tape.weights[0], tape.weights[1]))

    def input_backward(self, tape: Tape, source: Source, dz_BHWC: Tensor) -> None:
        half = tape.weights[0].shape[0]
        for index, phase in enumerate(conv.phases_of_reduction(source.relu())):
            part = dz_BHWC[..., index * half : (index + 1) * half]
            if tape.need_w:
                tape.weight_grads[index].copy_(conv.pointwise_weight_grad(part, phase))
            if source.need_x:
                target = conv.phases_of_reduction(source.relu_grad_buffer())[index]
                target.add_(conv.pointwise_input_grad(part, tape.weights[index]))

    def plain(self, x_BCHW: Tensor, weights: Sequence[Tensor], stride: int) -> Tensor:
        return plain_factorized_reduce(x_BCHW, weights)


class SkipConnect(Operation):
    """DARTS' skip_connect: which operation it is depends on the stride."""

    def at(self, stride: int) -> Operation:
        return Skip() if stride == 1 else FactorizedReduce()


class Zero(Operation):
    """`none`: never run by the cell engine; its plain form costs what the published codes pay for it."""

    def plain(self, x_BCHW: Tensor, weights: Sequence[Tensor], stride: int) -> Tensor:
        return (x_BCHW if stride == 1 else x_BCHW[:, :, ::stride, ::stride]).mul(0.0)


class ModuleOperation(DirectOperation):
    """Any nn.Module as an operation: run without autograd, run again under it in backward.

    Args:
        build: makes the module for (channels, stride); called once per place to learn the parameters'
            shapes and once per stride to compute. BatchNorm inside it is set to batch statistics only,
            since a second pass must not count twice. Buffers other than BatchNorm's must not change in
            forward, and a module that draws random numbers is refused its own: use Dropblock-Identity.
    """

    def __init__(self, build: Callable[[int, int], nn.Module]) -> None:
        self.build = build
        self._modules: dict[tuple[int, int], nn.Module] = {}

    def _module(self, channels: int, stride: int) -> nn.Module:
        place = (channels, stride)
        if place not in self._modules:
            module = self.build(channels, stride)
            for part in module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.track_running_stats = False
                    part.running_mean = part.running_var = part.num_batches_tracked = None
            self._modules[place] = module
        return self._modules[place]

    def weight_shapes(self, channels_in: int, channels: int, stride: int) -> tuple[Shape, ...]:
        if channels_in != channels:
            raise ConfigError(
                "a module is for cells that keep their channels", got=f"{channels_in} to {channels} channels",
                allowed="equal numbers", next="an operation of your own: engine/supernet/operation.py",
            )  # fmt: skip
        return tuple(tuple(weight.shape) for weight in self._module(channels, stride).parameters())

    def _call(self, x_BCHW: Tensor, weights: Sequence[Tensor], stride: int) -> Tensor:
        module = self._module(x_BCHW.shape[1], stride)
        names = [name for name, _ in module.named_parameters()]
        return functional_call(module, dict(zip(names, weights, strict=True)), (x_BCHW,))

    def forward(self, tape: Tape, source: Source, keep: Keep) -> Tensor:
        return conv.bhwc(self._call(conv.bchw(source.x), tape.weights, tape.stride))

    def backward(self, tape: Tape, source: Source, dy_BHWC: Tensor, gate: float, need_gate: bool) -> Tensor | None:
        with torch.enable_grad():
            x = source.x.detach().requires_grad_(source.need_x)
            weights = [weight.detach().requires_grad_(tape.need_w) for weight in tape.weights]
            y = conv.bhwc(self._call(conv.bchw(x), weights, tape.stride))
        dgate = (dy_BHWC * y.detach()).sum() if need_gate else None
        wanted = [x] * source.need_x + weights * tape.need_w
        if y.requires_grad and wanted:
            grads: list[Any] = list(torch.autograd.grad(y, wanted, dy_BHWC * gate))
            if source.need_x:
                source.add_grad(grads.pop(0))
            for place, grad in zip(tape.weight_grads, grads, strict=True):
                place.copy_(grad)
        return dgate

    def plain(self, x_BCHW: Tensor, weights: Sequence[Tensor], stride: int) -> Tensor:
        return self._call(x_BCHW, weights, stride)


@dataclass(frozen=True, slots=True)
class InvertedResidual(NormalisedOperation):
    """MobileNetV2's block without its shortcut, which is the edge's; see `kernels.reference.inverted`.

    No BatchNorm in it has weights while searching (ours, as in DARTS' space; ProxylessNAS and FBNet train them). An
    expansion of 0 stands for no first convolution (ProxylessNAS' MBConv1).
    """

    side: int
    expansion: int
    groups: int = 1

    def weight_shapes(self, channels_in: int, channels: int, stride: int) -> tuple[Shape, ...]:
        middle = channels_in * max(1, self.expansion)
        last = ((middle, 1, self.side, self.side), (channels, middle // self.groups))
        return ((middle, channels_in // self.groups), *last) if self.expansion else last

    def forward(self, tape: Tape, source: Source, keep: Keep) -> Tensor:
        if tape.inverted is None:
            tape.inverted = Inverted(tape.weights, tape.stride, self.groups, keep.inner, keep.taps)
        return inverted.forward(tape.inverted, source.x)

    def input_backward(self, tape: Tape, source: Source, dz_BHWC: Tensor) -> None:
        assert tape.inverted is not None
        source.grad = inverted.backward(
            tape.inverted, source.x, dz_BHWC, source.grad, tape.weight_grads, need_x=source.need_x
        )

    def plain(self, x_BCHW: Tensor, weights: Sequence[Tensor], stride: int) -> Tensor:
        *expand, depthwise_w, project_w = weights
        if expand:
            x_BCHW = F.relu6(plain_norm(F.conv2d(x_BCHW, expand[0][:, :, None, None], groups=self.groups)))
        if self.groups > 1:
            x_BCHW = F.channel_shuffle(x_BCHW, self.groups)
        middle = x_BCHW.shape[1]
        x_BCHW = F.conv2d(x_BCHW, depthwise_w, None, stride, self.side // 2, 1, middle)
        x_BCHW = F.relu6(plain_norm(x_BCHW))
        return plain_norm(F.conv2d(x_BCHW, project_w[:, :, None, None], groups=self.groups))


class Projection(NormalisedOperation):
    """1x1 convolution with the edge's stride, BatchNorm."""

    def weight_shapes(self, channels_in: int, channels: int, stride: int) -> tuple[Shape, ...]:
        return ((channels, channels_in),)

    def forward(self, tape: Tape, source: Source, keep: Keep) -> Tensor:
        return conv.pointwise(source.x[:, :: tape.stride, :: tape.stride], tape.weights[0])

    def input_backward(self, tape: Tape, source: Source, dz_BHWC: Tensor) -> None:
        pixels = (slice(None), slice(None, None, tape.stride), slice(None, None, tape.stride))
        if tape.need_w:
            tape.weight_grads[0].copy_(conv.pointwise_weight_grad(dz_BHWC, source.x[pixels]))
        if source.need_x:
            dx = torch.zeros_like(source.x) if source.grad is None else source.grad
            dx[pixels].add_(conv.pointwise_input_grad(dz_BHWC, tape.weights[0]))
            source.grad = dx

    def plain(self, x_BCHW: Tensor, weights: Sequence[Tensor], stride: int) -> Tensor:
        return plain_norm(F.conv2d(x_BCHW, weights[0][:, :, None, None], None, stride))


class LayerSkip(Operation):
    """FBNet's skip: nothing beside the edge's shortcut, and where there is none a projection.

    FBNet's code has a ReLU behind the projection; the node's BatchNorm is the last here (ours).
    """

    def at(self, shortcut: bool) -> Operation:
        return Zero() if shortcut else Projection()


def plain_norm(x_BCHW: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """BatchNorm by batch statistics under ordinary autograd."""
    return F.batch_norm(x_BCHW, None, None, weight, bias, training=True, eps=batchnorm.EPSILON)


def plain_factorized_reduce(x_BCHW: Tensor, weights: Sequence[Tensor]) -> Tensor:
    x_BCHW = torch.relu(x_BCHW)
    even = F.conv2d(x_BCHW, weights[0][:, :, None, None], stride=2)
    odd = F.conv2d(x_BCHW[:, :, 1:, 1:], weights[1][:, :, None, None], stride=2)
    return plain_norm(torch.cat([even, odd], 1))


def operation_at(table: Mapping[str, Operation], name: str, stride: int, *, shortcut: bool = False) -> Operation:
    """The operation `name` of the table on an edge of that stride, perhaps one with a shortcut."""
    operation = table[name]
    if isinstance(operation, LayerSkip):
        return operation.at(shortcut)
    return operation.at(stride) if isinstance(operation, SkipConnect) else operation


DARTS_TABLE: Mapping[str, Operation] = {
    ZERO: Zero(),
    "max_pool_3x3": NormalisedPool("max"),
    "avg_pool_3x3": NormalisedPool("avg"),
    SKIP: SkipConnect(),
    "sep_conv_3x3": DepthwiseSeparable(3, 1, 2),
    "sep_conv_5x5": DepthwiseSeparable(5, 1, 2),
    "dil_conv_3x3": DepthwiseSeparable(3, 2, 1),
    "dil_conv_5x5": DepthwiseSeparable(5, 2, 1),
}
NASBENCH201_TABLE: Mapping[str, Operation] = {
    ZERO: Zero(),
    SKIP: SkipConnect(),
    "nor_conv_1x1": ReluConv(1),
    "nor_conv_3x3": ReluConv(3),
    "avg_pool_3x3": AveragePool(),
}
_BLOCKS = {name: InvertedResidual(one.side, one.expansion, one.groups) for name, one in BLOCKS.items()}
MOBILE_TABLE: Mapping[str, Operation] = {
    **{name: _BLOCKS[name] for name in (MOBILE_FIXED, *MOBILE_BLOCKS)},
    MOBILE_ZERO: Zero(),
}
FBNET_TABLE: Mapping[str, Operation] = {**{name: _BLOCKS[name] for name in FBNET_BLOCKS}, FBNET_SKIP: LayerSkip()}
TABLES: Mapping[str, Mapping[str, Operation]] = {
    "darts": DARTS_TABLE,
    "nasbench201": NASBENCH201_TABLE,
    "mobile": MOBILE_TABLE,
    "fbnet": FBNET_TABLE,
}
