"""Chains of mobile blocks as pure data: ProxylessNAS' and FBNet's networks, in which every layer is searched.

Widths are those at multiplier 1; nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

# Of ProxylessNAS' candidates (Cai, Zhu and Han 2019; mit-han-lab/proxylessnas, search/imagenet_arch_search.py).
MOBILE_ZERO = "zero"
MOBILE_OPERATIONS = (
    "mbconv3_3x3",
    "mbconv6_3x3",
    "mbconv3_5x5",
    "mbconv6_5x5",
    "mbconv3_7x7",
    "mbconv6_7x7",
    MOBILE_ZERO,
)
# The block behind the first convolution, which is not searched.
MOBILE_FIXED = "mbconv1_3x3"
# Kernel, expansion and groups of FBNet's blocks (Wu et al. 2019, table 2).
FBNET_SKIP = "skip"
FBNET_OPERATIONS = (
    "k3_e1",
    "k3_e1_g2",
    "k3_e3",
    "k3_e6",
    "k5_e1",
    "k5_e1_g2",
    "k5_e3",
    "k5_e6",
    FBNET_SKIP,
)
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
