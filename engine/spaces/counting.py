"""Parameters and multiply-accumulates of the network that a genotype stands for, by plain arithmetic.

The DARTS network is NetworkCIFAR / NetworkImageNet of quark0/darts (cnn/model.py, cnn/operations.py) with
affine BatchNorm and none after pools; the NAS-Bench-201 network is that of D-X-Y/AutoDL-Projects; the chains are those
of ProxylessNAS and FBNet with affine BatchNorm behind every convolution. MACs are
those of the convolutions and of the classifier's matrix at batch 1, without biases, BatchNorm, pools and
auxiliary head.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .chain import BLOCKS, CHAIN_SKIPS
from .genotype import CHAINS, Genotype
from .space import (
    DARTS,
    FAMILIES,
    SKIP,
    CellLayer,
    ResidualLayer,
    Skeleton,
    StemKind,
    StemSpec,
    derived_skeleton,
    search_skeleton,
)

AUX_CHANNELS = (128, 768)
# Far beyond what is trained, and small enough to be counted at once (ours).
MOST_CLASSES, MOST_SIDE = 1 << 20, 1 << 13
POOLS = ("none", "max_pool_3x3", "avg_pool_3x3")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs.

    Attributes:
        params: trainable parameters without the auxiliary head.
        params_with_aux: with it; None where the space has none (all but DARTS').
        macs: multiply-accumulates of one image's forward pass, without the auxiliary head.
    """

    params: int
    params_with_aux: int | None
    macs: int

    @property
    def flops(self) -> int:
        """Two per multiply-accumulate."""
        return 2 * self.macs


@dataclass(frozen=True, slots=True)
class _Part:
    params: int = 0
    macs: int = 0

    def __add__(self, other: _Part) -> _Part:
        return _Part(self.params + other.params, self.macs + other.macs)


def count(genotype: Genotype, *, channels: int, layers: int, image: int, classes: int, stem: StemKind) -> Cost:
    """Cost of the derived network.

    Args:
        genotype: of any space.
        channels: C of the first cell, even; of a chain's first convolution.
        layers: number of cells; a multiple of 3 in NAS-Bench-201 (5 per stage is its N), a chain's own number.
        image: side of the square input in pixels.
        classes: outputs of the classifier.
        stem: `cifar`, or `imagenet`, which divides the side by 8, a chain's by 2.

    Raises:
        ConfigError: for sizes that the network cannot have.
    """
    skeleton = network_skeleton(genotype, channels=channels, layers=layers, stem=stem)
    if not 1 <= classes <= MOST_CLASSES:
        raise ConfigError(
            "classes is out of range", got=classes, allowed=f"1 to {MOST_CLASSES}", next="--classes 10"
        )  # fmt: skip
    if image % skeleton.stride or not skeleton.stride <= image <= MOST_SIDE:
        nearest = min(max(1, round(image / skeleton.stride)), MOST_SIDE // skeleton.stride) * skeleton.stride
        raise ConfigError(
            "the network divides the image's side", got=f"image {image}",
            allowed=f"a multiple of {skeleton.stride} up to {MOST_SIDE}", next=f"--image {nearest}",
        )  # fmt: skip
    total = _Part(skeleton.channels_out * classes + classes, skeleton.channels_out * classes)
    if skeleton.norm_head:
        total += _Part(2 * skeleton.channels_out)
    if skeleton.head_in:
        side = image // skeleton.stride
        total += _conv(skeleton.head_in, skeleton.channels_out, 1, side * side) + _norm(skeleton.channels_out)
    side = image
    for spec in skeleton.stems:
        part, side = _stem(spec, side)
        total += part
    for layer in skeleton.layers:
        part, side = _residual(layer, side) if isinstance(layer, ResidualLayer) else _cell(genotype, layer, side)
        total += part
    aux = None if genotype.space != DARTS.name else total.params + _aux_params(skeleton, classes, stem)
    return Cost(total.params, aux, total.macs)


def network_skeleton(genotype: Genotype, *, channels: int, layers: int, stem: StemKind) -> Skeleton:
    """The derived network around the genotype's own cells. Raises ConfigError as `search_skeleton` does."""
    space = FAMILIES[genotype.space]
    skeleton = search_skeleton(space, channels=channels, layers=layers, stem=stem)
    if space is not DARTS:
        return skeleton
    return derived_skeleton(
        genotype.spec("normal"), genotype.spec("reduce"), channels=channels, layers=layers, stem=stem
    )


def names_of(genotype: Genotype, layer: CellLayer) -> list[str]:
    """The operations of a layer's edges, in their order."""
    if layer.fixed:
        return [layer.fixed]
    pairs = genotype.cell(layer.spec.kind).pairs
    return [name for name, _ in pairs[layer.first_row : layer.first_row + len(layer.spec.edges)]]


def _conv(channels_in: int, channels: int, kernel: int, area: int, groups: int = 1) -> _Part:
    """A convolution without bias; `kernel` is its number of taps, `area` that of output positions."""
    params = kernel * channels_in * channels // groups
    return _Part(params, params * area)


def _norm(channels: int) -> _Part:
    return _Part(2 * channels)


def _stem(spec: StemSpec, side: int) -> tuple[_Part, int]:
    total = _Part()
    for conv in spec.convs:
        side //= conv.stride
        total += _conv(conv.channels_in, conv.channels, 9, side * side) + _norm(conv.channels)
    return total, side


def _residual(layer: ResidualLayer, side: int) -> tuple[_Part, int]:
    side //= 2
    area, inner, outer = side * side, layer.channels_in, layer.channels
    convs = _conv(inner, outer, 9, area) + _conv(outer, outer, 9, area) + _conv(inner, outer, 1, area)
    return convs + _norm(outer) + _norm(outer), side


def _cell(genotype: Genotype, layer: CellLayer, side: int) -> tuple[_Part, int]:
    """Cost of a cell whose last input has side `side`, and the side of its output."""
    spec, total = layer.spec, _Part()
    if genotype.space in CHAINS:
        return _block(names_of(genotype, layer)[0], layer, side)
    if spec.preprocess:
        for channels_in in layer.channels_in:
            # A factorized reduction is two half-width 1x1 convolutions: together as many products as one.
            total += _conv(channels_in, layer.channels, 1, side * side) + _norm(layer.channels)
    out_side = side // 2 if spec.reduction else side
    for (operation, _), edge in zip(genotype.cell(spec.kind).pairs, spec.edges, strict=True):
        total += _operation(operation, layer.channels, out_side, edge.stride)
    return total, out_side


def _block(name: str, layer: CellLayer, side: int) -> tuple[_Part, int]:
    """Cost of a layer of a chain, and the side of its output."""
    (edge,), (channels_in,) = layer.spec.edges, layer.channels_in
    out_side = side // edge.stride
    area, out_area = side * side, out_side * out_side
    if name in CHAIN_SKIPS:
        projected = _conv(channels_in, layer.channels, 1, out_area) + _norm(layer.channels)
        return _Part() if edge.shortcut else projected, out_side
    block = BLOCKS[name]
    middle = channels_in * max(1, block.expansion)
    total = _conv(middle, middle, block.side**2, out_area, groups=middle) + _norm(middle)
    total += _conv(middle, layer.channels, 1, out_area, groups=block.groups) + _norm(layer.channels)
    if block.expansion:
        total += _conv(channels_in, middle, 1, area, groups=block.groups) + _norm(middle)
    return total, out_side


def _operation(name: str, channels: int, side: int, stride: int) -> _Part:
    """Cost of an operation from `channels` to as many, with an output of side `side`."""
    area = side * side
    if name in POOLS or (name == SKIP and stride == 1):
        return _Part()
    pointwise = _conv(channels, channels, 1, area) + _norm(channels)
    if name == SKIP:
        return pointwise
    if name == "conv_7x1_1x7":
        wide = _conv(channels, channels, 7, area * stride)
        return wide + _conv(channels, channels, 7, area) + _norm(channels)
    family, _, size = name.rpartition("_")
    taps = int(size.partition("x")[0]) ** 2
    if family == "nor_conv":
        return _conv(channels, channels, taps, area) + _norm(channels)
    once = _conv(channels, channels, taps, area, groups=channels) + pointwise
    return once + once if family == "sep_conv" else once


def _aux_params(skeleton: Skeleton, classes: int, stem: StemKind) -> int:
    """Parameters of DARTS' auxiliary head behind cell 2L/3: 1x1 and 2x2 convolutions and a classifier."""
    layer = skeleton.layers[2 * len(skeleton.layers) // 3]
    assert isinstance(layer, CellLayer)
    inner, outer = AUX_CHANNELS
    convs = _conv(layer.channels_out, inner, 1, 1) + _norm(inner) + _conv(inner, outer, 4, 1)
    # DARTS leaves the second BatchNorm out of its ImageNet head, by its own note a slip that it keeps.
    norm = 0 if stem == "imagenet" else _norm(outer).params
    return convs.params + norm + outer * classes + classes
