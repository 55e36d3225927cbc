"""Chains of mobile blocks as pure data: ProxylessNAS' and FBNet's networks, in which every layer is searched.

Widths are those at multiplier 1; nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """An inverted residual.

    Attributes:
        side: of the depthwise kernel.
        expansion: channels in the middle over those in; 0 for as many and no first convolution.
        groups: of the 1x1 convolutions; the channels behind the first are then shuffled.
    """

    side: int
    expansion: int
    groups: int = 1


# The block behind the first convolution, which is not searched, and the candidates of ProxylessNAS (Cai, Zhu and Han
# 2019; mit-han-lab/proxylessnas, search/imagenet_arch_search.py) in its order.
MOBILE_FIXED, MOBILE_ZERO = "mbconv1_3x3", "zero"
MOBILE_BLOCKS = {f"mbconv{e}_{side}x{side}": Block(side, e) for side in (3, 5, 7) for e in (3, 6)}
MOBILE_OPERATIONS = (*MOBILE_BLOCKS, MOBILE_ZERO)
# FBNet's (Wu et al. 2019, table 2; facebookresearch/maskrcnn-benchmark, fbnet_builder.py).
FBNET_SKIP = "skip"
FBNET_BLOCKS = {
    name: block
    for side in (3, 5)
    for name, block in (
        (f"k{side}_e1", Block(side, 1)),
        (f"k{side}_e1_g2", Block(side, 1, groups=2)),
        (f"k{side}_e3", Block(side, 3)),
        (f"k{side}_e6", Block(side, 6)),
    )
}
FBNET_OPERATIONS = (*FBNET_BLOCKS, FBNET_SKIP)
BLOCKS = {MOBILE_FIXED: Block(3, 0), **MOBILE_BLOCKS, **FBNET_BLOCKS}
# Operations that leave a layer out where it has a shortcut.
CHAIN_SKIPS = (MOBILE_ZERO, FBNET_SKIP)
WIDTH_DIVISOR = 8


@dataclass(frozen=True, slots=True)
class ChainLayer:
    """One searched layer.

    Attributes:
        stage: number of its stage.
        stride: 1 or 2.
        shortcut: whether its input is added to its output: at stride 1 between equal widths.
    """

    stage: int
    stride: int
    shortcut: bool


@dataclass(frozen=True, slots=True)
class Chain:
    """A 3x3 convolution, perhaps a fixed block, stages of searched layers, a 1x1 convolution and a classifier.

    Attributes:
        first: channels of the first convolution.
        fixed: channels of the fixed block behind it, 0 for none.
        stages: (channels, layers, stride of the first layer) of each stage.
        head: channels of the last 1x1 convolution.
    """

    first: int
    fixed: int
    stages: tuple[tuple[int, int, int], ...]
    head: int

    @property
    def layers(self) -> tuple[ChainLayer, ...]:
        found = []
        width_before = self.fixed or self.first
        for stage, (width, count, first_stride) in enumerate(self.stages):
            for number in range(count):
                stride = first_stride if number == 0 else 1
                found.append(ChainLayer(stage, stride, stride == 1 and width == width_before))
                width_before = width
        return tuple(found)

    def width(self, published: int, channels: int) -> int:
        """`published` channels in a chain whose first convolution has `channels` instead of `first`.

        Rounded to a multiple of 8 as `make_divisible` of MobileNet's and ProxylessNAS' code does.
        """
        wanted = published * channels / self.first
        rounded = max(WIDTH_DIVISOR, int(wanted + WIDTH_DIVISOR / 2) // WIDTH_DIVISOR * WIDTH_DIVISOR)
        return rounded + WIDTH_DIVISOR if rounded < 0.9 * wanted else rounded

    def head_width(self, channels: int) -> int:
        """Channels of the last convolution: the published ones, or more in a wider chain (ProxylessNAS' code)."""
        return self.width(self.head, channels) if channels > self.first else self.head


# ProxylessNAS' search/imagenet_arch_search.py and super_proxyless.py.
MOBILE = Chain(32, 16, ((24, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1)), 1280)
# FBNet's table 1.
FBNET = Chain(16, 0, ((16, 1, 1), (24, 4, 2), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1)), 1984)
