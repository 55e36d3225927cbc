"""The page about a training: its result, curves, schedules, memory, and the cost of its network."""

from __future__ import annotations

import dataclasses
import json
import math

from ..spaces.derive import skips_name
from ..spaces.space import FAMILIES
from . import figures
from .draw import draw_cells
from .memory import memory_html
from .page import Tile, figure_html, page_html
from .parts import (
    blocks_html,
    chance_text,
    cost_html,
    curves_html,
    epochs_html,
    footer,
    kinds_text,
    measured_html,
    schedules_html,
)  # fmt: skip
from .subject import TrainRun
from .text import config_table, duration, environment_table, escaped, percent, quantity, reproduction


def training_page(run: TrainRun) -> str:
    """The page's HTML."""
    config = run.config
    sections = [
        ("cells", "Cell", _cells(run)),
        ("curves", "Loss and accuracy", curves_html(run.history, run.chance, _judged(run))),
        ("schedules", "Schedules", _schedules(run)),
        ("memory", "Memory", memory_html(run.path, run.history)),
        ("cost", "Cost of the network", _cost(run)),
        ("genotype", "Genotype", blocks_html([("JSON", json.dumps(run.genotype.to_json_dict()))])),
        ("epochs", "Epochs and events", _epochs(run)),
        ("config", "Configuration", config_table(config)),
        ("environment", "Environment", environment_table(run.environment)),
        ("reproduce", "Reproduce", reproduction(config, run.path, run.environment.get("commit"))),
    ]
    title = f"training · {config.recipe} · C={config.channels} · {config.layers} layers"
    return page_html(title, run.unfinished, _outcome(run), sections, footer(run))


def _outcome(run: TrainRun) -> tuple[Tile, ...]:
    peak_bytes, phase = run.history.peak
    per_sample = f"{peak_bytes / run.config.batch / figures.MIB:.2f} MiB per image" if phase else ""
    number, top5, best = (run.last.number, run.last.top5, run.last.best) if run.last else (0, math.nan, math.nan)
    logged = f"{chance_text(run.chance)}; best epoch {percent(best)}, which chooses nothing"
    return (
        (f"test top-1 after epoch {number}" if number else "test top-1", percent(run.accuracy), logged),
        ("test top-5", percent(top5), "after the same epoch"),
        ("peak memory of a step", quantity(peak_bytes / figures.MIB, "MiB"), per_sample),
        ("speed", quantity(run.history.samples_per_s, "images/s", 0), "median over steps"),
        ("time", duration(run.history.elapsed_s), "in steps and in judging"),
    )


def _cells(run: TrainRun) -> str:
    names = skips_name(FAMILIES[run.genotype.space])
    caption = f"{names.capitalize()}: {escaped(kinds_text(run.skips))}."
    return figure_html(draw_cells(run.genotype), "cells", "Cell of the network", caption, wide=True)


def _judged(run: TrainRun) -> str:
    averaged = ", by the average of the weights" if run.config.ema else ""
    most = f"the first {run.config.eval_images} of " if run.config.eval_images else ""
    return (
        f"Test images are judged at the end of each epoch ({most}all there are{averaged}); the last one is the result."
    )


def _cost(run: TrainRun) -> str:
    cost = run.cost if run.config.auxiliary else dataclasses.replace(run.cost, params_with_aux=None)
    return cost_html(run.size, cost, "The network that was trained.") + measured_html(run.measured)


def _schedules(run: TrainRun) -> str:
    return schedules_html(run.history, (("lr", "learning rate"), ("drop_rate", "drop-path rate")))


def _epochs(run: TrainRun) -> str:
    head = ("epoch", "step", "test loss", "test top-1", "test top-5", "best top-1 so far")
    rows = [
        (
            str(epoch.number), str(epoch.step), quantity(epoch.val_loss, "", 3), percent(epoch.val_accuracy),
            percent(epoch.top5), percent(epoch.best),
        )
        for epoch in run.history.epochs
    ]  # fmt: skip
    return epochs_html(head, rows, run.history.events)
