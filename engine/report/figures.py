"""The report's charts as matplotlib figures without pyplot: curves, memory, alpha, skip-connects.

Epochs are counted from 1 on every axis. A gray area is the warm-up, in which alpha rests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..run.history import Course, Floats, History
from ..spaces.chain import BLOCKS, CHAIN_SKIPS
from ..spaces.derive import skips_name
from ..spaces.space import CHAIN, CellSpec, Edge
from .draw import operation_label

MIB = 1 << 20
# DARTS+ stops at two skip-connects in a normal cell; here it is worth a look, not an error.
SKIP_ALARM = 2
# More points than a chart has pixels to show would only make the page large.
MAX_BINS, MAX_EPOCH_POINTS, MAX_MARKED_EPOCHS = 160, 60, 40

# Above and below alpha, so that a search that has hardly begun does not look like one that has decided.
MIN_ROOM = 0.01

INK, FAINT_INK, GRID, SHADE, PAPER = "#1f2733", "#5d6875", "#e3e7ec", "#eef0f3", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE, RED = "#2b6cb0", "#c05621", "#2f855a", "#7b3fa0", "#b83232"
PHASE_COLOURS = {"weight": BLUE, "alpha": ORANGE, "training": BLUE}
KIND_STYLES = ((BLUE, "-", "o"), (ORANGE, "--", "s"))
# (colour, line): a colour per family as in the cells' picture, dashes for its second member.
_BY_EXPANSION = {0: ORANGE, 1: ORANGE, 3: BLUE, 6: PURPLE}
_BY_SIDE = {(3, 1): "-", (5, 1): "--", (7, 1): ":", (3, 2): "-.", (5, 2): ":"}
CHAIN_COLUMNS = 4
OPERATION_STYLES: dict[str, tuple[str, Any]] = {
    "none": ("#8a939d", ":"),
    "max_pool_3x3": (ORANGE, "-"),
    "avg_pool_3x3": (ORANGE, "--"),
    "skip_connect": (GREEN, "-"),
    "sep_conv_3x3": (BLUE, "-"),
    "sep_conv_5x5": (BLUE, "--"),
    "dil_conv_3x3": (PURPLE, "-"),
    "dil_conv_5x5": (PURPLE, "--"),
    "nor_conv_1x1": (BLUE, "--"),
    "nor_conv_3x3": (BLUE, "-"),
    **{name: (_BY_EXPANSION[block.expansion], _BY_SIDE[block.side, block.groups]) for name, block in BLOCKS.items()},
    **dict.fromkeys(CHAIN_SKIPS, (GREEN, "-")),
}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": "#b7bfc8",
    "axes.labelcolor": FAINT_INK,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT_INK,
    "ytick.color": FAINT_INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "svg.hashsalt": "msgdas",
    "svg.fonttype": "path",
}


def chart(width: float = 5.0, height: float = 2.9) -> tuple[Figure, Axes]:
    """An empty chart, sizes in inches."""
    figure = Figure(figsize=(width, height), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def binned(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """(x, mean, lowest, highest) of y over at most MAX_BINS equal groups of its points, NaN left out."""
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if not len(y):
        return x, y, y, y
    edges = np.linspace(0, len(y), min(MAX_BINS, len(y)) + 1).astype(np.intp)
    starts, sizes = edges[:-1], np.diff(edges)
    x_mean, y_mean = np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes
    return x_mean, y_mean, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)


def _names(history: Course) -> tuple[str, str]:
    """What the curves of the steps and of what an epoch is judged by are called."""
    return (
        ("W steps", "derived cell, validation") if isinstance(history, History) else ("training steps", "test images")
    )


@matplotlib.rc_context(STYLE)
def loss_figure(history: Course) -> Figure:
    """Cross-entropy over steps: of the steps on weights, in a search of those on alpha, and of what was judged."""
    figure, axes = chart()
    steps, judged = _names(history)
    _curve(axes, history, "loss", steps, BLUE)
    if isinstance(history, History):
        _curve(axes, history, "alpha_loss", "alpha steps", ORANGE)
    _epoch_points(axes, history, "val_loss", judged, GREEN)
    axes.set_ylabel("cross-entropy (nats)")
    return _over_steps(figure, axes, history)


@matplotlib.rc_context(STYLE)
def accuracy_figure(history: Course, chance: float) -> Figure:
    """Accuracy in percent of the steps' batches and of what was judged; `chance` (0 to 1, or NaN) as a line."""
    figure, axes = chart()
    steps, judged = _names(history)
    _curve(axes, history, "accuracy", steps, BLUE, 100)
    _epoch_points(axes, history, "val_accuracy", judged, GREEN, 100)
    if math.isfinite(chance):
        axes.axhline(100 * chance, color=FAINT_INK, linewidth=1, linestyle=":", label="chance")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("accuracy (%)")
    return _over_steps(figure, axes, history)


def _curve(axes: Axes, history: Course, name: str, label: str, colour: str, scale: float = 1) -> None:
    x, mean, low, high = binned(history.step, history.values[name] * scale)
    if not len(x):
        return
    axes.plot(x, mean, color=colour, label=label, marker="o" if len(x) == 1 else "", linewidth=1.3)
    if (low < high).any():
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _epoch_points(axes: Axes, history: Course, name: str, label: str, colour: str, scale: float = 1) -> None:
    points = [(epoch.step, scale * getattr(epoch, name)) for epoch in history.epochs]
    points = [point for point in points if math.isfinite(point[1])]
    if points:
        # The last point stands on the right edge, so its marker would be cut.
        marker = "o" if len(points) <= MAX_MARKED_EPOCHS else ""
        axes.plot(*zip(*points), color=colour, label=label, marker=marker, clip_on=False, zorder=3)


def _over_steps(figure: Figure, axes: Axes, history: Course) -> Figure:
    """Step axis below and epochs above, the warm-up shaded, one legend."""
    last = float(history.step[-1]) if len(history.step) else 1.0
    axes.set_xlim(0, last)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if history.warmup_end_step:
        axes.axvspan(0, history.warmup_end_step, color=SHADE, linewidth=0, zorder=0, label="warm-up")
    per_epoch = history.steps_per_epoch
    if per_epoch is not None:
        stride = max(1, round(history.epochs[-1].number / 10))
        marks = range(stride, history.epochs[-1].number + 1, stride)
        above = axes.secondary_xaxis("top")
        above.set_xticks([number * per_epoch for number in marks], [str(number) for number in marks])
        above.tick_params(length=3, labelsize=7, colors=FAINT_INK)
        above.set_xlabel("epoch", fontsize=7.5, color=FAINT_INK)
        above.spines["top"].set_visible(False)
    return legend_above(figure, axes)


def legend_above(figure: Figure, axes: Axes) -> Figure:
    """A legend above the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(handles)), columnspacing=1.2,
                      handlelength=1.6, fontsize=8, frameon=False)  # fmt: skip
    return figure


def _over_epochs(figure: Figure, axes: Axes, history: Course) -> Figure:
    last = max(2.0, *(epoch.number for epoch in history.epochs), *(history.values["epoch"][-1:] + 1))
    axes.set_xlim(0.5, last + 0.5)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    if history.warmup_end_step:
        axes.axvspan(0.5, min(history.config.warmup, last) + 0.5, color=SHADE, linewidth=0, zorder=0, label="warm-up")
    return legend_above(figure, axes)


@matplotlib.rc_context(STYLE)
def skip_figure(history: History) -> Figure:
    """`skip_count` of the derived cell per kind, with the line from which a normal cell is worth a look."""
    figure, axes = chart()
    for index, spec in enumerate(history.space.cells):
        known = [epoch for epoch in history.epochs if spec.kind in epoch.skips]
        colour, line, marker = KIND_STYLES[index % len(KIND_STYLES)]
        axes.plot(
            [epoch.number for epoch in known],
            [epoch.skips[spec.kind] for epoch in known],
            color=colour,
            linestyle=line,
            marker=marker if len(known) <= MAX_MARKED_EPOCHS else "",
            label=cell_title(spec),
        )
    if history.space.chain is None:
        axes.axhline(SKIP_ALARM, color=RED, linewidth=1, linestyle=":", label=f"alarm: {SKIP_ALARM} or more")
    counts = [count for epoch in history.epochs for count in epoch.skips.values()]
    axes.set_ylim(-0.2, max([SKIP_ALARM, *counts]) + 0.8)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_ylabel(skips_name(history.space))
    return _over_epochs(figure, axes, history)


@matplotlib.rc_context(STYLE)
def peak_figure(history: Course) -> Figure:
    """Peak of live memory of a step per phase in MiB, and per sample of the batch on the right axis."""
    figure, axes = chart()
    for phase, peaks in history.peaks.items():
        axes.plot(
            peaks.epochs, peaks.bytes / MIB, color=PHASE_COLOURS[phase], label=f"{phase} step",
            marker="o" if len(peaks.epochs) <= MAX_MARKED_EPOCHS else "",
        )  # fmt: skip
    axes.set_ylim(bottom=0, top=1.15 * max([1 / MIB, *(float(np.max(p.bytes)) / MIB for p in history.peaks.values())]))
    axes.set_ylabel("peak of live memory (MiB)")
    batch = history.config.batch
    right = axes.secondary_yaxis(
        "right", functions=(lambda mib: np.divide(mib, batch), lambda share: np.multiply(share, batch))
    )
    right.set_ylabel(f"MiB per sample (batch {batch})", color=FAINT_INK)
    right.spines["right"].set_visible(True)
    return _over_epochs(figure, axes, history)


@matplotlib.rc_context(STYLE)
def rss_figure(history: Course) -> Figure:
    """Resident memory of the whole process in MiB after each step."""
    figure, axes = chart()
    axes.margins(y=0.15)
    _curve(axes, history, "rss_bytes", "resident set of the process (RSS)", PURPLE, 1 / MIB)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("RSS (MiB)")
    return _over_steps(figure, axes, history)


@matplotlib.rc_context(STYLE)
def schedule_figure(history: Course, name: str, label: str) -> Figure:
    """One of the values that are set per epoch, such as lr, drop_rate or tau."""
    figure, axes = chart(3.4, 2.2)
    first = np.unique(history.values["epoch"], return_index=True)[1]
    x, y = history.values["epoch"][first] + 1, history.values[name][first]
    axes.margins(y=0.08)
    axes.plot(x, y, color=BLUE, marker="o" if len(x) <= MAX_MARKED_EPOCHS else "", markersize=2.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    figure = _over_epochs(figure, axes, history)
    for legend in figure.legends:
        legend.remove()
    return figure


@matplotlib.rc_context(STYLE)
def teacher_figure(history: History) -> Figure:
    """Running cross-entropy of teacher and students; a bar below says in which epochs the teacher was used."""
    figure, axes = chart()
    x = [epoch.number for epoch in history.epochs]
    marker = "o" if len(x) <= MAX_MARKED_EPOCHS else ""
    axes.plot(x, [epoch.teacher_loss for epoch in history.epochs], color=PURPLE, marker=marker, label="teacher")
    axes.plot(
        x, [epoch.student_loss for epoch in history.epochs], color=BLUE, marker=marker, linestyle="--", label="students"
    )
    used = [epoch.number for epoch in history.epochs if epoch.teacher_used]
    if used:
        axes.margins(y=0.12)
        axes.broken_barh(_runs(used), (0, 0.035), transform=axes.get_xaxis_transform(), facecolor=GREEN, label="used")
    axes.set_ylabel("cross-entropy (nats)")
    return _over_epochs(figure, axes, history)


def _runs(numbers: Sequence[int]) -> list[tuple[float, float]]:
    """(start, length) of the stretches of neighbouring epochs, each epoch one wide and centred on its number."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return [(start - 0.5, end - start + 1.0) for start, end in zip(starts, ends, strict=True)]


@matplotlib.rc_context(STYLE)
def distill_figure(history: History) -> Figure:
    """The distillation term of the W steps in which a teacher was used."""
    figure, axes = chart()
    _curve(axes, history, "distill", "distillation term", PURPLE)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("T² KL (nats)")
    return _over_steps(figure, axes, history)


def alpha_figure(history: History, spec: CellSpec) -> Figure:
    """Probability of each operation on each edge over the epochs, one small chart per edge.

    A row is a node and a column the state that an edge comes from; edges of the cell so far have a bold title. Layers
    of a chain fill the rows.
    """
    told = [(epoch.number, epoch.alpha[spec.kind]) for epoch in history.epochs if epoch.alpha is not None]
    told = [told[i] for i in sorted({round(i) for i in np.linspace(0, len(told) - 1, MAX_EPOCH_POINTS)})]
    x, tables = [number for number, _ in told], np.stack([table for _, table in told])
    chain = spec.kind == CHAIN
    rows, columns = (-(-spec.nodes // CHAIN_COLUMNS), CHAIN_COLUMNS) if chain else (spec.nodes, spec.num_states - 1)
    chosen = chosen_operations(history, spec.kind)
    with matplotlib.rc_context(STYLE | {"font.size": 7.5, "xtick.labelsize": 6.5, "ytick.labelsize": 6.5}):
        figure = Figure(figsize=(2.05 * columns, 1.42 * rows + 0.3), facecolor=PAPER, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat:
            axes.set_visible(False)
        for index, edge in enumerate(spec.edges):
            axes = grid[divmod(index, CHAIN_COLUMNS) if chain else (edge.target - spec.inputs, edge.source)]
            axes.set_visible(True)
            _draw_edge(axes, history, x, tables[:, index], edge, chosen.get((edge.source, edge.target)))
            if not chain:
                axes.tick_params(labelleft=edge.source == 0, labelbottom=edge.target == spec.num_states - 1)
        low, high = float(tables.min()), float(tables.max())
        room = max(0.06 * (high - low), MIN_ROOM)
        grid[0, 0].set_ylim(max(0.0, low - room), high + room)
        grid[0, 0].set_xlim(min(x) - 0.5, max(x) + 0.5)
        grid[0, 0].xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        _operation_legend(figure, history.space.operations, rows, columns)
        figure.supxlabel("epoch", fontsize=8, color=FAINT_INK)
        figure.supylabel("probability", fontsize=8, color=FAINT_INK)
    return figure


def _draw_edge(axes: Axes, history: History, x: Sequence[int], p: Floats, edge: Edge, chosen: str | None) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if history.config.warmup:
        axes.axvspan(0, history.config.warmup + 0.5, color=SHADE, linewidth=0, zorder=0)
    for column, operation in enumerate(history.space.operations):
        colour, line = OPERATION_STYLES[operation]
        axes.plot(x, p[:, column], color=colour, linestyle=line, linewidth=1.2, marker="." if len(x) == 1 else "")
    title = f"{edge.source} → {edge.target}"
    weight, ink = ("bold", INK) if chosen else ("normal", FAINT_INK)
    axes.set_title(
        f"{title}: {operation_label(chosen)}" if chosen else title, loc="left", fontsize=7.5, fontweight=weight,
        color=ink, pad=3,
    )  # fmt: skip


def _operation_legend(figure: Figure, operations: Sequence[str], rows: int, columns: int) -> None:
    """One legend in the upper right corner, where no edge is: a node reads earlier states only; a chain's is above."""
    lines = [
        Line2D([], [], color=OPERATION_STYLES[name][0], linestyle=OPERATION_STYLES[name][1], linewidth=1.6)
        for name in operations
    ]
    chain = operations[0] in BLOCKS
    figure.legend(
        lines, [operation_label(name) for name in operations], loc="outside upper center" if chain else "upper right",
        ncols=5 if chain else 1 if columns <= 3 else 2, frameon=False, fontsize=8, borderaxespad=0.6,
        handlelength=2.2, labelspacing=0.5,
    )  # fmt: skip


def chosen_operations(history: History, kind: str) -> Mapping[tuple[int, int], str]:
    """{(source, target): operation} of the last epoch's cell, without `none`."""
    genotype = history.epochs[-1].genotype if history.epochs else None
    if genotype is None:
        return {}
    inputs = genotype.spec(kind).inputs
    return {
        (source, node): operation
        for node, pairs in enumerate(genotype.node_pairs(kind), start=inputs)
        for operation, source in pairs
        if operation != "none"
    }


def cell_title(spec: CellSpec) -> str:
    """`normal cell`, `reduce cell`, or `cell` where there is one kind."""
    return spec.kind if spec.kind in ("cell", CHAIN) else f"{spec.kind} cell"
