"""The configuration of a search: one flat, frozen dataclass, checked when it is built.

Each field carries its help text and, where it exists, its source. Sources: "spec" figures are those of
DARTS, GDAS or P-DARTS as named; "ours" is a choice of this project, since the body of arXiv 2107.04324
cannot be read here.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..errors import ConfigError
from ..spaces.space import SPACES, search_skeleton, space_named
from .checks import check_combinations, check_policies, check_ranges, check_schedule
from .inputs import check_inputs
from .keys import KeySet, key
from .method import METHODS, method_named

MAX_TOML_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """Everything that decides the result of a search. Two equal configurations give equal results."""

    command: ClassVar[str] = "search"

    recipe: str = key("custom", "name of the recipe this started from", flag=False)

    space: str = key("darts", f"search space: {', '.join(SPACES)}; docs/spaces.md")
    stem: Literal["cifar", "imagenet"] = key("cifar", "cifar keeps the image's side, imagenet divides it by 8")
    channels: int = key(16, "channels C of a node in the first cell (DARTS: 16)")
    layers: int = key(8, "number of searched cells (DARTS: 8)")

    data: str = key(
        "fashion-mnist-mini",
        "fashion-mnist-mini (embedded), fashion-mnist, cifar10, cifar100, jpeg-npz:FILE; imagefolder:, webdataset:, "
        "tfrecord: or recordio: and a path",
    )
    data_root: str = key("data", "folder that holds the data sets, laid out as torchvision does", flag=False)
    download: bool = key(False, "let torchvision download the data set into data_root")
    image: int = key(32, "side of the square input in pixels", flag=True)
    data_list: str = key(
        "", "file list of the training images of imagefolder:DIR, as `msgdas data check` writes it", flag=False
    )
    num_classes: int = key(
        0, "classes of the data set that are used, drawn by seed (FBNet: 100); 0 for all", flag=False
    )
    w_fraction: float = key(0.0, "of each class, for the weights (PC-DARTS' ImageNet: 0.1); 0 for half", flag=False)
    alpha_fraction: float = key(0.0, "of each class, for alpha (PC-DARTS' ImageNet: 0.025); 0 for half", flag=False)
    limit: int = key(0, "images used in each of the W and alpha halves, 0 for all of them")
    augment: bool = key(True, "random crop with padding and flip (DARTS)", flag=False)
    crop: Literal["auto", "pad", "resized"] = key(
        "auto",
        "training images: shifted by up to four pixels (DARTS' CIFAR), or random-resized crops (ImageNet); auto is "
        "resized for encoded images of side 64 or more (ours)",
        flag=False,
    )
    jitter: str = key("", "colours of resized crops: strengths of brightness,contrast,saturation,hue", flag=False)
    cutout: int = key(0, "side of the cutout square in pixels (DARTS' search: off)", flag=False)

    method: str = key("msg", f"one of {', '.join(METHODS)}; docs/methods.md has their formulas and sources")
    k: int = key(2, "K, operations sampled per edge, 1 to the number of operations (ours)")
    k_schedule: str = key(
        "",
        "K of equal shares of the epochs: grow (1, 2, 4 to k), shrink, or a list as 4,2,1 whose largest is k (ours)",
        flag=False,
    )
    mode: Literal["subgraphs", "union"] = key(
        "subgraphs", "K exclusive single-path networks, or one network that keeps K operations per edge"
    )
    execution: Literal["sequential", "co-resident"] = key(
        "sequential", "sub-graphs one after the other (memory of one), or together (ours)", flag=False
    )
    assign: Literal["rank", "shuffle"] = key(
        "rank",
        "sub-graph k takes each edge's k-th ranked operation, or a random one of the K (ours)",
        flag=False,
    )
    noise: Literal["gumbel", "dirichlet", "off"] = key(
        "gumbel", "of the draws: Gumbel on the logits, gates from a Dirichlet distribution (DrNAS), or none", flag=False
    )
    relaxation: Literal["masked", "shared", "soft", "plain", "sigmoid"] = key(
        "masked",
        "softmax without the ranks already taken, over all, Xie and Ermon's soft top-k, softmax of alpha alone "
        "(ProxylessNAS), or its sigmoid (FairDARTS)",
        flag=False,
    )
    gate: Literal["sampled", "recompute", "restricted", "score"] = key(
        "sampled",
        "estimator of alpha's gradient: sampled paths, all paths by recompute, restricted softmax, score",
        flag=False,
    )
    forward: Literal["mixed", "one"] = key(
        "mixed",
        "union of a step on alpha: the sum of its K operations, or one of them drawn by its share (ProxylessNAS two)",
        flag=False,
    )
    k_weights: int = key(0, "operations per edge of a step on the weights, 0 for as many as alpha's", flag=False)
    mode_weights: Literal["same", "subgraphs", "union"] = key(
        "same", "mode of a step on the weights, where it is not that of alpha's", flag=False
    )
    others_weights: Literal["ranked", "uniform"] = key(
        "ranked",
        "ranks below the first in a step on the weights: by their scores, or uniform over the rest (TF-NAS)",
        flag=False,
    )
    edges_per_node: int = key(
        0, "incoming edges of a node that a draw keeps, uniform (random search: 2), 0 for all", flag=False
    )
    with_none: bool = key(True, "whether none is a candidate (FairDARTS, DrNAS: not)", flag=False)
    none_weights: bool = key(
        True, "whether steps on the weights draw none, which has no weights to learn (ours)", flag=False
    )
    keep_ops: str = key(
        "",
        "operations an edge keeps after each share of the epochs, as 5,3 (P-DARTS); empty: all",
        flag=False,
    )
    partial: int = key(
        1, "an edge's operations see 1 / partial of its channels, the others pass (PC-DARTS: 4); 1 for all", flag=False
    )
    edge_norm: bool = key(False, "a learned weight per edge, softmax over a node's edges (PC-DARTS)", flag=False)
    alpha_scale: float = key(1e-3, "of alpha's first values, normal (DARTS: 1e-3, FairDARTS: 0)", flag=False)
    zero_one: float = key(0.0, "weight of FairDARTS' zero-one loss on alpha (theirs: 10)", flag=False)
    alpha_kl: float = key(0.0, "weight of DrNAS' KL divergence from uniform on alpha (theirs: 1e-3 or 0)", flag=False)
    alpha_every: int = key(1, "W steps to a step on alpha (ProxylessNAS: 5)", flag=False)
    alpha_half: Literal["alpha", "w"] = key(
        "alpha", "images of the steps on alpha: a half of their own, or the W step's batch (SNAS)", flag=False
    )
    reward: Literal["mean", "contrast", "leave-one-out"] = key(
        "mean",
        "what the score estimator lowers: the sub-graphs' mean loss, the first one's less that of the others "
        "(ours), or each one's less that of the others (Kool et al. 2019)",
        flag=False,
    )
    tau_max: float = key(10.0, "temperature of the first epoch (GDAS: 10)", flag=False)
    tau_min: float = key(0.1, "temperature of the last epoch, linear between (GDAS: 0.1)", flag=False)

    dbi: Literal["dropblock", "dropout", "off"] = key(
        "dropblock", "Dropblock-Identity on stride-1 skip-connects: blocks, single values, or off"
    )
    dbi_rate: float = key(0.3, "first epoch's drop rate, linear to dbi_last (ours; P-DARTS: 0.1 to 0.7)", flag=False)
    dbi_last: float = key(0.0, "drop rate that the last epoch would be followed by (ours)", flag=False)
    teacher: Literal["auto", "none", "supernet", "ensemble", "ema"] = key(
        "auto", "super-net guidance; auto is ensemble for two or more sub-graphs, else none (ours)"
    )
    teacher_weight: float = key(0.5, "lambda, the share of the distillation loss (ours)", flag=False)
    teacher_temperature: float = key(1.0, "T of the distillation (US-Nets: 1)", flag=False)
    teacher_start: float = key(0.2, "share of the epochs before guidance begins (ours; Cream: 20 of 120)", flag=False)
    teacher_decay: float = key(0.999, "decay of the EMA teacher's weights (ours)", flag=False)

    epochs: int = key(50, "epochs over the W half (DARTS: 50)")
    warmup: int = key(15, "epochs without alpha steps (PC-DARTS: 15 of 50)")
    batch: int = key(64, "images per step, W and alpha each (DARTS: 64)")
    accumulate: int = key(
        1, "micro-batches that a step's batch is cut into; each has BatchNorm statistics of its own", flag=False
    )
    lr: float = key(0.025, "SGD's first learning rate, cosine to lr_min (DARTS: 0.025)", flag=False)
    lr_min: float = key(0.001, "SGD's last learning rate (DARTS: 0.001)", flag=False)
    lr_warmup: int = key(
        0,
        "first epochs, in which the learning rate rises to that of its schedule (PC-DARTS on ImageNet: 5)",
        flag=False,
    )
    momentum: float = key(0.9, "SGD's momentum (DARTS: 0.9)", flag=False)
    nesterov: bool = key(False, "SGD's momentum after Nesterov (ProxylessNAS, NAS-Bench-201: true)", flag=False)
    weight_decay: float = key(3e-4, "SGD's weight decay, on the weights that got a gradient (DARTS: 3e-4)", flag=False)
    clip: float = key(5.0, "largest norm of the weights' gradient (DARTS: 5)", flag=False)
    label_smoothing: float = key(0.0, "of the cross-entropy of a step on the weights (ProxylessNAS: 0.1)", flag=False)
    alpha_lr: float = key(3e-4, "Adam's learning rate on alpha (DARTS: 3e-4)", flag=False)
    alpha_beta1: float = key(0.5, "Adam's first beta on alpha (DARTS: 0.5, ProxylessNAS: 0)", flag=False)
    alpha_weight_decay: float = key(1e-3, "Adam's weight decay on alpha (DARTS: 1e-3)", flag=False)

    max_macs: str = key("", "most multiply-accumulates of the derived network, as 600M; it is never above them")
    max_params: str = key("", "most parameters of the derived network, as 5M", flag=False)
    target_latency: str = key("", "longest latency of the derived network by device_table, as 80ms")
    device_table: str = key("", "file of msgdas latency, for target_latency and cost = latency", flag=False)
    cost: Literal["none", "params", "macs", "latency"] = key(
        "none", "expected cost of the derived network that the loss on alpha has a term for", flag=False
    )
    cost_form: Literal["add", "proxyless", "fbnet"] = key(
        "add", "cross-entropy plus the cost (RAPDARTS), or times a power of its logarithm, theirs", flag=False
    )
    cost_weight: float = key(0.1, "of the cost, lambda or a (ProxylessNAS: 0.1 and 0.2, FBNet: 0.2)", flag=False)
    cost_power: float = key(0.6, "b, power of the logarithm (ProxylessNAS: 0.3, FBNet: 0.6)", flag=False)
    cost_target: str = key("", "reference cost; else the limit on it, else that of equal probabilities", flag=False)
    cost_ramp: float = key(0.0, "share of the epochs with alpha over which the term grows from 0 (ours)", flag=False)
    target_channels: int = key(
        0, "C of the network that the cells are for, whose cost counts, 0 for the usual (docs/resources.md)", flag=False
    )
    target_layers: int = key(0, "cells of that network, 0 for the usual", flag=False)
    target_image: int = key(0, "side of its image in pixels, 0 for the usual", flag=False)
    target_classes: int = key(0, "its classes, 0 for those of the data", flag=False)

    policy: str = key("min", "kept activations: all, bn, nodes or min; one, or one per cell joined by commas")
    budget: str = key(
        "", "memory that the search may take: 10GiB, 80% of the device, or auto for all that is free", flag=False
    )
    layout: Literal["nhwc", "nchw"] = key("nhwc", "layout of the plain-autograd path", flag=False)
    device: str = key("auto", "auto, cpu or cuda")
    impl: Literal["auto", "triton", "native", "reference"] = key(
        "auto", "what computes the cells: Triton kernels, C++ on the CPU, plain PyTorch, or the quickest there is"
    )
    graph: bool = key(True, "run a step as one CUDA graph, where Triton kernels compute the cells", flag=False)
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = key(
        "float32",
        "of the maps; weights and statistics of 16-bit maps are float32, losses of float16 are scaled",
        flag=False,
    )
    scale_skips: int = key(
        16, "steps in a row that float16 may skip, not finite, before the search ends (ours)", flag=False
    )
    threads: int = key(0, "CPU threads of each process, 0 for all cores, shared out", flag=False)
    dist_timeout_s: int = key(
        600, "seconds that a process of several waits for another, evaluation and saving included", flag=False
    )

    loader: Literal["auto", "memory", "torch", "dali"] = key(
        "auto", "what decodes resized crops: DALI where it is installed, or libjpeg-turbo and PyTorch", flag=False
    )
    workers: int = key(0, "threads that read and decode images, 0 for one per core", flag=False)
    prefetch: int = key(2, "batches of each half that are made ahead", flag=False)

    seed: int = key(0, "of weights, samples, split, order and augmentation")
    order: int = key(1, "of alpha's gradient: 2 looks one W step ahead (DARTS)", flag=False)
    choose: Literal["alpha", "supernet"] = key(
        "alpha",
        "what the result is: alpha's, or the best of random cells by the super-net; alpha rests then",
        flag=False,
    )
    candidates: int = key(1000, "random cells that choose = supernet compares (Li and Talwalkar: 1000)", flag=False)
    checkpoint_every: int = key(0, "steps between checkpoints, 0 for one per epoch", flag=False)
    keep: int = key(2, "checkpoints kept in the run folder", flag=False)
    eval_images: int = key(0, "images of the alpha half on which an epoch is judged, 0 for all", flag=False)

    def __post_init__(self) -> None:
        check(self)

    @property
    def policies(self) -> tuple[str, ...]:
        """The activation policy of each cell."""
        given = tuple(part.strip() for part in self.policy.split(","))
        return given * self.layers if len(given) == 1 else given

    @property
    def k_stages(self) -> tuple[int, ...]:
        """K of each of the equal shares of the epochs; one share where there is no schedule.

        Raises:
            ConfigError: for a schedule that is neither a name nor a list of numbers.
        """
        return stages_of(self.k, self.k_schedule)

    @property
    def kept_stages(self) -> tuple[int, ...]:
        """Operations that every edge keeps in each of the equal shares of the epochs after the first.

        Raises:
            ConfigError: for a list that is none.
        """
        return listed("keep_ops", self.keep_ops) if self.keep_ops else ()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)


KEYS = KeySet(SearchConfig, "search")
FIELDS, TYPES, choices, parse_value = KEYS.fields, KEYS.types, KEYS.choices, KEYS.parse


def doubled_to(k: int) -> tuple[int, ...]:
    """1, 2, 4 and so on below k, and k itself."""
    return (*(1 << n for n in range(k.bit_length()) if 1 << n < k), k)


def stages_of(k: int, schedule: str) -> tuple[int, ...]:
    """What `k_stages` is for a largest K and a `k_schedule`. Raises ConfigError as that does."""
    if schedule == "":
        return (k,)
    if schedule in ("grow", "shrink"):
        return doubled_to(k) if schedule == "grow" else doubled_to(k)[::-1]
    return listed("k_schedule", schedule)


def listed(name: str, text: str) -> tuple[int, ...]:
    """The numbers in a list as 1,2,4, the value of key `name`. Raises ConfigError where it is none."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ConfigError(
            f"unreadable {name}", got=repr(text), next=f"--set {name}=4,2,1",
            allowed="grow, shrink, or a list as 4,2,1" if name == "k_schedule" else "a list as 4,2,1",
        )  # fmt: skip
    return tuple(int(part) for part in parts)


def check(config: SearchConfig) -> None:
    """Raise ConfigError for the first value that no search can run with, ProfileError for an unreadable budget."""
    space = space_named(config.space)
    method_named(config.method)
    KEYS.check_choices(config)
    if not 1 <= config.k <= space.candidates_per_edge():
        raise ConfigError(
            f"k operations are sampled of the {space.candidates_per_edge()} that an edge of space {space.name} has",
            got=config.k,
            allowed=f"1 to {space.candidates_per_edge()}",
            next="--k 2",
        )
    check_schedule(config)
    skeleton = search_skeleton(space, channels=config.channels, layers=config.layers, stem=config.stem)
    if config.image < skeleton.stride or config.image % skeleton.stride:
        raise ConfigError(
            "the network divides the image's side",
            got=f"image {config.image}",
            allowed=f"a multiple of {skeleton.stride}",
            next=f"--image {max(1, round(config.image / skeleton.stride)) * skeleton.stride}",
        )
    check_ranges(config)
    check_policies(config)
    check_combinations(config)
    check_inputs(config)


def resolved_teacher(config: SearchConfig) -> str:
    """The teacher that `auto` stands for."""
    if config.teacher != "auto":
        return config.teacher
    return "ensemble" if config.mode == "subgraphs" and config.k >= 2 else "none"


def build(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> SearchConfig:
    """A checked configuration out of a recipe's values, the user's over them, and the method's own.

    Raises:
        ConfigError: for an unknown key, a wrong type, or a key that the method fixes otherwise.
    """
    for name, value in overrides.items():
        KEYS.check_type(name, value)
    values = {**base, **overrides}
    method = method_named(values.get("method", "msg"))
    space = space_named(values.get("space", "darts"))
    for name, value in method.settings(space, values.get("with_none", True)).items():
        if name in overrides and overrides[name] != value:
            raise ConfigError(
                f"method {method.name} fixes {name}",
                got=f"{name} = {overrides[name]}",
                allowed=str(value),
                next=f"leave out {name}, or --method msg",
            )
        values[name] = value
    if space.chain is not None and "layers" not in overrides:
        values["layers"] = len(space.chain.layers)
    scheduled = values.get("k_schedule", "")
    if scheduled not in ("", "grow", "shrink") and "k" not in {**overrides, **method.fixed}:
        values["k"] = max(listed("k_schedule", scheduled))
    return SearchConfig(**values)


def read_toml(path: Path) -> dict[str, Any]:
    """The keys of a TOML file, `recipe` among them.

    Raises:
        ConfigError: for a file that is missing, over 1 MiB, not UTF-8 or not TOML; keys and types are
            checked by `build`.
    """
    try:
        if path.stat().st_size > MAX_TOML_BYTES:
            raise ConfigError(f"{path} is too large for a configuration", got=f"{path.stat().st_size} bytes",
                              allowed=f"{MAX_TOML_BYTES} bytes", next="msgdas search demo")  # fmt: skip
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}",
            got=error.strerror,
            allowed="a TOML file",
            next="msgdas search demo",
        ) from None
    # tomllib has an error of its own, and Python's for numbers and brackets without end.
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not TOML", got=str(error), allowed="key = value lines", next="mend that line"
        ) from None


def from_json(text: str) -> SearchConfig:
    """The configuration that `SearchConfig.to_json` wrote."""
    return build({}, json.loads(text))
