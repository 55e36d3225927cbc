"""The size at which a cell's network is counted, where nobody says another."""

from __future__ import annotations

from ..spaces.costs import NetworkSize
from ..spaces.space import NASBENCH201, StemKind

IMAGENET_SIDE = 64

# At which a network is counted unless the user says: those of CIFAR's protocols, and of ImageNet's for the chains.
USUAL_SIZES = {
    "darts": NetworkSize(36, 20, 32, 10, "cifar"),
    "nasbench201": NetworkSize(16, 15, 32, 10, "cifar"),
    "mobile": NetworkSize(32, 21, 224, 1000, "imagenet"),
    "fbnet": NetworkSize(16, 22, 224, 1000, "imagenet"),
}


def size_of(
    family: str,
    channels: int | None,
    layers: int | None,
    image: int | None,
    classes: int | None,
    stem: StemKind | None,
    trained: NetworkSize | None = None,
) -> NetworkSize:
    """Of the derived network that a cell of that family is counted in, as `show` says, where it is not told.

    Args:
        trained: the size that a training's run folder tells, which then stands for the family's usual one.
    """
    usual = USUAL_SIZES[family] if trained is None else trained
    side = usual.image if image is None else image
    large = side >= IMAGENET_SIDE and family != NASBENCH201.name
    return NetworkSize(
        channels=usual.channels if channels is None else channels,
        layers=usual.layers if layers is None else layers,
        image=side,
        classes=usual.classes if classes is None else classes,
        stem=stem or (trained.stem if trained is not None else "imagenet" if large else "cifar"),
    )


def size_text(size: NetworkSize) -> str:
    """`C=36, 20 layers, 32 px, 10 classes`."""
    return f"C={size.channels}, {size.layers} layers, {size.image} px, {size.classes} classes"
