"""Curves of several runs in one chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..run.history import Course, Floats
from .figures import BLUE, GREEN, INK, MAX_MARKED_EPOCHS, ORANGE, PURPLE, RED, STYLE, binned, chart, legend_above
from .page import charts_html, figure_html

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, "#8a6d1f", "#0f766e", INK)
DASHES = ("-", "--", "-.", ":")


# A legend of more would leave no room for the curves.
MAX_LABELS, MAX_LABEL_LENGTH = 12, 40


@dataclass(frozen=True, slots=True)
class Mark:
    """How a run looks in every chart.

    Attributes:
        label: its name.
        group: numbers the colour.
        member: numbers the dashes within the colour.
    """

    label: str
    group: int
    member: int = 0

    @property
    def plain(self) -> str:
        """The label in letters that the charts' font has, so that no name of a folder can spoil a picture."""
        shown = "".join(letter if letter.isprintable() and ord(letter) < 0x250 else "?" for letter in self.label)
        # A legend leaves out what begins with an underscore.
        shown = f" {shown}" if shown.startswith("_") else shown
        return shown if len(shown) <= MAX_LABEL_LENGTH else f"...{shown[3 - MAX_LABEL_LENGTH :]}"


def overlay_figure(runs: Sequence[tuple[Mark, Floats, Floats]], x_label: str, y_label: str) -> Figure:
    """Curves (mark, x, y) over one axis; points that are not finite are left out."""
    with matplotlib.rc_context({**STYLE, "text.parse_math": False}):
        figure, axes = chart()
        for number, (mark, x, y) in enumerate(runs):
            x, y, _, _ = binned(x, y)
            if len(x):
                axes.plot(
                    x, y, color=COLOURS[mark.group % len(COLOURS)], linestyle=DASHES[mark.member % len(DASHES)],
                    marker="o" if len(x) <= MAX_MARKED_EPOCHS else "", linewidth=1.3,
                    label=mark.plain if number < MAX_LABELS else None,
                )  # fmt: skip
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        return legend_above(figure, axes)


def epochs_curve(history: Course, name: str, scale: float = 1) -> tuple[Floats, Floats]:
    """A value of `Judged` over epochs."""
    points = np.array([(epoch.number, scale * getattr(epoch, name)) for epoch in history.epochs], dtype=np.float64)
    x, y = points.reshape(-1, 2).T
    return x, np.where(np.isfinite(y), y, np.nan)


def judged_charts(runs: Sequence[tuple[Mark, Course]], name: str, what: str) -> str:
    """Accuracy and loss over epochs of runs that are judged alike, and the loss of their steps; nothing without runs.

    Args:
        name: begins the charts' ids.
        what: the images that they are judged by.
    """
    if not runs:
        return ""
    marks = [mark for mark, _ in runs]
    courses = [course for _, course in runs]
    charts = (
        ("val_accuracy", f"{what} accuracy (%)", "epoch", [epochs_curve(of, "val_accuracy", 100) for of in courses]),
        ("val_loss", f"{what} loss (nats)", "epoch", [epochs_curve(of, "val_loss") for of in courses]),
        ("loss", "loss of the steps (nats)", "step", [(of.step, of.values["loss"]) for of in courses]),
    )
    return charts_html(
        *(
            figure_html(
                overlay_figure([(mark, x, y) for mark, (x, y) in zip(marks, curves, strict=True)], x_label, y_label),
                f"{name}-{key}", f"{y_label} over {x_label}s", "",
            )
            for key, y_label, x_label, curves in charts
        )
    )  # fmt: skip
