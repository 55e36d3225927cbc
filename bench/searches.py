"""Searches on NAS-Bench-201 at a size that a laptop manages, each judged by the table: one row per search.

A search is a run of the engine (`engine.searcher`), in a run folder of its own, from which it goes on where it was
stopped. How many steps a budget buys is found by timing the steps of all variants in turn on this machine, in CPU
seconds of the process, once for a folder of runs: start on a quiet machine, where others compute a step takes more CPU
seconds too, and the budget buys fewer steps (a row has them in `steps`). Sample-passes do not depend on that. Decoding
the images, the report and the judgement at the end are not in the budget; `cpu_s` of a row counts all of it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..engine.atomic import write_atomically
from ..engine.errors import ConfigError, InterruptedSearchError
from ..engine.images.batches import Batch, Batches, split_halves
from ..engine.images.data import load
from ..engine.learning.assembly import build_learner
from ..engine.learning.draws import Part, rule_of
from ..engine.learning.steps import Learner, Moment
from ..engine.run import checkpoint
from ..engine.run.result import SearchResult
from ..engine.run.rundir import RunFolder, read_metrics
from ..engine.search.evaluate import evaluate, genotype_paths
from ..engine.search.searcher import resume, search
from ..engine.settings.config import SearchConfig, build, from_json
from ..engine.settings.schedule import alpha_due
from ..engine.spaces.genotype import Genotype
from ..engine.spaces.space import NASBENCH201, space_named
from .nasbench import Found, Table
from .results import provenance
from .rows import without_paths
from .statistics import kendall_tau

CPU_FILE, RATES_FILE = "cpu.json", "rates.json"
TIMED_STEPS = 12


@dataclass(frozen=True, slots=True)
class Settings:
    """What all searches of a comparison share. Frozen before the seeds of an evaluation are drawn.

    Attributes:
        space: nasbench201, or nasbench201-conv-skip with three operations per edge.
        channels, layers, image, batch: the super-net and its input: three cells at C=8 on 16 x 16 pixels, which learn
            their images within minutes (ours, on development seeds; docs/quality.md tells what nine cells do).
        least_epochs: schedules need that many; the halves are cut to what the budget passes so often.
        eval_images: of the alpha half, on which an epoch and the super-net's ranking are judged.
        ranked_cells: random cells for Kendall's tau of the super-net.
        overrides: further keys of every search.
    """

    space: str = "nasbench201"
    channels: int = 8
    layers: int = 3
    image: int = 16
    batch: int = 32
    least_epochs: int = 12
    eval_images: int = 1000
    ranked_cells: int = 60
    overrides: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"lr": 0.1, "augment": False, "policy": "all", "weight_decay": 3e-4}
    )


@dataclass(frozen=True, slots=True)
class Variant:
    """A method with keys of its own.

    Attributes:
        name: in rows and tables.
        overrides: configuration keys; `method` among them.
        warmup_share: of the epochs, in which alpha rests.
        least_epochs: where it needs more of them than the settings say.
    """

    name: str
    overrides: Mapping[str, Any]
    warmup_share: float = 0.3
    least_epochs: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """CPU minutes, or sample-passes (one image through one network, forward and backward, in a W or an alpha step)."""

    minutes: float | None = None
    passes: int | None = None

    @property
    def label(self) -> str:
        return f"{self.minutes:g}min" if self.minutes is not None else f"{self.passes}passes"


@dataclass(frozen=True, slots=True)
class Rates:
    """CPU seconds of a step on alpha and of one on the weights."""

    alpha_s: float
    weight_s: float


def config_of(
    settings: Settings, variant: Variant, seed: int, data: str, steps: int, *, images_per_half: int
) -> SearchConfig:
    """A search of about that many steps: at least `least_epochs` epochs, over as many images as that leaves."""
    images = steps * settings.batch
    epochs = max(least_epochs(settings, variant), -(-images // images_per_half))
    limit = max(1, images // epochs // settings.batch) * settings.batch
    base = {
        "recipe": f"bench-{variant.name}", "space": settings.space, "data": data, "channels": settings.channels,
        "layers": settings.layers, "image": settings.image, "batch": settings.batch, "limit": limit,
        "epochs": epochs, "warmup": round(variant.warmup_share * epochs), "seed": seed, "device": "cpu", "threads": 1,
        "eval_images": min(settings.eval_images, limit), "keep": 1, **settings.overrides,
    }  # fmt: skip
    return build(base, variant.overrides)


def least_epochs(settings: Settings, variant: Variant) -> int:
    """Of a search of that variant."""
    return max(settings.least_epochs, variant.least_epochs)


def networks_of(config: SearchConfig, part: Part) -> int:
    """Networks that a step of that part runs: K sub-graphs, or the one of mode `union`."""
    rule = rule_of(config, part, config.k)
    return rule.k if rule.mode == "subgraphs" else 1


def rates_of(configs: Sequence[SearchConfig], images: torch.Tensor, labels: torch.Tensor, classes: int) -> list[Rates]:
    """Median CPU seconds of both steps of each, taken in turn, so that a busy moment hits all alike."""
    learners = [build_learner(config, torch.device("cpu"), classes)[0] for config in configs]
    taken: list[dict[str, list[float]]] = [{"alpha": [], "weight": []} for _ in configs]
    for step in range(TIMED_STEPS):
        for config, learner, times in zip(configs, learners, taken, strict=True):
            moment = Moment(step, config.tau_max, config.lr, config.dbi_rate, guided=True)
            for name, take in (("alpha", learner.alpha_step), ("weight", learner.weight_step)):
                begin = time.process_time()
                take(images, labels, moment)
                times[name].append(time.process_time() - begin)
    return [Rates(float(np.median(times["alpha"])), float(np.median(times["weight"]))) for times in taken]


def steps_of(budget: Budget, variant: Variant, config: SearchConfig, rates: Rates) -> int:
    """W steps that a budget buys, with an alpha step beside each one after the warm-up.

    Raises:
        ConfigError: where it does not buy one step per epoch.
    """
    alpha_share = (1 - variant.warmup_share) / config.alpha_every
    if budget.minutes is not None:
        steps = int(60 * budget.minutes / (rates.weight_s + alpha_share * rates.alpha_s))
    else:
        assert budget.passes is not None
        per_step = networks_of(config, "weight") + alpha_share * networks_of(config, "alpha")
        steps = int(budget.passes / (config.batch * per_step))
    if steps < config.epochs:
        raise ConfigError(
            f"the budget of a {variant.name} search is too small", got=f"{budget.label}, {steps} steps",
            allowed=f"{config.epochs} steps or more", next="--budget-minutes 2",
        )  # fmt: skip
    return steps


class Bench:
    """Runs searches of one comparison.

    Args:
        settings: shared by all.
        data: as `--data` of a search; CIFAR-10 for NAS-Bench-201's table.
        table: that judges.
        runs: folder of the run folders.
        command: that asks for these variants; it stands in the rows.
        kind: of the rows, `quality` or `ablation`.
    """

    def __init__(
        self, settings: Settings, data: str, table: Table, runs: Path, command: str, kind: str = "quality"
    ) -> None:
        self.settings, self.data, self.table, self.runs = settings, data, table, runs
        self.command, self.kind = command, kind
        probe = build({"space": "nasbench201", "layers": 3, "data": data, "image": settings.image}, {})
        self.dataset = load(probe)

    def _config(self, variant: Variant, seed: int, steps: int) -> SearchConfig:
        half = len(self.dataset.labels) // 2
        return config_of(self.settings, variant, seed, self.data, steps, images_per_half=half)

    def rates(self, variants: Sequence[Variant]) -> list[Rates]:
        """Of those variants on this machine; timed once, together, and kept beside the runs."""
        path = self.runs / RATES_FILE
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        keys = [
            json.dumps([dataclasses.asdict(self.settings), dict(variant.overrides)], sort_keys=True)
            for variant in variants
        ]
        missing = {key: variant for key, variant in zip(keys, variants, strict=True) if key not in known}
        if missing:
            configs = [self._config(variant, 0, self.settings.least_epochs) for variant in missing.values()]
            indices, _ = split_halves(self.dataset.labels, seed=0, limit=self.settings.batch)
            with Batches(
                self.dataset, indices, batch=self.settings.batch, seed=0, stream="w", augment=False
            ) as batches:
                batch = batches.at(0)
            found = rates_of(configs, batch.images_BCHW, batch.labels_B, len(self.dataset.classes))
            known |= {key: dataclasses.asdict(rates) for key, rates in zip(missing, found, strict=True)}
            self.runs.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(known, indent=2))
        return [Rates(**known[key]) for key in keys]

    def row(self, variant: Variant, seed: int, budget: Budget) -> dict[str, Any]:
        """Search, or go on with the search of that name, and judge what it found.

        Raises:
            InterruptedSearchError: after SIGTERM or Ctrl-C; the same call goes on later.
        """
        folder = self.runs / self.settings.space / f"{variant.name}-{budget.label}-seed{seed}"
        if (folder / "config.json").exists():
            config = RunFolder.open(folder, from_json).config
        else:
            probe = self._config(variant, seed, self.settings.least_epochs)
            config = self._config(variant, seed, steps_of(budget, variant, probe, *self.rates([variant])))
        result, cpu_s, whole = searched(config, folder)
        found = self.table.look_up(result.genotype)
        begin = time.process_time()
        ranking = self._ranking(config, folder)
        return {
            "kind": self.kind, "space": self.settings.space, "method": variant.name, "seed": seed,
            "budget_minutes": budget.minutes, "budget_passes": budget.passes, **_judgement(found), **ranking,
            "cpu_s": round(cpu_s, 2), "cpu_s_is_whole": whole, "ranking_cpu_s": round(time.process_time() - begin, 2),
            "steps": config.epochs * (config.limit // config.batch), "sample_passes": _passes(config),
            "val_accuracy": result.val_accuracy, "peak_bytes": result.peak_bytes, "skips": _skips(folder),
            "settings": dataclasses.asdict(self.settings), "overrides": dict(variant.overrides),
            "config": without_paths(config), "provenance": provenance(self._command(seed, budget), threads=1),
        }  # fmt: skip

    def _command(self, seed: int, budget: Budget) -> str:
        asked = f"--budget-{'minutes' if budget.minutes is not None else 'passes'} {budget.minutes or budget.passes}"
        epochs = f"--least-epochs {self.settings.least_epochs}"
        return f"{self.command} --space {self.settings.space} {epochs} --seeds {seed} {asked} --table FILE --data DATA"

    def _ranking(self, config: SearchConfig, folder: Path) -> dict[str, float]:
        """Kendall's tau of the super-net's losses on the same random cells, and of their numbers of parameters.

        `tau` by held-out images, `tau_training` by those that the weights were trained on. Cells of the space, so that
        the super-net has trained all of their operations.
        """
        last = checkpoint.load(folder, config)
        assert last is not None
        learner, _, _ = build_learner(config, torch.device("cpu"), len(self.dataset.classes))
        learner.load_state_dict(last.state["learner"])
        trained, _ = split_halves(self.dataset.labels, seed=config.seed, limit=config.limit)
        _, held_out = split_halves(self.dataset.labels, seed=config.seed)
        operations = space_named(self.settings.space).names_of("cell")[0]
        chosen = np.random.default_rng(config.seed).choice(
            self.table.indices_of(operations), self.settings.ranked_cells
        )
        accuracy = self.table.test_200[chosen]
        found = {"tau_of_parameters": kendall_tau(self.table.params[chosen], accuracy)}
        for name, indices in (("tau", held_out), ("tau_training", trained)):
            size = min(250, len(indices))
            with Batches(self.dataset, indices, batch=size, seed=0, stream="rank", augment=False) as batches:
                judging = list(batches.sequential(min(self.settings.eval_images, len(indices))))
            losses = [loss_of(learner, self.table, int(index), judging) for index in chosen]
            found[name] = kendall_tau([-loss for loss in losses], accuracy)
        return found


def _judgement(found: Found) -> dict[str, Any]:
    judged = dataclasses.asdict(found)
    return {name: judged[name] for name in ("arch", "index", "accuracy", "rank", "regret", "params")}


def loss_of(learner: Learner, table: Table, index: int, held: list[Batch]) -> float:
    """Mean cross-entropy of that cell of the table with the super-net's weights, over those batches."""
    genotype = Genotype.from_json_dict({"arch": table.archs[index]})
    paths = genotype_paths(NASBENCH201, genotype, torch.device("cpu"))
    judged = evaluate(learner.net, paths, held, torch.device("cpu"), lambda: False)
    assert judged is not None
    return judged[0]


def _passes(config: SearchConfig) -> int:
    """Images times networks over all W and alpha steps."""
    places = [(epoch, place) for epoch in range(config.epochs) for place in range(config.limit // config.batch)]
    alpha_steps = sum(alpha_due(config, epoch, place) for epoch, place in places)
    networks = len(places) * networks_of(config, "weight") + alpha_steps * networks_of(config, "alpha")
    return config.batch * networks


def _skips(folder: Path) -> list[int]:
    """Skip-connects of the cell that alpha said after each epoch."""
    return [row["skips"]["cell"] for row in read_metrics(folder / "metrics.jsonl") if row.get("kind") == "epoch"]


def searched(config: SearchConfig, folder: Path) -> tuple[SearchResult, float, bool]:
    """The finished search, its CPU seconds, and whether they are all that it took (not after a crash)."""
    path, before_s, whole = folder / CPU_FILE, 0.0, True
    resumed = (folder / "config.json").exists()
    if resumed:
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cpu_s": 0.0, "whole": False}
        before_s, whole = float(kept["cpu_s"]), bool(kept["whole"])
        path.unlink(missing_ok=True)
    begin = time.process_time()
    try:
        result = resume(folder) if resumed else search(config, out=folder)
    except InterruptedSearchError:
        spent = before_s + time.process_time() - begin
        write_atomically(path, json.dumps({"cpu_s": spent, "whole": whole}))
        raise
    return result, before_s + time.process_time() - begin, whole
