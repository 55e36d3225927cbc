"""The configuration of a training of a derived network, and its recipes; pure data.

Sources: quark0/darts (cnn/train.py, cnn/train_imagenet.py), yuhuixu1993/PC-DARTS (train_imagenet.py) and
D-X-Y/AutoDL-Projects as named; "ours" is a choice of this project.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from ...profiles.budget import parse
from ..errors import ConfigError, GenotypeError
from ..spaces.counting import count
from ..spaces.genotype import Genotype
from .inputs import check_inputs
from .keys import KeySet, key

# Epochs of PC-DARTS' linear decay that fall more slowly, and to which a fifth of the rate is left.
TAIL_EPOCHS = 5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything that decides the result of a training. Two equal configurations give equal results."""

    command: ClassVar[str] = "train"

    recipe: str = key("custom", "name of the recipe this started from", flag=False)
    genotype: str = key("", "the genotype as JSON", flag=False)
    space: str = key("", "space that the genotype must be of, empty for any", flag=False)

    channels: int = key(36, "channels C of the first cell (DARTS: 36, ImageNet 48)")
    layers: int = key(20, "number of cells (DARTS: 20, ImageNet 14)")
    stem: Literal["cifar", "imagenet"] = key("cifar", "cifar keeps the image's side, imagenet divides it by 8")

    data: str = key(
        "fashion-mnist-mini",
        "fashion-mnist-mini (embedded), fashion-mnist, cifar10, cifar100, imagefolder:DIR, jpeg-npz:FILE",
    )
    data_root: str = key("data", "folder that holds the data sets, laid out as torchvision does", flag=False)
    data_list: str = key("", "file list of the training images of imagefolder:DIR; empty: all", flag=False)
    num_classes: int = key(0, "classes of the data set that are used, drawn by seed; 0 for all", flag=False)
    download: bool = key(False, "let torchvision download the data set into data_root")
    image: int = key(32, "side of the square input in pixels")
    limit: int = key(0, "training images that are used, drawn by seed; 0 for all")
    eval_images: int = key(0, "test images on which an epoch is judged, 0 for all", flag=False)
    augment: bool = key(True, "random crop and flip", flag=False)
    crop: Literal["auto", "pad", "resized"] = key(
        "auto", "training images: shifted by some pixels (CIFAR), or random-resized crops; auto as in a search",
        flag=False,
    )  # fmt: skip
    jitter: str = key("", "colours of resized crops: strengths of brightness,contrast,saturation,hue", flag=False)
    cutout: int = key(16, "side of the cutout square in pixels, 0 for none (DARTS: 16)")

    epochs: int = key(600, "epochs (DARTS: 600, ImageNet 250)")
    warmup: int = key(0, "epochs in which the learning rate grows linearly (PC-DARTS' ImageNet: 5)")
    batch: int = key(96, "images per step (DARTS: 96)")
    accumulate: int = key(
        1, "micro-batches that a step's batch is cut into; each has BatchNorm statistics of its own", flag=False
    )
    budget: str = key("", "memory that a step may take, 10GiB or 80%: the fewest micro-batches that fit are taken")
    schedule: Literal["cosine", "linear", "exponential"] = key(
        "cosine", "to 0 by a half cosine (DARTS), linearly (PC-DARTS), or times lr_decay each epoch (DARTS' ImageNet)"
    )
    lr: float = key(0.025, "SGD's first learning rate (DARTS: 0.025)")
    lr_decay: float = key(0.97, "factor of an epoch where the schedule is exponential (DARTS: 0.97)", flag=False)
    momentum: float = key(0.9, "SGD's momentum (DARTS: 0.9)", flag=False)
    nesterov: bool = key(False, "Nesterov's momentum (NAS-Bench-201)", flag=False)
    weight_decay: float = key(3e-4, "SGD's weight decay (DARTS: 3e-4, ImageNet 3e-5)", flag=False)
    clip: float = key(5.0, "largest norm of the gradient, 0 for any (DARTS: 5)", flag=False)
    drop_path: float = key(0.2, "rate of drop-path in the last epoch, linear from 0 (DARTS: 0.2)")
    auxiliary: float = key(0.4, "weight of the auxiliary head's loss, 0 for no head (DARTS: 0.4)", flag=False)
    label_smoothing: float = key(0.0, "share of the label spread over all classes (DARTS' ImageNet: 0.1)", flag=False)
    ema: float = key(0.0, "decay of an average of the weights, which is then judged; 0 for none", flag=False)

    precision: Literal["float32", "bfloat16", "float16"] = key(
        "float32", "of products, by autocast; float16 needs CUDA and scales the loss"
    )
    layout: Literal["channels_last", "contiguous"] = key("channels_last", "memory format of the maps", flag=False)
    compile: bool = key(False, "torch.compile the network; needs CUDA", flag=False)
    device: str = key("auto", "auto, cpu or cuda")
    threads: int = key(0, "CPU threads, 0 for all cores", flag=False)
    loader: Literal["auto", "memory", "torch", "dali"] = key(
        "auto", "what decodes resized crops: DALI where it is installed, or libjpeg-turbo and PyTorch", flag=False
    )
    workers: int = key(0, "threads that read and decode images, 0 for one per core", flag=False)
    prefetch: int = key(2, "batches that are made ahead", flag=False)

    seed: int = key(0, "of weights, order, augmentation and drop-path")
    dist_timeout_s: int = key(600, "seconds that one of several processes waits for another", flag=False)
    checkpoint_every: int = key(0, "steps between checkpoints, 0 for one per epoch", flag=False)
    keep: int = key(2, "checkpoints kept in the run folder", flag=False)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def dtype(self) -> str:
        """Of images and weights."""
        return "float32"

    @property
    def cells(self) -> Genotype:
        """The genotype."""
        return Genotype.from_json_dict(json.loads(self.genotype))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)


KEYS = KeySet(TrainConfig, "train")
# Key: lowest value, highest value or None.
_RANGES: Mapping[str, tuple[float, float | None]] = {
    "limit": (0, None), "eval_images": (0, None), "cutout": (0, None), "epochs": (1, None), "warmup": (0, None),
    "batch": (2, None), "accumulate": (1, None), "lr": (0, None), "lr_decay": (0, 1), "momentum": (0, 1),
    "weight_decay": (0, None), "clip": (0, None), "drop_path": (0, 0.999), "auxiliary": (0, None),
    "label_smoothing": (0, 0.999), "ema": (0, 0.999999), "threads": (0, None), "checkpoint_every": (0, None),
    "keep": (1, None), "num_classes": (0, None), "workers": (0, None), "prefetch": (0, None),
    "dist_timeout_s": (1, None),
}  # fmt: skip


def _check(config: TrainConfig) -> None:
    KEYS.check_choices(config)
    for name, (low, high) in _RANGES.items():
        value = getattr(config, name)
        if not (math.isfinite(value) and low <= value and (high is None or value <= high)):
            raise ConfigError(
                f"{name} is out of range", got=value, allowed=f"{low} or more" if high is None else f"{low} to {high}",
                next=f"--set {name}={KEYS.fields[name].default}",
            )  # fmt: skip
    if config.batch % config.accumulate or config.batch // config.accumulate < 2:
        raise ConfigError(
            "accumulate cuts a batch into equal parts of two images or more",
            got=f"accumulate {config.accumulate} of batch {config.batch}", allowed=f"a divisor of {config.batch}",
            next="--set accumulate=1",
        )  # fmt: skip
    if config.budget:
        parse(config.budget)
    check_inputs(config)
    if config.device not in ("auto", "cpu") and not config.device.startswith("cuda"):
        raise ConfigError("unknown device", got=config.device, allowed="auto, cpu, cuda, cuda:N", next="--device auto")
    genotype = config.cells
    if config.space and genotype.space != config.space:
        right = "nasbench201" if genotype.space == "nasbench201" else "cifar"
        raise GenotypeError(
            f"recipe {config.recipe} trains cells of another space", got=f"space {genotype.space}",
            allowed=f"space {config.space}", next=f"msgdas train GENOTYPE {right}",
        )  # fmt: skip
    # Raises for sizes that the network cannot have.
    count(genotype, channels=config.channels, layers=config.layers, image=config.image, classes=2, stem=config.stem)


def build(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> TrainConfig:
    """A checked configuration out of a recipe's values and the user's over them. Raises ConfigError, GenotypeError."""
    for name, value in overrides.items():
        KEYS.check_type(name, value)
    return TrainConfig(**{**base, **overrides})


def from_json(text: str) -> TrainConfig:
    """The configuration that `TrainConfig.to_json` wrote.

    Raises:
        ConfigError: for one of another command or version.
    """
    values = json.loads(text)
    if isinstance(values, dict) and "genotype" not in values:
        raise ConfigError(
            "the run folder is not of a training", got="a search's configuration", allowed="a training's run folder",
            next="msgdas train RUN, or msgdas search --resume RUN",
        )  # fmt: skip
    return build({}, values)


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """SGD's learning rate in an epoch counted from 0.

    The linear schedule is PC-DARTS', whose last five epochs have a smaller slope; warm-up multiplies it by
    (epoch + 1) / warmup.
    """
    if config.schedule == "cosine":
        lr = 0.5 * config.lr * (1 + math.cos(math.pi * epoch / config.epochs))
    elif config.schedule == "exponential":
        lr = config.lr * config.lr_decay**epoch
    else:
        body, left = config.epochs - TAIL_EPOCHS, config.epochs - epoch
        if body <= 0:
            lr = config.lr * left / config.epochs
        elif left > TAIL_EPOCHS:
            lr = config.lr * (left - TAIL_EPOCHS) / body
        else:
            lr = config.lr * left / (body * TAIL_EPOCHS)
    return lr * (epoch + 1) / config.warmup if epoch < config.warmup else lr


def drop_path_rate(config: TrainConfig, epoch: int) -> float:
    """Rate of drop-path in an epoch counted from 0: drop_path * epoch / epochs (DARTS)."""
    return config.drop_path * epoch / config.epochs


# What each recipe sets; the other keys have their defaults.
_VALUES: Mapping[str, Mapping[str, Any]] = {
    "demo": {
        "recipe": "demo", "channels": 8, "layers": 6, "image": 28, "epochs": 4, "batch": 64, "limit": 2560,
        "eval_images": 1000, "cutout": 0, "drop_path": 0.0, "auxiliary": 0.0, "lr": 0.1,
    },
    "cifar": {"recipe": "cifar", "space": "darts", "data": "cifar10"},
    "imagenet": {
        "recipe": "imagenet", "space": "darts", "channels": 48, "layers": 14, "stem": "imagenet", "image": 224,
        "data": "imagefolder:imagenet", "epochs": 250, "batch": 1024, "lr": 0.5, "schedule": "linear", "warmup": 5,
        "weight_decay": 3e-5, "label_smoothing": 0.1, "jitter": "0.4,0.4,0.4,0.2", "drop_path": 0.0, "cutout": 0,
    },
    "nasbench201": {
        "recipe": "nasbench201", "space": "nasbench201", "data": "cifar10", "channels": 16, "layers": 15,
        "epochs": 200, "batch": 256, "lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "clip": 0.0, "cutout": 0,
        "drop_path": 0.0, "auxiliary": 0.0,
    },
}  # fmt: skip


def recipe_values(name: str) -> dict[str, Any]:
    """Every key's value in the recipe of that name, or in the demo where it is none."""
    return {key: field.default for key, field in KEYS.fields.items()} | dict(_VALUES.get(name, _VALUES["demo"]))


def demo(**overrides: Any) -> TrainConfig:
    """A small network of the cell on the embedded Fashion-MNIST subset, about half a minute on two cores (ours)."""
    return build(_VALUES["demo"], overrides)


def cifar(**overrides: Any) -> TrainConfig:
    """DARTS' CIFAR-10 protocol: C=36, 20 cells, 600 epochs, batch 96, cutout 16, drop-path 0.2, auxiliary 0.4."""
    return build(_VALUES["cifar"], overrides)


def imagenet(**overrides: Any) -> TrainConfig:
    """DARTS' ImageNet network with PC-DARTS' schedule: C=48, 14 cells, 250 epochs, batch 1024, lr 0.5 linear."""
    return build(_VALUES["imagenet"], overrides)


def nasbench201(**overrides: Any) -> TrainConfig:
    """NAS-Bench-201's protocol on CIFAR-10: C=16, 15 cells, 200 epochs, batch 256, Nesterov, lr 0.1, no extras."""
    return build(_VALUES["nasbench201"], overrides)


RECIPES: dict[str, Callable[..., TrainConfig]] = {
    "demo": demo, "cifar": cifar, "imagenet": imagenet, "nasbench201": nasbench201,
}  # fmt: skip


def recipe_named(name: str) -> Callable[..., TrainConfig]:
    """The recipe of that name; ConfigError lists the names there are."""
    if name not in RECIPES:
        raise ConfigError(
            "unknown recipe", got=repr(name), allowed=", ".join(RECIPES), next="msgdas train GENOTYPE demo"
        )
    return RECIPES[name]
