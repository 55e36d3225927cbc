"""`python -m msgdas.bench latency`: how well latencies of random NAS-Bench-201 cells are predicted on this machine.

Whole networks are measured in turn, round by round, on one thread; half of them fit the predictor, the other half
judge it beside the lookup table's sum and a line through the MACs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict

from ..engine.latency.fit import fit, relative_error
from ..engine.latency.latency import measure_networks, measure_table
from ..engine.search.evaluate import random_cells
from ..engine.spaces.costs import NetworkSize
from ..engine.spaces.counting import count
from ..engine.spaces.genotype import Genotype
from ..engine.spaces.space import NASBENCH201
from . import command
from .gate import Gate
from .results import Row, provenance, row, show_and_keep

PREDICTORS = {
    "fitted": "ridge on the table's sum and the operations' numbers",
    "lookup": "lookup table's sum",
    "macs": "a line through the MACs",
}


def main(argv: Sequence[str]) -> int:
    made = command.parser("latency", __doc__)
    made.add_argument("--cells", type=int, default=200, help="random cells, half of them held out (default: 200)")
    command.add_sizes(made, channels=16, layers=3, image=32, rounds=15, threads=1)
    made.add_argument("--seed", type=int, default=0, help="of the cells (default: 0)")
    arguments = made.parse_args(argv)
    size = NetworkSize(arguments.channels, arguments.layers, arguments.image, 10, "cifar")
    cells = distinct_cells(arguments.cells, arguments.seed)
    errors, measured_ms = predicted(cells, size, repeats=arguments.rounds, threads=arguments.threads)
    facts = provenance(command.again("latency", argv), threads=arguments.threads)
    gate = Gate(True, {}, "predictions are held against measured networks")
    config = {**asdict(size), "of": NASBENCH201.name, "cells": len(cells), "seed": arguments.seed,
              "repeats": arguments.rounds, "threads": arguments.threads}  # fmt: skip
    figures = {f"relative_error_{name}": [error] for name, error in errors.items()} | {"latency_ms": measured_ms}
    rows = [row("latency", "predictor", config, figures, gate, facts)]
    show_and_keep(rows, line, as_json=arguments.json, out=arguments.out)
    return 0


def line(found: Row) -> str:
    """What people read of a run."""
    config, figures = found["config"], found["figures"]
    times = figures["latency_ms"]
    errors = [f"  {text:56} {figures[f'relative_error_{name}']['median']:6.1%}" for name, text in PREDICTORS.items()]
    return "\n".join([
        f"{config['cells']} random cells of {config['of']}, C={config['channels']}, {config['layers']} cells, "
        f"{config['image']} px, batch 1, {config['threads']} thread(s): {times['min']:.3f} to {times['max']:.3f} ms",
        f"mean relative error on {config['cells'] // 2} held-out cells", *errors,
    ])  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    return "\n".join(map(line, rows))


def distinct_cells(number: int, seed: int) -> list[Genotype]:
    """That many different random cells."""
    found: dict[Genotype, None] = {}
    drawn = number
    while len(found) < number:
        found = dict.fromkeys(random_cells(NASBENCH201, seed, drawn))
        drawn *= 2
    return list(found)[:number]


def predicted(
    cells: Sequence[Genotype], size: NetworkSize, *, repeats: int, threads: int
) -> tuple[dict[str, float], list[float]]:  # fmt: skip
    """Mean relative errors on the second half of the cells by predictor, and all measured latencies in milliseconds."""
    lookup = measure_table(NASBENCH201, size, repeats=repeats, threads=threads).costs(lookup=True)
    measured_ms = measure_networks(cells, size, repeats=repeats, threads=threads)
    half = len(cells) // 2
    predictor = fit(lookup, size, cells[:half], measured_ms[:half])
    macs = [count(cell, **asdict(size)).macs for cell in cells]
    slope, intercept = statistics.linear_regression(macs[:half], measured_ms[:half])
    held, truth = cells[half:], measured_ms[half:]
    errors = {
        "fitted": relative_error([predictor.predict(cell) for cell in held], truth),
        "lookup": relative_error([lookup.of(cell) for cell in held], truth),
        "macs": relative_error([intercept + slope * value for value in macs[half:]], truth),
    }
    return errors, measured_ms
