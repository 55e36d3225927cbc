"""Which values a search can run with: ranges, policies and combinations of a configuration's keys."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ...profiles.budget import parse as parse_budget
from ..errors import ConfigError
from ..spaces.quantities import LIMITS, parse_quantity
from ..spaces.space import space_named

if TYPE_CHECKING:
    from .config import SearchConfig

POLICIES = ("all", "bn", "nodes", "min")


def check_schedule(config: SearchConfig) -> None:
    """Of K. Raises ConfigError."""
    stages = config.k_stages
    if max(stages) != config.k:
        raise ConfigError(
            "k is the largest of k_schedule", got=f"k {config.k}, k_schedule {config.k_schedule}",
            allowed=f"k {max(stages)}", next=f"--k {max(stages)}",
        )  # fmt: skip
    _check_kept(config)
    if len(stages) > config.epochs:
        raise ConfigError(
            "every K of k_schedule has an epoch at least", got=f"{len(stages)} values, {config.epochs} epochs",
            allowed=f"{config.epochs} values or fewer", next=f"--epochs {len(stages)}",
        )  # fmt: skip


def _check_kept(config: SearchConfig) -> None:
    kept = config.kept_stages
    candidates = space_named(config.space).candidates_per_edge(with_none=config.with_none)
    falling = all(after < before for before, after in zip((candidates, *kept), kept, strict=False))
    if not falling or len(kept) >= config.epochs:
        raise ConfigError(
            "keep_ops falls from stage to stage, and every stage has an epoch at least",
            got=f"keep_ops {config.keep_ops}, {candidates} operations, {config.epochs} epochs",
            allowed=f"falling numbers below {candidates}, fewer than the epochs", next="--set keep_ops=3",
        )  # fmt: skip


def check_ranges(config: SearchConfig) -> None:
    """Of numbers. Raises ConfigError."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    limits: dict[str, tuple[float, float]] = {
        "num_classes": (0, 1 << 20), "w_fraction": (0, 1), "alpha_fraction": (0, 1),
        "limit": (0, 1 << 31), "cutout": (0, config.image), "tau_min": (1e-3, 1e3), "tau_max": (config.tau_min, 1e3),
        "dbi_rate": (0, 0.9), "dbi_last": (0, 0.9), "teacher_weight": (0, 1), "teacher_temperature": (1e-2, 1e2),
        "teacher_start": (0, 1), "teacher_decay": (0, 1), "epochs": (1, 1 << 20), "warmup": (0, config.epochs),
        "batch": (2, 1 << 20),
        "accumulate": (1, config.batch), "k_weights": (0, config.k), "edges_per_node": (0, 1 << 10),
        "alpha_scale": (0, 1e3), "zero_one": (0, 1e6), "alpha_kl": (0, 1e6), "partial": (1, config.channels),
        "alpha_every": (1, 1 << 20), "order": (1, 2), "candidates": (1, 1 << 20),
        "lr": (0, 1e3), "lr_min": (0, 1e3), "lr_warmup": (0, 1 << 20), "momentum": (0, 1), "weight_decay": (0, 1),
        "label_smoothing": (0, 0.9), "alpha_beta1": (0, 0.999), "clip": (1e-6, 1e9),
        "alpha_lr": (0, 1e3), "alpha_weight_decay": (0, 1), "threads": (0, 4096), "workers": (0, 4096),
        "prefetch": (0, 64), "seed": (0, (1 << 63) - 1),
        "cost_weight": (0, 1e6), "cost_power": (0, 10), "cost_ramp": (0, 1),
        "target_channels": (0, 1 << 20), "target_layers": (0, 1 << 20), "target_image": (0, 1 << 20),
        "target_classes": (0, 1 << 31),
        "checkpoint_every": (0, 1 << 31), "keep": (1, 1 << 20), "eval_images": (0, 1 << 31),
        "dist_timeout_s": (1, 1 << 20), "scale_skips": (1, 1 << 20),
    }  # fmt: skip
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise ConfigError(
                f"{name} is out of range",
                got=value,
                allowed=f"{low} to {high}",
                next=f"{name} = {min(max(value, low), high) if value == value else defaults[name]}",
            )


def check_policies(config: SearchConfig) -> None:
    """Of activations. Raises ConfigError."""
    if config.policy == "autograd":
        return
    unknown = [policy for policy in config.policies if policy not in POLICIES]
    if unknown:
        raise ConfigError(
            "unknown activation policy",
            got=unknown[0],
            allowed=", ".join((*POLICIES, "autograd")),
            next="--policy min",
        )
    if len(config.policies) != config.layers:
        raise ConfigError(
            "policy names one value or one per cell",
            got=f"{len(config.policies)} values",
            allowed=f"1 or {config.layers}",
            next="--policy min",
        )


def check_combinations(config: SearchConfig) -> None:
    """Of keys that depend on each other. Raises ConfigError."""
    if config.budget:
        parse_budget(config.budget)
    for name, resource in LIMITS.items():
        if getattr(config, name):
            parse_quantity(name, resource, getattr(config, name))
    if config.cost_target and config.cost != "none":
        parse_quantity("cost_target", config.cost, config.cost_target)
    if config.cost != "none" and config.choose == "supernet":
        raise ConfigError(
            "alpha rests where the super-net chooses, and an expected cost moves alpha alone",
            got=f"cost {config.cost}, choose supernet", allowed="cost none, or a limit as max_macs",
            next="--max-macs 600M",
        )  # fmt: skip
    if (config.cost == "latency" or config.target_latency) and not config.device_table:
        raise ConfigError(
            "a latency needs a table that was measured", got="no device_table", allowed="a file of msgdas latency",
            next="msgdas latency --out FILE, then --set device_table=FILE",
        )  # fmt: skip
    if config.device not in ("auto", "cpu") and not config.device.startswith("cuda"):
        raise ConfigError("unknown device", got=config.device, allowed="auto, cpu, cuda, cuda:N", next="--device auto")
    if config.teacher == "ensemble" and (config.mode == "union" or config.k == 1):
        raise ConfigError(
            "the ensemble teacher averages two or more sub-graphs",
            got=f"mode {config.mode}, k {config.k}",
            allowed="mode subgraphs with k of 2 or more",
            next="--teacher supernet",
        )
    if config.gate == "recompute" and config.policy == "autograd":
        raise ConfigError(
            "recomputed gates need the cell engine",
            got="policy autograd",
            allowed=", ".join(POLICIES),
            next="--policy min",
        )
    if config.partial > 1 and config.channels % (2 * config.partial):
        raise ConfigError(
            "operations see 1 / partial of the channels, an even number",
            got=f"channels {config.channels}, partial {config.partial}", allowed=f"a multiple of {2 * config.partial}",
            next=f"--channels {2 * config.partial * max(1, round(config.channels / (2 * config.partial)))}",
        )  # fmt: skip
    if config.partial > 1 and space_named(config.space).chain is not None:
        raise ConfigError(
            "partial channels are for cells that keep their channels", got=f"space {config.space}",
            allowed="partial 1, or a space of cells", next="another --method, or --space darts",
        )  # fmt: skip
    if config.partial > 1 and config.policy != "autograd":
        raise ConfigError(
            "partial channels need the plain path", got=f"policy {config.policy}", allowed="policy autograd",
            next="--policy autograd",
        )  # fmt: skip
    if config.dtype in ("bfloat16", "float16") and config.policy == "autograd":
        raise ConfigError(
            "16-bit maps need the cell engine", got=f"dtype {config.dtype}, policy autograd",
            allowed=", ".join(POLICIES), next="--policy min",
        )  # fmt: skip
    if config.dtype == "float16" and config.order == 2:
        raise ConfigError(
            "the second order does not scale its losses", got="dtype float16, order 2", allowed="float32, bfloat16",
            next="--set dtype=bfloat16",
        )  # fmt: skip
    if config.layout == "nchw" and config.policy != "autograd":
        raise ConfigError(
            "the cell engine works in channels_last",
            got="layout nchw",
            allowed="nhwc, or policy autograd",
            next="--policy autograd",
        )
    check_data(config)
    check_estimator(config)


def check_data(config: SearchConfig) -> None:
    """Of the images' keys. Raises ConfigError."""
    w, alpha = config.w_fraction or 0.5, config.alpha_fraction or 0.5
    if w + alpha > 1:
        raise ConfigError(
            "the W and alpha parts share no image", got=f"{w:g} and {alpha:g} of each class (0 stands for 0.5)",
            allowed="1 or less together", next=f"--set w_fraction={1 - alpha:g}",
        )  # fmt: skip
    if config.num_classes == 1:
        raise ConfigError("one class cannot be told apart", got="num_classes 1", allowed="2 or more, 0 for all",
                          next="--set num_classes=2")  # fmt: skip
    if config.data_list and not config.data.startswith("imagefolder:"):
        raise ConfigError(
            "data_list lists images of a folder", got=f"data {config.data}", allowed="data imagefolder:DIR",
            next="--data imagefolder:DIR",
        )  # fmt: skip


def check_estimator(config: SearchConfig) -> None:
    """Of draws and gates. Raises ConfigError."""
    if config.reward != "mean" and (config.gate != "score" or config.mode != "subgraphs" or config.k < 2):
        raise ConfigError(
            f"reward {config.reward} compares several sub-graphs",
            got=f"gate {config.gate}, mode {config.mode}, k {config.k}",
            allowed="gate score, mode subgraphs, k of 2 or more",
            next="--set gate=score --set mode=subgraphs --k 2",
        )
    if config.edge_norm and config.gate == "score":
        raise ConfigError(
            "edge weights learn through the gates, and the score estimator has none", got="gate score",
            allowed="sampled, recompute, restricted", next="--set gate=sampled",
        )  # fmt: skip
    if config.forward == "one" and (config.mode != "union" or config.k == 1):
        raise ConfigError(
            "forward one draws one of two or more operations of a union", got=f"mode {config.mode}, k {config.k}",
            allowed="mode union with k of 2 or more", next="--mode union --k 2",
        )  # fmt: skip
    if config.order == 2 and config.nesterov:
        raise ConfigError(
            "the second order looks ahead by plain momentum (DARTS)", got="nesterov", allowed="nesterov false",
            next="--set nesterov=false",
        )  # fmt: skip
    if config.order == 2 and (config.noise != "off" or config.gate == "score" or config.forward == "one"):
        raise ConfigError(
            "the second order needs draws that do not change from pass to pass",
            got=f"noise {config.noise}, gate {config.gate}, forward {config.forward}",
            allowed="noise off, a gate with a gradient, forward mixed", next="--method darts2",
        )  # fmt: skip
    _check_widest(config)
    if config.edges_per_node and space_named(config.space).chain is not None:
        raise ConfigError(
            "a layer of a chain has one incoming edge", got=f"edges_per_node {config.edges_per_node}", allowed="0",
            next="--set edges_per_node=0",
        )  # fmt: skip
    if not config.none_weights:
        _check_without_none(config)
    if config.edges_per_node and config.k != 1:
        raise ConfigError("edges_per_node draws single paths", got=f"k {config.k}", allowed="k 1", next="--k 1")


def _check_without_none(config: SearchConfig) -> None:
    """Steps on the weights that leave `none` out have K operations per edge without it."""
    if config.keep_ops or config.edges_per_node:
        raise ConfigError(
            "steps on the weights leave none out of edges that keep their other operations",
            got=f"none_weights false, keep_ops {config.keep_ops or 'all'}, edges_per_node {config.edges_per_node}",
            allowed="keep_ops empty, edges_per_node 0", next="--set none_weights=true",
        )  # fmt: skip
    fewest, k = space_named(config.space).fewest_candidates(with_none=False), config.k_weights or config.k
    if k > fewest:
        raise ConfigError(
            f"some edges of space {config.space} have {fewest} candidates without none",
            got=f"none_weights false, {k} operations in a step on the weights", allowed=f"1 to {fewest}",
            next=f"--set k_weights={fewest}",
        )  # fmt: skip


def _check_widest(config: SearchConfig) -> None:
    """Where edges have unequally many candidates, more than the fewest only in the mixture of all of them."""
    if too_wide(config, config.k, config.mode):
        fewest = space_named(config.space).fewest_candidates(with_none=config.with_none)
        raise ConfigError(
            f"some edges of space {config.space} have {fewest} candidates",
            got=f"k {config.k}, mode {config.mode}, relaxation {config.relaxation}, gate {config.gate}",
            allowed=f"k 1 to {fewest}, or a union with relaxation shared, plain or sigmoid", next=f"--k {fewest}",
        )  # fmt: skip


def too_wide(config: SearchConfig, k: int, mode: str) -> bool:
    """Whether a mode cannot draw K operations on the edges with the fewest candidates; all else is `config`'s."""
    fewest = space_named(config.space).fewest_candidates(with_none=config.with_none)
    mixture = mode == "union" and config.gate != "score" and config.relaxation in ("shared", "plain", "sigmoid")
    apart = config.mode_weights == "subgraphs" and (config.k_weights or k) > fewest
    return k > fewest and (apart or not mixture)
