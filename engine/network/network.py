"""The network that a genotype stands for, as it is trained from scratch.

Shape suffixes: B batch, C channels, H height, W width, D paths that drop-path may drop.

DARTS cells are in NetworkCIFAR / NetworkImageNet of quark0/darts (cnn/model.py), NAS-Bench-201's in the network of
D-X-Y/AutoDL-Projects; a mobile chain is its own network. Parameters and MACs are those of `counting.count`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spaces.chain import BLOCKS, CHAIN_SKIPS, MOBILE_FIXED
from ..spaces.counting import AUX_CHANNELS, names_of, network_skeleton
from ..spaces.genotype import Genotype
from ..spaces.space import CHAIN, DARTS, CellLayer, Edge, StemKind, StemSpec
from .chain import chain_head, chain_operation
from .ops import FactorizedReduce, ReluConvNorm, ResidualReduce, Zero, conv, operation

# Side of the auxiliary head's input: stride of its 5x5 mean, whose output then has side 2 (quark0/darts).
AUXILIARY_STRIDES = {8: 3, 7: 2}


class Stem(nn.Module):
    """3x3 convolutions with BatchNorm, joined by ReLU, in a chain with a ReLU6 behind."""

    def __init__(self, spec: StemSpec) -> None:
        super().__init__()
        self.relu_first, self.relu6_last = spec.relu_first, spec.relu6_last
        self.convs = nn.ModuleList(conv(one.channels_in, one.channels, 3, one.stride) for one in spec.convs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(one.channels) for one in spec.convs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for number, (convolution, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if number or self.relu_first:
                x_BCHW = F.relu(x_BCHW)
            x_BCHW = norm(convolution(x_BCHW))
        return F.relu6(x_BCHW) if self.relu6_last else x_BCHW


class Cell(nn.Module):
    """A derived cell: each node adds its operations' outputs, the concat's nodes are joined on channels.

    Attributes:
        preprocess: by input, where the space has it.
        edges: the genotype's operations in its order.
    """

    def __init__(self, layer: CellLayer, names: Sequence[str]) -> None:
        super().__init__()
        self.spec = layer.spec
        self.preprocess = nn.ModuleList(
            FactorizedReduce(channels, layer.channels)
            if number == 0 and layer.reduced_before
            else ReluConvNorm(channels, layer.channels, 1)
            for number, channels in enumerate(layer.channels_in if layer.spec.preprocess else ())
        )
        self.edges = nn.ModuleList(
            _operation(name, layer, edge) for name, edge in zip(names, layer.spec.edges, strict=True)
        )

    @property
    def droppable(self) -> tuple[bool, ...]:
        """Of each edge whether drop-path may drop it: neither an Identity nor zeros, nor a layer's only way through."""
        chain = self.spec.kind in (CHAIN, MOBILE_FIXED)
        return tuple(
            not isinstance(edge, nn.Identity | Zero) and (place.shortcut or not chain)
            for edge, place in zip(self.edges, self.spec.edges, strict=True)
        )

    def forward(self, inputs: Sequence[Tensor], factors: Iterator[Tensor] | None) -> Tensor:
        states = list(inputs)
        for number, prepare in enumerate(self.preprocess):
            states[number] = prepare(states[number])
        droppable = self.droppable
        for node in range(self.spec.inputs, self.spec.num_states):
            total: Tensor | None = None
            for number, edge in enumerate(self.spec.edges):
                if edge.target != node:
                    continue
                y_BCHW = self.edges[number](states[edge.source])
                if factors is not None and droppable[number]:
                    y_BCHW = y_BCHW * next(factors)[:, None, None, None]
                if edge.shortcut:
                    y_BCHW = states[edge.source] + y_BCHW
                total = y_BCHW if total is None else total + y_BCHW
            assert total is not None
            states.append(total)
        if len(self.spec.concat) == 1:
            return states[self.spec.concat[0]]
        return torch.cat([states[node] for node in self.spec.concat], 1)


def _operation(name: str, layer: CellLayer, edge: Edge) -> nn.Module:
    if name in BLOCKS or name in CHAIN_SKIPS:
        return chain_operation(name, layer.channels_in[0], layer.channels, edge.stride, shortcut=edge.shortcut)
    return operation(name, layer.channels, edge.stride)


class AuxiliaryHead(nn.Module):
    """DARTS' second classifier, behind cell 2L/3: mean, 1x1, 2x2, Linear.

    At the sides that DARTS had, 8 (CIFAR) and 7 (ImageNet), its 5x5 mean; at others a mean to 2 x 2 (ours).
    """

    def __init__(self, channels: int, classes: int, stem: StemKind) -> None:
        super().__init__()
        inner, outer = AUX_CHANNELS
        self.reduce = conv(channels, inner, 1)
        self.reduce_norm = nn.BatchNorm2d(inner)
        self.join = nn.Conv2d(inner, outer, 2, bias=False)
        # DARTS leaves it out of its ImageNet head, by its own note a slip that it keeps.
        self.join_norm = nn.Identity() if stem == "imagenet" else nn.BatchNorm2d(outer)
        self.classifier = nn.Linear(outer, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        side = x_BCHW.shape[-1]
        x_BCHW = F.relu(x_BCHW)
        if side in AUXILIARY_STRIDES:
            x_BCHW = F.avg_pool2d(x_BCHW, 5, AUXILIARY_STRIDES[side])
        else:
            x_BCHW = F.adaptive_avg_pool2d(x_BCHW, 2)
        x_BCHW = F.relu(self.reduce_norm(self.reduce(x_BCHW)))
        return self.classifier(F.relu(self.join_norm(self.join(x_BCHW))).flatten(1))


class Network(nn.Module):
    """A classifier built from a genotype.

    Args:
        genotype: of any space.
        channels, layers, stem: see `counting.count`.
        classes: of the classifier.
        auxiliary: with DARTS' auxiliary head; other spaces have none and get none.
        seed: of the weights, which are torch's defaults as in DARTS.

    Attributes:
        num_paths: D, the operations that drop-path may drop.
        stride: what the image's side must be a multiple of.

    Raises:
        ConfigError: for sizes that the network cannot have.
    """

    def __init__(
        self, genotype: Genotype, *, channels: int, layers: int, classes: int, stem: StemKind = "cifar",
        auxiliary: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        skeleton = network_skeleton(genotype, channels=channels, layers=layers, stem=stem)
        self.stride = skeleton.stride
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stems = nn.ModuleList(Stem(spec) for spec in skeleton.stems)
            self.layers = nn.ModuleList(
                Cell(layer, names_of(genotype, layer))
                if isinstance(layer, CellLayer)
                else ResidualReduce(layer.channels_in, layer.channels)
                for layer in skeleton.layers
            )
            self.head = chain_head(skeleton.head_in, skeleton.channels_out) if skeleton.head_in else None
            self.norm = nn.BatchNorm2d(skeleton.channels_out) if skeleton.norm_head else None
            self.classifier = nn.Linear(skeleton.channels_out, classes)
            self.auxiliary, self.auxiliary_behind = None, 2 * layers // 3
            if auxiliary and genotype.space == DARTS.name:
                behind = skeleton.layers[self.auxiliary_behind]
                assert isinstance(behind, CellLayer)
                self.auxiliary = AuxiliaryHead(behind.channels_out, classes, stem)
        self.num_paths = sum(sum(cell.droppable) for cell in self.layers if isinstance(cell, Cell))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits [B, classes] of normalised images [B, 3, S, S]."""
        return self._run(images_BCHW, None, with_auxiliary=False)[0]

    def training_logits(self, images_BCHW: Tensor, factors_DB: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits [B, classes], and those of the auxiliary head where there is one.

        Args:
            images_BCHW: normalised images.
            factors_DB: what each sample's outputs of the D droppable operations are multiplied by, in the order of
                the cells and their edges: 0, or 1 / (1 - rate) (Larsson et al., FractalNet, as DARTS does it).
        """
        return self._run(images_BCHW, factors_DB, with_auxiliary=self.auxiliary is not None)

    def _run(
        self, images_BCHW: Tensor, factors_DB: Tensor | None, *, with_auxiliary: bool
    ) -> tuple[Tensor, Tensor | None]:
        outputs = [images_BCHW]
        for stem in self.stems:
            outputs.append(stem(outputs[-1]))
        before, last = outputs[1], outputs[-1]
        factors = None if factors_DB is None else iter(factors_DB.unbind(0))
        auxiliary = None
        for number, layer in enumerate(self.layers):
            if isinstance(layer, Cell):
                before, last = last, layer((before, last)[-layer.spec.inputs :], factors)
            else:
                last = layer(last)
            if with_auxiliary and number == self.auxiliary_behind:
                assert self.auxiliary is not None
                auxiliary = self.auxiliary(last)
        if self.head is not None:
            last = self.head(last)
        if self.norm is not None:
            last = F.relu(self.norm(last))
        return self.classifier(last.mean((2, 3))), auxiliary


def drop_path_factors(paths: int, batch: int, rate: float, generator: torch.Generator) -> Tensor:
    """`factors_DB` of a step, float32 on the CPU: 0 with probability `rate`, else 1 / (1 - rate)."""
    kept = torch.rand(paths, batch, generator=generator) >= rate
    return kept.float() / (1 - rate)
