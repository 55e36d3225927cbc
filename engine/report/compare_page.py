"""The page of a comparison: table, curves, cells, costs and settings of all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..run.history import Course
from ..spaces.costs import NetworkSize
from ..spaces.counting import Cost
from ..spaces.genotype import Genotype
from .comparison import (
    ACCURACIES,
    MEASURES,
    Comparison,
    Run,
    group_name,
    setting_text,
    spread_text,
    table_rows,
)
from .draw import draw_cells
from .overlay import Mark, judged_charts
from .page import Section, Tile, charts_html, figure_html, page_html, table_html
from .parts import kinds_text, measured_table
from .sizes import size_text
from .subject import TrainRun
from .text import escaped, nothing

MAX_CELLS, MAX_TILES = 16, 8


def comparison_page(made: Comparison) -> str:
    """The page's HTML."""
    sections: list[Section] = [
        ("runs", "Runs", _runs(made)),
        ("curves", "Curves", _curves(made)),
        ("cells", "Cells", _cells(made)),
        ("cost", "Cost of the derived networks", _costs(made)),
        ("settings", "Settings that differ", _settings(made)),
    ]
    waiting = [name for name, run in made.named if not run.finished]
    badge = f"unfinished: {len(waiting)} of {len(made.named)} runs" if waiting else ""
    version = next((run.environment["msgdas"] for _, run in made.named if run.environment.get("msgdas")), "")
    footer = f"Written by msgdas {version} from the files of the run folders."
    return page_html(f"{len(made.named)} runs side by side", badge, _tiles(made), sections, footer, wide=True)


def _tiles(made: Comparison) -> list[Tile]:
    """The accuracy of each group."""
    tiles = []
    for group in made.groups[:MAX_TILES]:
        shown = spread_text(MEASURES[0], group.spreads["accuracy"])
        tiles.append((ACCURACIES[group.runs[0].config.command], shown, group_name(group)))
    return tiles


def _runs(made: Comparison) -> str:
    rows, strong = table_rows(made)
    lead = (
        "<p>Runs that differ in nothing but their seed are averaged: mean \u00b1 standard deviation of a sample, over "
        "the runs that have finished, their number in brackets. No run is chosen for its result.</p>"
    )
    notes = "".join(f"<li>{escaped(note)}</li>" for note in made.notes)
    return lead + table_html(made.head, rows, texts=2, strong=strong) + f'<ul class="faint">{notes}</ul>'


def _curves(made: Comparison) -> str:
    parts = []
    for command, heading, what in (("search", "Searches", "validation"), ("train", "Trainings", "test")):
        runs: list[tuple[Mark, Course]] = [
            (Mark(name, number, member), run.history)
            for number, group in enumerate(made.groups)
            for member, (name, run) in enumerate(zip(group.names, group.runs, strict=True))
            if run.config.command == command and len(run.history.step)
        ]
        if runs:
            parts.append(f"<h3>{heading}</h3>{judged_charts(runs, command, what)}")
    lead = "<p>A colour is a group of runs that differ in their seed; dashes tell its runs apart.</p>"
    return lead + "".join(parts) if parts else nothing("No run has taken a step yet.")


def _by_genotype(made: Comparison) -> list[tuple[Genotype, list[tuple[str, Run]]]]:
    """Each genotype with the runs that found or train it."""
    found: dict[Genotype, list[tuple[str, Run]]] = {}
    for name, run in made.named:
        if run.genotype is not None:
            found.setdefault(run.genotype, []).append((name, run))
    return list(found.items())


def _cells(made: Comparison) -> str:
    shown = _by_genotype(made)
    pictures = [
        figure_html(
            draw_cells(genotype), f"cells-{number}", f"Cells {number + 1}",
            f"<b>{escaped(', '.join(name for name, _ in members))}.</b> "
            f"Skip-connects: {escaped(kinds_text(members[0][1].skips))}.",
        )
        for number, (genotype, members) in enumerate(shown[:MAX_CELLS])
    ]  # fmt: skip
    more = nothing(f"{len(shown) - MAX_CELLS} more are not drawn.") if len(shown) > MAX_CELLS else ""
    return charts_html(*pictures, size="large") + more if pictures else nothing("No run has a cell yet.")


def _costs(made: Comparison) -> str:
    rows = []
    for name, run in made.named:
        if run.usual_cost is not None:
            rows.append(_cost_row(name, "usual", *run.usual_cost))
        if isinstance(run, TrainRun):
            rows.append(_cost_row(name, "trained", run.size, run.cost))
    head = ("run", "size", "network", "parameters", "MACs", "FLOPs = 2 x MACs")
    return (table_html(head, rows, texts=3) or nothing("No run has a cell yet.")) + measured_table(made.measured, "run")


def _cost_row(name: str, which: str, size: NetworkSize, cost: Cost) -> tuple[str, ...]:
    return name, which, size_text(size), f"{cost.params:,}", f"{cost.macs:,}", f"{cost.flops:,}"


def _settings(made: Comparison) -> str:
    parts = []
    for command, keys in made.differing.items():
        heading = {"search": "Searches", "train": "Trainings"}[command]
        names = [name for name, run in made.named if run.config.command == command]
        if len(names) > 1:
            parts.append(f"<h3>{heading}</h3>{_settings_table(names, keys)}")
    return "".join(parts) or nothing("Only one search and one training: they have no settings in common to differ in.")


def _settings_table(names: Sequence[str], keys: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [(key, *(setting_text(values[name]) for name in names)) for key, values in keys.items()]
    return table_html(("key", *names), rows, texts=1 + len(names)) or nothing("None.")
