"""What is measured: a method and how it is run, under one name for memory, time and the figures of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.errors import ConfigError
from ..engine.settings.config import doubled_to
from ..engine.settings.method import method_named
from ..engine.spaces.space import space_named

# Those of DARTS' search (Liu et al., 2019) and of NAS-Bench-201's; the published chains; of PC-DARTS' on ImageNet with
# three times its width.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "darts": {"space": "darts", "channels": 16, "layers": 8, "image": 32, "classes": 10, "stem": "cifar"},
    "nasbench201": {"space": "nasbench201", "channels": 16, "layers": 15, "image": 32, "classes": 10, "stem": "cifar"},
    "imagenet-mobile": {
        "space": "imagenet-mobile", "channels": 32, "layers": 21, "image": 224, "classes": 1000, "stem": "imagenet"
    },
    "imagenet-fbnet": {
        "space": "imagenet-fbnet", "channels": 16, "layers": 22, "image": 224, "classes": 1000, "stem": "imagenet"
    },
    "imagenet": {"space": "darts", "channels": 48, "layers": 8, "image": 224, "classes": 1000, "stem": "imagenet"},
}  # fmt: skip
# What the others are compared with.
BASE = "darts, as published"
AUTOGRAD = "plain autograd"
SWEPT = (AUTOGRAD, "bn", "min")


@dataclass(frozen=True, slots=True)
class Variant:
    """One line of a table.

    Attributes:
        name: of the line.
        method: as `build_step` takes it.
        options: the other arguments of `build_step`, size apart.
    """

    name: str
    method: str
    options: Mapping[str, Any]

    @property
    def plain(self) -> bool:
        """Whether it runs under plain autograd."""
        return bool(self.options["policy"] == "autograd")

    @property
    def impl(self) -> str:
        """What computes the cells, `auto` unless the options say."""
        return str(self.options.get("impl", "auto"))

    @property
    def key(self) -> tuple[str, str]:
        """What a gradient depends on: method and implementation."""
        return self.method, self.impl


def size_of(space: str, *, imagenet: bool = False) -> dict[str, Any]:
    """The size that a space is measured at. ConfigError for an unknown space, or one without an ImageNet stem."""
    space_named(space)
    if imagenet and space != "darts":
        raise ConfigError("ImageNet's size is that of space darts", got=space, allowed="darts", next="--space darts")
    return dict(SIZES["imagenet"] if imagenet else {**SIZES.get(space, SIZES["darts"]), "space": space})


def title(size: Mapping[str, Any]) -> str:
    """A size in words."""
    return (
        f"{size['space']}, C={size['channels']}, {size['layers']} layers, {size['image']}x{size['image']}, "
        f"{size['classes']} classes, fp32"
    )


def published(method: str) -> Variant:
    """As the authors' code runs it: plain autograd, NCHW, the gradients that a step throws away included."""
    options = {"policy": "autograd", "layout": "nchw", "gradients": "all"}
    return Variant(f"{method}, as published", method, options)


def in_engine(method: str, policy: str = "min") -> Variant:
    """By the cell engine."""
    return Variant(f"{method}, {policy}", method, {"policy": policy})


def sampled(k: int, policy: str, *, mode: str = "union", impl: str = "auto") -> Variant:
    """K paths of ours; `policy` may be AUTOGRAD, which is in channels_last without gradients that are thrown away."""
    how = {"policy": "autograd", "gradients": "lazy"} if policy == AUTOGRAD else {"policy": policy, "impl": impl}
    name = f"msg K={k}{' sub-graphs' if mode == 'subgraphs' else ''}, {policy}"
    return Variant(name + (", plain PyTorch" if impl == "reference" else ""), "msg", {"k": k, "mode": mode, **how})


def sweep(space: str) -> list[Variant]:
    """K, from 1 to all candidates of an edge, against policy."""
    ks = doubled_to(space_named(space).candidates_per_edge())
    return [sampled(k, policy) for policy in SWEPT for k in ks]


def of_methods(methods: Sequence[str], own: Sequence[Variant]) -> Iterator[Variant]:
    """Every method as published, DARTS first, then in the engine; of msg the `own` variants."""
    others = sorted((method for method in methods if method != "msg"), key=lambda method: method != "darts")
    yield from map(published, others)
    yield from (in_engine(method) for method in others if method_named(method).fixed.get("policy") != "autograd")
    if "msg" in methods:
        yield from own
