"""Run folders as a search and a training write them, made without one: believable curves from a seeded generator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from msgdas.engine.run.rundir import METRICS, RunFolder
from msgdas.engine.settings import schedule
from msgdas.engine.settings.config import SearchConfig, resolved_teacher
from msgdas.engine.settings.recipes import demo
from msgdas.engine.settings.train_config import RECIPES
from msgdas.engine.spaces.derive import derive, probabilities, skip_count
from msgdas.engine.spaces.genotype_text import published
from msgdas.engine.spaces.space import space_named

CELL = json.dumps(published()["DARTS_V2"])
ENVIRONMENT = {
    "msgdas": "0.1.0",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "python": "3.11.2",
    "platform": "Linux-6.1-x86_64",
    "packages": {"torch": "2.14.1", "triton": None},
    "cpu": {"model": "A processor", "cores": 2, "memory_bytes": 8 << 30},
    "gpus": [],
    "no_gpu_because": "no NVML library",
    "affinity": 2,
    "arguments": ["msgdas", "search", "demo", "--epochs", "30"],
    "started_utc": "2026-11-24T10:00:00+00:00",
}


def rows(config: SearchConfig, steps_per_epoch: int = 16, epochs: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of metrics.jsonl for the first `epochs` epochs (all by default), in the order of a search."""
    random = np.random.default_rng(config.seed)
    space = space_named(config.space)
    alpha = {spec.kind: 1e-3 * random.standard_normal((len(spec.edges), space.num_operations)) for spec in space.cells}
    drift = {kind: random.standard_normal(logits.shape) for kind, logits in alpha.items()}
    teacher = resolved_teacher(config)
    rss_bytes, step = 7.4e8, 0
    for epoch in range(config.epochs if epochs is None else epochs):
        trains, used = schedule.alpha_trains(config, epoch), False
        for position in range(steps_per_epoch):
            step += 1
            done = step / (steps_per_epoch * config.epochs)
            loss = 0.55 + 1.75 * np.exp(-4 * done) + 0.12 * random.standard_normal()
            used = teacher != "none" and schedule.guidance_active(config, epoch)
            rss_bytes = min(rss_bytes + 4e5, 9e8)
            if position == 0:
                phases = (("weight", 4.30e7),) if not trains else (("alpha", 3.71e7), ("weight", 4.30e7))
                for phase, size in phases:
                    peak = int(size * (1 + 0.04 * random.random()))
                    yield {
                        "kind": "memory", "epoch": epoch, "step": step, "phase": phase, "peak_bytes": peak,
                        "source": "storage tracker",
                    }  # fmt: skip
            step_s = (0.19 + 0.21 * trains) * (1 + 0.1 * random.random()) + 0.9 * (step == 1)
            yield {
                "kind": "step", "epoch": epoch, "step": step, "loss": loss,
                "distill": 0.2 * np.exp(-2 * done) * (1 + 0.2 * random.random()) if used else None,
                "accuracy": float(np.clip(1 - loss / 2.5 + 0.05 * random.standard_normal(), 0, 1)),
                "alpha_loss": loss + 0.1 + 0.1 * random.standard_normal() if trains else None,
                "grad_norm": 3 * random.random() + 1, "alpha_grad_norm": 0.01 * random.random() if trains else None,
                "lr": schedule.learning_rate(config, epoch), "tau": schedule.temperature(config, epoch),
                "drop_rate": schedule.drop_rate(config, epoch),
                "time": {
                    "step_s": step_s, "samples_per_s": config.batch * (1 + trains) / step_s,
                    "rss_bytes": int(rss_bytes),
                },
            }  # fmt: skip
        if trains:
            for kind in alpha:
                alpha[kind] += 1.8 / config.epochs * (drift[kind] + 0.8 * random.standard_normal(alpha[kind].shape))
        logits = {kind: values.tolist() for kind, values in alpha.items()}
        genotype = derive(space, logits)
        done = (epoch + 1) / config.epochs
        yield {
            "kind": "epoch", "epoch": epoch, "step": step, "val_loss": 0.6 + 1.7 * np.exp(-4 * done),
            "val_accuracy": 0.82 - 0.62 * np.exp(-4 * done) + 0.02 * random.standard_normal(), "teacher": teacher,
            "teacher_used": used, "teacher_loss": 0.5 + 1.7 * np.exp(-4 * done) if used else None,
            "student_loss": 0.6 + 1.7 * np.exp(-4 * done) if used else None, "skips": skip_count(genotype),
            "alpha": probabilities(space, logits), "genotype": genotype.to_json_dict(), "time": {"eval_s": 1.2},
        }  # fmt: skip


def write_run(path: Path, config: SearchConfig, steps_per_epoch: int = 16, epochs: int | None = None) -> Path:
    """A run folder after `epochs` epochs; genotype.json is there only where these are all."""
    folder = RunFolder.create(path, config, ENVIRONMENT)
    written = list(rows(config, steps_per_epoch, epochs))
    (path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in written))
    if epochs is None or epochs == config.epochs:
        folder.write_json("genotype.json", written[-1]["genotype"])
    return path


SIZES = {"batch": 32, "epochs": 6, "warmup": 2, "limit": 512, "lr": 0.05, "alpha_lr": 6e-3}


def small_demo(**overrides) -> SearchConfig:
    """A configuration of the tests' own: it does not change with the recipe's values."""
    mode = {} if "method" in overrides else {"mode": "subgraphs"}
    return demo(**{**SIZES, **mode, **overrides})


def training(path: Path, rate: float, epochs: int | None = None, **overrides: Any) -> Path:
    """A training's folder whose accuracy grows by `rate` an epoch, after `epochs` epochs (all by default)."""
    config = RECIPES["demo"](**{"genotype": CELL, "layers": 3, "epochs": 3, **overrides})
    RunFolder.create(path, config, ENVIRONMENT)
    written: list[dict[str, Any]] = [{"kind": "data", "step": 0, "classes": 10}]
    for epoch in range(config.epochs if epochs is None else epochs):
        step = 2 * epoch + 1
        written.append({"kind": "memory", "epoch": epoch, "step": step, "phase": "training", "peak_bytes": 5 << 20})
        for number in (step, step + 1):
            time = {"step_s": 0.5, "samples_per_s": 128.0, "rss_bytes": 1 << 29}
            written.append(
                {"kind": "step", "epoch": epoch, "step": number, "loss": 2 / number, "accuracy": 0.3, "lr": 0.1,
                 "drop_rate": 0.0, "grad_norm": 1.0, "time": time}
            )  # fmt: skip
        written.append(
            {"kind": "epoch", "epoch": epoch, "step": step + 1, "val_loss": 1.5, "val_accuracy": rate * (epoch + 1),
             "val_top5": 0.9, "best": rate * (epoch + 1), "time": {"eval_s": 1.0}}
        )  # fmt: skip
    (path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in written))
    return path


def cost_of(**changes: Any) -> dict[str, Any]:
    """What cost.json of such a training holds."""
    return {
        "network": {"channels": 8, "layers": 3, "image": 28, "classes": 10, "stem": "cifar"}, "params": 9000,
        "macs": 2_000_000, "flops": 4_000_000,
        "latency_ms": {"median": 12.345, "min": 12.0, "max": 13.5, "runs": 18}, "inference_batch": 1,
        "inference_peak_bytes": 3 << 20, "batch": 64, "micro_batches": 2, "training_peak_bytes": 57 << 20,
        "auxiliary": False, "device": "A processor", "threads": 1, "dtype": "float32", "layout": "channels_last",
        "clock": "process time", "peak_source": "storage tracker",
    } | changes  # fmt: skip
