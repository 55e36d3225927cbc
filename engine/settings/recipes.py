"""Recipes: functions that return a full configuration; keywords override single keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from .config import SearchConfig, build


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

    As its train_search_imagenet.py (yuhuixu1993/PC-DARTS b74702f); `--method pc-darts` has its partial channels and
    edge weights. Its learning rate rises for five epochs where the batch is above 256; here always.
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
        "lr_warmup": 5,
        "alpha_lr": 6e-3,
    }
    return build(base, overrides)


def imagenet_mobile(**overrides: Any) -> SearchConfig:
    """ProxylessNAS' search of its mobile chain: 40 epochs on the weights alone, then 120 with alpha every fifth step.

    As its search/imagenet_arch_search.py (mit-han-lab/proxylessnas), 5 % of each class for alpha where it has 50 000
    images. There the warm-up has a cosine of its own; here one spans all 160 epochs.
    """
    base = {
        "recipe": "imagenet-mobile",
        "space": "imagenet-mobile",
        "data": "imagefolder:data/imagenet",
        "w_fraction": 0.95,
        "alpha_fraction": 0.05,
        "crop": "resized",
        "jitter": "0.1255,0,0.5,0",
        "stem": "imagenet",
        "channels": 32,
        "image": 224,
        "epochs": 160,
        "warmup": 40,
        "alpha_every": 5,
        "batch": 256,
        "lr": 0.025,
        "lr_min": 0.0,
        "nesterov": True,
        "weight_decay": 4e-5,
        "label_smoothing": 0.1,
        "alpha_lr": 1e-3,
        "alpha_beta1": 0.0,
        "alpha_weight_decay": 0.0,
    }
    return build(base, overrides)


def imagenet_fbnet(**overrides: Any) -> SearchConfig:
    """FBNet's search: 100 classes, 80 % of the images for the weights, 90 epochs, alpha from the eleventh on.

    Batch 192, SGD at 0.1 and Adam at 0.01 as Wu et al. (2019); they lower tau from 5 by 4.4 % in an epoch, here it
    falls in a straight line to where that ends.
    """
    base = {
        "recipe": "imagenet-fbnet",
        "space": "imagenet-fbnet",
        "data": "imagefolder:data/imagenet",
        "num_classes": 100,
        "w_fraction": 0.8,
        "alpha_fraction": 0.2,
        "crop": "resized",
        "stem": "imagenet",
        "channels": 16,
        "image": 224,
        "epochs": 90,
        "warmup": 10,
        "batch": 192,
        "lr": 0.1,
        "lr_min": 0.0,
        "weight_decay": 1e-4,
        "alpha_lr": 1e-2,
        "alpha_weight_decay": 5e-4,
        "tau_max": 5.0,
        "tau_min": 0.14,
    }
    return build(base, overrides)


RECIPES: dict[str, Callable[..., SearchConfig]] = {
    "demo": demo,
    "cifar10-darts": cifar10_darts,
    "cifar10-nasbench201": cifar10_nasbench201,
    "imagenet-darts": imagenet_darts,
    "imagenet-mobile": imagenet_mobile,
    "imagenet-fbnet": imagenet_fbnet,
}


def recipe_named(name: str) -> Callable[..., SearchConfig]:
    """The recipe of that name; ConfigError lists the names there are."""
    if name not in RECIPES:
        raise ConfigError("unknown recipe", got=repr(name), allowed=", ".join(RECIPES), next="msgdas search demo")
    return RECIPES[name]
