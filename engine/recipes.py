"""Recipes: functions that return a full configuration; keywords override single keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .config import SearchConfig, build
from .errors import ConfigError


def demo(**overrides: Any) -> SearchConfig:
    """A small DARTS-cell search on the embedded Fashion-MNIST subset, some two minutes on two cores (ours).

    Mode `union` rather than `subgraphs`: one pass per step instead of K learns more in the same minutes.
    """
    base = {
        "recipe": "demo",
        "mode": "union",
        "channels": 8,
        "layers": 5,
        "image": 28,
        "batch": 64,
        "epochs": 10,
        "warmup": 2,
        "limit": 1280,
        "eval_images": 512,
        "lr": 0.1,
        "alpha_lr": 2e-2,
    }
    return build(base, overrides)


def cifar10_darts(**overrides: Any) -> SearchConfig:
    """DARTS' CIFAR-10 search protocol (50 epochs, C=16, 8 cells, batch 64) with PC-DARTS' warm-up of 15."""
    return build({"recipe": "cifar10-darts", "data": "cifar10"}, overrides)


def cifar10_nasbench201(**overrides: Any) -> SearchConfig:
    """NAS-Bench-201's search skeleton (C=16, five cells per stage) on CIFAR-10; weight decay as its search configs."""
    base = {
        "recipe": "cifar10-nasbench201",
        "data": "cifar10",
        "space": "nasbench201",
        "layers": 15,
        "weight_decay": 5e-4,
        "epochs": 250,
        "warmup": 0,
    }
    return build(base, overrides)


def imagenet_darts(**overrides: Any) -> SearchConfig:
    """PC-DARTS' search on ImageNet: 10 % and 2.5 % of each class, 224 px, batch 1024, alpha from epoch 35 of 50.

    As its train_search_imagenet.py (yuhuixu1993/PC-DARTS b74702f), without its five epochs of a rising learning rate;
    `--method pc-darts` has its partial channels and edge weights.
    """
    base = {
        "recipe": "imagenet-darts",
        "data": "imagefolder:data/imagenet",
        "w_fraction": 0.1,
        "alpha_fraction": 0.025,
        "crop": "resized",
        "stem": "imagenet",
        "image": 224,
        "epochs": 50,
        "warmup": 35,
        "batch": 1024,
        "lr": 0.5,
        "lr_min": 0.0,
        "alpha_lr": 6e-3,
    }
    return build(base, overrides)


RECIPES: dict[str, Callable[..., SearchConfig]] = {
    "demo": demo,
    "cifar10-darts": cifar10_darts,
    "cifar10-nasbench201": cifar10_nasbench201,
    "imagenet-darts": imagenet_darts,
}


def recipe_named(name: str) -> Callable[..., SearchConfig]:
    """The recipe of that name; ConfigError lists the names there are."""
    if name not in RECIPES:
        raise ConfigError("unknown recipe", got=repr(name), allowed=", ".join(RECIPES), next="msgdas search demo")
    return RECIPES[name]
