"""The report: one HTML page about a run, made from the files of its folder alone.

The page needs no network, no JavaScript and no other file, so it can be mailed as it is.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic import write_atomically
from ..errors import GenotypeError
from ..run.history import Epoch, History
from ..run.rundir import ENVIRONMENT, GENOTYPE, RunFolder
from ..settings.config import SearchConfig, from_json, resolved_teacher
from ..spaces.derive import skips_name
from ..spaces.genotype import CHAINS, Genotype
from ..spaces.genotype_text import format_tuple_text
from ..spaces.space import DARTS
from . import figures
from .draw import alpha_heatmap, draw_cells
from .memory import charts_html, figure_html, memory_html
from .text import config_table, duration, environment_table, escaped, nothing, percent, quantity, reproduction

REPORT = "report.html"
STYLESHEET = Path(__file__).parent.parent / "assets" / "report.css"
RECONSTRUCTION = "msgdas reconstructs MSG-DAS from the abstract of arXiv 2107.04324; no figure here is the paper's."
CLASSES = {"fashion-mnist-mini": 10, "fashion-mnist": 10, "cifar10": 10, "cifar100": 100}
MAX_ENVIRONMENT_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class _Run:
    """What the page is about.

    Attributes:
        genotype: the answer, or the last epoch's cell, or None before the first.
        is_answer: whether the genotype is the finished search's.
        trouble: why genotype.json could not be read, else "".
        environment: of environment.json, {} where it cannot be read.
    """

    path: Path
    config: SearchConfig
    history: History
    genotype: Genotype | None
    is_answer: bool
    trouble: str
    environment: Mapping[str, Any]

    @property
    def chance(self) -> float:
        """Accuracy of guessing, 0 to 1; NaN where the number of classes is not known."""
        classes = self.history.classes or CLASSES.get(self.config.data)
        return 1 / classes if classes else math.nan

    @property
    def last(self) -> Epoch | None:
        return self.history.epochs[-1] if self.history.epochs else None


def write_report(run_path: Path) -> Path:
    """Write RUN/report.html and return its path; a run that has not finished, or just begun, gets one too.

    Raises:
        RunFolderError, ConfigError: where the folder is no run folder of this version.
        OSError: where the page cannot be written.
    """
    path = run_path / REPORT
    # Lone surrogates, as in paths that are not UTF-8, have no place in a page.
    write_atomically(path, page(run_path).encode("utf-8", "replace").decode("utf-8"))
    return path


def page(run_path: Path) -> str:
    """The page's HTML. Raises as `write_report` does."""
    run = _read(run_path)
    sections = [
        ("cells", "Cells", _cells(run)),
        ("curves", "Loss and accuracy", _curves(run)),
        ("alpha", "Alpha over time", _alpha(run)),
        ("skips", skips_name(run.history.space).capitalize(), _skips(run)),
        ("memory", "Memory", memory_html(run.path, run.history)),
        ("schedules", "Schedules", _schedules(run)),
        ("teacher", "Teacher", _teacher(run)),
        ("genotype", "Genotype", _genotype(run)),
        ("epochs", "Epochs and events", _epochs(run)),
        ("config", "Configuration", config_table(run.config)),
        ("environment", "Environment", environment_table(run.environment)),
        ("reproduce", "Reproduce", reproduction(run.config, run.path, run.environment.get("commit"))),
    ]
    title = _title(run.config)
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{heading}</h2>{content}</section>' for name, heading, content in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLESHEET.read_text(encoding='utf-8')}</style></head>"
        f'<body><div class="page"><header><h1>{escaped(title)}{_badge(run)}</h1>'
        f'<p class="faint">{escaped(RECONSTRUCTION)}</p>{_outcome(run)}<nav>{links}</nav></header>'
        f"<main>{body}</main><footer>Written by msgdas {escaped(run.environment.get('msgdas') or '')} "
        "from the files of the run folder.</footer></div></body></html>\n"
    )


def _read(run_path: Path) -> _Run:
    folder = RunFolder.open(run_path, from_json)
    history = History.of(folder.config, folder.read_metrics())
    genotype, trouble = None, ""
    if (run_path / GENOTYPE).exists():
        try:
            genotype = Genotype.load(run_path / GENOTYPE)
        except GenotypeError as error:
            trouble = str(error)
    told = [epoch.genotype for epoch in history.epochs if epoch.genotype is not None]
    return _Run(
        path=run_path, config=folder.config, history=history, genotype=genotype or (told[-1] if told else None),
        is_answer=genotype is not None, trouble=trouble, environment=_read_environment(run_path / ENVIRONMENT),
    )  # fmt: skip


def _read_environment(path: Path) -> Mapping[str, Any]:
    try:
        with open(path, "rb") as file:
            environment = json.loads(file.read(MAX_ENVIRONMENT_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return environment if isinstance(environment, dict) else {}


def _title(config: SearchConfig) -> str:
    return f"{config.recipe} · {config.method} · K={config.k} · {config.mode}"


def _badge(run: _Run) -> str:
    if run.is_answer and run.history.finished:
        return ""
    return f'<span class="badge">unfinished: {len(run.history.epochs)} of {run.config.epochs} epochs</span>'


def _outcome(run: _Run) -> str:
    """The line that says what came out."""
    accuracy = run.last.val_accuracy if run.last else math.nan
    peak_bytes, phase = run.history.peak
    per_sample = f"{peak_bytes / run.config.batch / figures.MIB:.2f} MiB per sample, {phase} step" if phase else ""
    cell = "derived cell" if run.is_answer else "cell so far"
    chance = f"chance {percent(run.chance)}" if math.isfinite(run.chance) else "chance not known"
    entries = (
        (f"validation accuracy, {cell}", percent(accuracy), f"{chance}; the super-net's weights"),
        ("peak memory of a step", quantity(peak_bytes / figures.MIB, "MiB"), per_sample),
        ("speed", quantity(run.history.samples_per_s, "samples/s", 0), "median over steps, W and alpha images"),
        ("time", duration(run.history.elapsed_s), "in steps and in judging cells"),
    )
    tiles = "".join(
        f"<div><dt>{escaped(name)}</dt><dd><strong>{escaped(value)}</strong><span>{escaped(note)}</span></dd></div>"
        for name, value, note in entries
    )
    return f'<dl class="outcome">{tiles}</dl>'


def _cells(run: _Run) -> str:
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


def _curves(run: _Run) -> str:
    if not len(run.history.step):
        return nothing("No step yet.")
    caption = "Lines are means over neighbouring steps, bands their range; gray is the warm-up."
    return charts_html(
        figure_html(figures.loss_figure(run.history), "loss", "Loss over steps", f"<b>Loss.</b> {caption}"),
        figure_html(
            figures.accuracy_figure(run.history, run.chance), "accuracy", "Accuracy over steps",
            "<b>Accuracy.</b> Validation judges the derived cell, with the super-net's weights, on the alpha half.",
        ),
    )  # fmt: skip


def _alpha(run: _Run) -> str:
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


def _skips(run: _Run) -> str:
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


def _schedules(run: _Run) -> str:
    if not len(run.history.step):
        return nothing("No step yet.")
    names = (("tau", "temperature tau"), ("drop_rate", "drop rate of Dropblock-Identity"), ("lr", "learning rate"))
    return charts_html(
        *(figure_html(figures.schedule_figure(run.history, name, label), name, label, "") for name, label in names),
        small=True,
    )


def _teacher(run: _Run) -> str:
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


def _genotype(run: _Run) -> str:
    if run.genotype is None:
        return nothing("No genotype yet.")
    state = "" if run.is_answer else f"<p>Not final: the cell after epoch {len(run.history.epochs)}.</p>"
    blocks = [("JSON", json.dumps(run.genotype.to_json_dict()))]
    if run.genotype.space == DARTS.name:
        blocks.append(("Tuple text, as DARTS' genotypes.py has it", format_tuple_text(run.genotype)))
    return state + "".join(f"<h3>{escaped(name)}</h3><pre>{escaped(value)}</pre>" for name, value in blocks)


def _epochs(run: _Run) -> str:
    if not run.history.epochs:
        return nothing("No epoch yet.") + _events(run)
    head = ("epoch", "step", "validation loss", "validation accuracy", skips_name(run.history.space), "teacher used")
    rows = [
        (
            epoch.number, epoch.step, quantity(epoch.val_loss, "", 3), percent(epoch.val_accuracy),
            ", ".join(f"{kind} {count}" for kind, count in epoch.skips.items()), "yes" if epoch.teacher_used else "no",
        )
        for epoch in run.history.epochs
    ]  # fmt: skip
    cells = "".join(f'<th scope="col" class="number">{escaped(name)}</th>' for name in head)
    lines = "".join(
        "<tr>" + "".join(f'<td class="number">{escaped(value)}</td>' for value in row) + "</tr>" for row in rows
    )
    table = f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'
    return f"<details><summary>Epochs as a table</summary>{table}</details>{_events(run)}"


def _events(run: _Run) -> str:
    """What happened besides steps, such as a resumption."""
    lines = (
        f"<li>step {' '.join(escaped(event.get(key, '')) for key in ('step', 'what', 'detail'))}</li>"
        for event in run.history.events
    )
    return f"<h3>Events</h3><ul>{''.join(lines)}</ul>" if run.history.events else ""
