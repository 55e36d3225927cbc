"""Parts that the pages about searches and about trainings share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..run.history import Course
from ..spaces.costs import NetworkSize
from ..spaces.counting import Cost
from . import figures
from .cost import MeasuredCost
from .page import charts_html, figure_html, folded, table_html
from .sizes import size_text
from .subject import Subject
from .text import escaped, nothing, percent, quantity


def footer(run: Subject) -> str:
    version = run.environment.get("msgdas") or ""
    return f"Written by msgdas {version} from the files of the run folder."


def chance_text(chance: float) -> str:
    return f"chance {percent(chance)}" if math.isfinite(chance) else "chance not known"


def kinds_text(counts: Mapping[str, int]) -> str:
    """`normal 1, reduce 0`."""
    return ", ".join(f"{kind} {number}" for kind, number in counts.items())


def curves_html(history: Course, chance: float, judged: str) -> str:
    """Loss and accuracy over steps; `judged` says what the points of the epochs are of."""
    if not len(history.step):
        return nothing("No step yet.")
    warmup = "; gray is the warm-up" if history.config.warmup else ""
    caption = f"Lines are means over neighbouring steps, bands their range{warmup}."
    return charts_html(
        figure_html(figures.loss_figure(history), "loss", "Loss over steps", f"<b>Loss.</b> {caption}"),
        figure_html(
            figures.accuracy_figure(history, chance), "accuracy", "Accuracy over steps", f"<b>Accuracy.</b> {judged}"
        ),
    )


def schedules_html(history: Course, names: Sequence[tuple[str, str]]) -> str:
    """Small charts of values that are set per epoch, each with its label."""
    if not len(history.step):
        return nothing("No step yet.")
    return charts_html(
        *(figure_html(figures.schedule_figure(history, name, label), name, label, "") for name, label in names),
        size="small",
    )


def cost_html(size: NetworkSize, cost: Cost, note: str) -> str:
    """Parameters and operations of one network; `note` is plain text."""
    head = "" if cost.params_with_aux is None else f"{cost.params_with_aux:,} with the auxiliary head"
    rows = [
        ("parameters", f"{cost.params:,}", head),
        ("MACs", f"{cost.macs:,}", "multiply-accumulates of convolutions and classifier, one image"),
        ("FLOPs", f"{cost.flops:,}", "2 x MACs"),
    ]
    table = table_html(("", "count", ""), rows, numbers=(1,))
    return f"<p>{escaped(size_text(size))}, {size.stem} stem. {escaped(note)}</p>{table}"


def measured_html(found: MeasuredCost | None) -> str:
    """What cost.json holds; nothing where there is none."""
    if found is None:
        return ""
    table = table_html(("", "measured", ""), found.facts(), numbers=(1,))
    return f"<p>Measured at the end of the training, on {escaped(found.place)}.</p>{table}"


def measured_table(named: Sequence[tuple[str, MeasuredCost]], what: str) -> str:
    """The same of several networks, a row each; `what` heads their names. Nothing where there is none."""
    head = (what, "latency, ms", "min to max", "inference peak, MiB", "training peak, MiB", "batch", "measured on")
    rows = [
        (
            name, quantity(cost.latency_ms.median, "", 2),
            f"{cost.latency_ms.min:,.2f} to {cost.latency_ms.max:,.2f}",
            quantity(cost.inference_peak_bytes / figures.MIB, ""), quantity(cost.training_peak_bytes / figures.MIB, ""),
            str(cost.batch), cost.place,
        )
        for name, cost in named
    ]  # fmt: skip
    lead = (
        "<p>Measured at the end of each training: latency (median of warm runs) and peak of inference with one image, "
        "peak of a training step with its batch.</p>"
    )
    return lead + table_html(head, rows, numbers=range(1, 6)) if rows else ""


def blocks_html(blocks: Sequence[tuple[str, str]]) -> str:
    """Texts to be copied, each under its name; plain text."""
    return "".join(f"<h3>{escaped(name)}</h3><pre>{escaped(value)}</pre>" for name, value in blocks)


def epochs_html(head: Sequence[str], rows: Sequence[Sequence[str]], events: Sequence[Mapping[str, Any]]) -> str:
    """Epochs as a folded table, and what happened besides steps, such as a resumption."""
    table = (
        folded("Epochs as a table", table_html(head, rows, numbers=range(len(head))))
        if rows
        else nothing("No epoch yet.")
    )
    lines = (
        f"<li>step {' '.join(escaped(event.get(key, '')) for key in ('step', 'what', 'detail'))}</li>"
        for event in events
    )
    return table + (f"<h3>Events</h3><ul>{''.join(lines)}</ul>" if events else "")
