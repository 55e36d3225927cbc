"""The page about a search: its cells and curves, what it cost, and the trainings in its folder."""

from __future__ import annotations

import json
import math

from ..settings.config import resolved_teacher
from ..spaces.derive import skips_name
from ..spaces.genotype import CHAINS
from ..spaces.genotype_text import format_tuple_text
from ..spaces.space import DARTS
from . import figures
from .draw import alpha_heatmap, draw_cells
from .memory import memory_html
from .overlay import Mark, judged_charts
from .page import Tile, charts_html, figure_html, page_html, table_html
from .parts import (
    blocks_html,
    chance_text,
    cost_html,
    curves_html,
    epochs_html,
    footer,
    kinds_text,
    measured_table,
    schedules_html,
)  # fmt: skip
from .plan import plan_html
from .sizes import size_text
from .subject import SearchRun, TrainRun, trainings_in
from .text import config_table, duration, environment_table, escaped, nothing, percent, quantity, reproduction


def search_page(run: SearchRun) -> str:
    """The page's HTML."""
    sections = [
        ("cells", "Cells", _cells(run)),
        ("curves", "Loss and accuracy", _curves(run)),
        ("alpha", "Alpha over time", _alpha(run)),
        ("skips", skips_name(run.history.space).capitalize(), _skips(run)),
        ("plan", "Plan", plan_html(run.path)),
        ("memory", "Memory", memory_html(run.path, run.history)),
        ("cost", "Cost of the derived network", _cost(run)),
        ("training", "Training", _trainings(run)),
        ("schedules", "Schedules", _schedules(run)),
        ("teacher", "Teacher", _teacher(run)),
        ("genotype", "Genotype", _genotype(run)),
        ("epochs", "Epochs and events", _epochs(run)),
        ("config", "Configuration", config_table(run.config)),
        ("environment", "Environment", environment_table(run.environment)),
        ("reproduce", "Reproduce", reproduction(run.config, run.path, run.environment.get("commit"))),
    ]
    config = run.config
    title = f"{config.recipe} · {config.method} · K={config.k} · {config.mode}"
    return page_html(title, run.unfinished, _outcome(run), sections, footer(run))


def _outcome(run: SearchRun) -> tuple[Tile, ...]:
    peak_bytes, phase = run.history.peak
    per_sample = f"{peak_bytes / run.config.batch / figures.MIB:.2f} MiB per sample, {phase} step" if phase else ""
    cell = "derived cell" if run.is_answer else "cell so far"
    return (
        (f"validation accuracy, {cell}", percent(run.accuracy), f"{chance_text(run.chance)}; the super-net's weights"),
        ("peak memory of a step", quantity(peak_bytes / figures.MIB, "MiB"), per_sample),
        ("speed", quantity(run.history.samples_per_s, "samples/s", 0), "median over steps, W and alpha images"),
        ("time", duration(run.history.elapsed_s), "in steps and in judging cells"),
    )


def _curves(run: SearchRun) -> str:
    judged = "Validation judges the derived cell, with the super-net's weights, on the alpha half."
    return curves_html(run.history, run.chance, judged)


def _cost(run: SearchRun) -> str:
    if run.usual_cost is None:
        return nothing("No cell yet.")
    note = "" if run.is_answer else f" The cell is that after epoch {len(run.history.epochs)}."
    return cost_html(*run.usual_cost, f"At the size that this family's cells are usually trained at.{note}")


def _trainings(run: SearchRun) -> str:
    """Every training in the search's folder."""
    found, troubles = trainings_in(run.path)
    lines = "".join(f'<p class="alarm">Not read: {escaped(trouble)}</p>' for trouble in troubles)
    if not found:
        return lines + nothing("No training in this run's folder: msgdas train RUN --out RUN/trained puts one there.")
    head = (
        "training", "cell", "network", "test top-1", "top-5", "peak, MiB", "images/s", "time", "parameters", "MACs",
    )  # fmt: skip
    table = table_html(head, [_training_row(run, training) for training in found], texts=3)
    measured = [(training.path.name, training.measured) for training in found if training.measured is not None]
    table += measured_table(measured, "training")
    lead = "<p>From scratch. Top-1 is of the test images after the last epoch; no epoch is chosen.</p>"
    marked = [(Mark(training.path.name, number), training.history) for number, training in enumerate(found)]
    return lines + lead + table + judged_charts(marked, "training", "test")


def _training_row(run: SearchRun, training: TrainRun) -> tuple[str, ...]:
    last, (peak_bytes, _) = training.last, training.history.peak
    state = f" ({training.unfinished})" if training.unfinished else ""
    return (
        f"{training.path.name}{state}", "this search's" if training.genotype == run.genotype else "another",
        size_text(training.size), percent(training.accuracy), percent(last.top5 if last else math.nan),
        quantity(peak_bytes / figures.MIB, ""), quantity(training.history.samples_per_s, "", 0),
        duration(training.history.elapsed_s), f"{training.cost.params:,}", f"{training.cost.macs:,}",
    )  # fmt: skip


def _cells(run: SearchRun) -> str:
    trouble = f'<p class="alarm">{escaped(run.trouble)}</p>' if run.trouble else ""
    if run.genotype is None:
        return trouble + nothing("No cell yet: the first is derived at the end of the first epoch.")
    what, title, read = (
        "cells",
        "Derived cells",
        "Numbers in circles are states; a genotype's pairs name them as inputs.",
    )
    if run.genotype.space in CHAINS:
        what, title, read = "layers", "Derived chain", "An arc is a layer's shortcut."
    when = f"The {what} the search found." if run.is_answer else f"The {what} after epoch {len(run.history.epochs)}."
    return trouble + figure_html(draw_cells(run.genotype), "cells", title, f"{when} {read}", wide=True)


def _alpha(run: SearchRun) -> str:
    if not any(epoch.alpha is not None for epoch in run.history.epochs):
        return nothing("No alpha yet: it is recorded at the end of each epoch.")
    parts = []
    for spec in run.history.space.cells if len(run.history.epochs) > 1 else ():
        kind = figures.cell_title(spec)
        note = "All share their axes. An edge of the last epoch's cell has a bold title with its operation."
        caption = f"<b>{kind.capitalize()}.</b> Rows are nodes, columns the states they read. {note}"
        figure = figures.alpha_figure(run.history, spec)
        parts.append(figure_html(figure, f"alpha-{spec.kind}", f"Alpha of the {kind} over epochs", caption, wide=True))
    last = [epoch for epoch in run.history.epochs if epoch.alpha is not None][-1]
    assert last.alpha is not None
    table = alpha_heatmap(run.history.space, {kind: rows.tolist() for kind, rows in last.alpha.items()})
    caption = f"<b>After epoch {last.number}.</b> Probability of each operation on each edge."
    parts.append(figure_html(table, "alpha-table", "Alpha after the last epoch", caption, wide=True))
    return "".join(parts)


def _skips(run: SearchRun) -> str:
    if run.last is None:
        return nothing("No epoch yet.")
    label = f"{skips_name(run.history.space).capitalize()} over epochs"
    figure = charts_html(figure_html(figures.skip_figure(run.history), "skip-count", label, ""))
    if run.history.space.chain is not None:
        return "<p>Only a layer with a shortcut can be left out.</p>" + figure
    lead = (
        "<p>Searches of this family may collapse into skip-connects. Two or more in a normal cell, where DARTS+ "
        "stops early, are worth a look; they are not an error.</p>"
    )
    alarms = [
        f"{kind} cell: {count} skip-connects after epoch {run.last.number}"
        for kind, count in run.last.skips.items()
        if kind != "reduce" and count >= figures.SKIP_ALARM
    ]
    lead += "".join(f'<p class="alarm">{escaped(alarm)}</p>' for alarm in alarms)
    return lead + figure


def _schedules(run: SearchRun) -> str:
    names = (("tau", "temperature tau"), ("drop_rate", "drop rate of Dropblock-Identity"), ("lr", "learning rate"))
    return schedules_html(run.history, names)


def _teacher(run: SearchRun) -> str:
    kind = resolved_teacher(run.config)
    if kind == "none":
        return nothing("This search has no teacher.")
    used = [epoch.number for epoch in run.history.epochs if epoch.teacher_used]
    begin = math.ceil(run.config.teacher_start * run.config.epochs) + 1
    lead = (
        f"<p>Teacher: {escaped(kind)}, from epoch {begin} on, weight {run.config.teacher_weight:g}, "
        f"temperature {run.config.teacher_temperature:g}. It is used only while its running loss is below its "
        f"students': so it was at the end of {len(used)} of {len(run.history.epochs)} epochs.</p>"
    )
    charts = []
    if any(math.isfinite(epoch.teacher_loss) for epoch in run.history.epochs):
        label = "Losses of teacher and students"
        charts.append(figure_html(figures.teacher_figure(run.history), "teacher-loss", label, f"<b>{label}.</b>"))
    if any(math.isfinite(value) for value in run.history.values["distill"]):
        caption = "<b>Distillation.</b> T² KL(teacher, student) in the steps that used the teacher."
        charts.append(figure_html(figures.distill_figure(run.history), "distill", "Distillation term", caption))
    return lead + charts_html(*charts)


def _genotype(run: SearchRun) -> str:
    if run.genotype is None:
        return nothing("No genotype yet.")
    state = "" if run.is_answer else f"<p>Not final: the cell after epoch {len(run.history.epochs)}.</p>"
    blocks = [("JSON", json.dumps(run.genotype.to_json_dict()))]
    if run.genotype.space == DARTS.name:
        blocks.append(("Tuple text, as DARTS' genotypes.py has it", format_tuple_text(run.genotype)))
    return state + blocks_html(blocks)


def _epochs(run: SearchRun) -> str:
    head = ("epoch", "step", "validation loss", "validation accuracy", skips_name(run.history.space), "teacher used")
    rows = [
        (
            str(epoch.number), str(epoch.step), quantity(epoch.val_loss, "", 3), percent(epoch.val_accuracy),
            kinds_text(epoch.skips), "yes" if epoch.teacher_used else "no",
        )
        for epoch in run.history.epochs
    ]  # fmt: skip
    return epochs_html(head, rows, run.history.events)
