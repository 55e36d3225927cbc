"""The report's charts: they show the rows, with units, and stay small."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
from msgdas.engine.report import figures
from msgdas.engine.report.page import inline_svg
from msgdas.engine.run.history import History

sys.path.insert(0, str(Path(__file__).parent))
from runs import rows
from runs import small_demo as demo


@pytest.fixture(scope="module")
def history():
    config = demo(epochs=8, warmup=3)
    return History.of(config, list(rows(config)))


def lines_of(figure, index=0):
    return {line.get_label(): line for line in figure.axes[index].get_lines()}


def test_curves_show_the_rows(history):
    written = list(rows(history.config))
    steps = [row for row in written if row["kind"] == "step"]
    lines = lines_of(figures.loss_figure(history))
    x, y = lines["W steps"].get_data()
    assert len(steps) <= figures.MAX_BINS
    np.testing.assert_allclose(x, [row["step"] for row in steps])
    np.testing.assert_allclose(y, [row["loss"] for row in steps])
    trained = [row for row in steps if row["alpha_loss"] is not None]
    np.testing.assert_allclose(
        lines["alpha steps"].get_data(), np.transpose([(r["step"], r["alpha_loss"]) for r in trained])
    )
    assert lines["alpha steps"].get_xdata()[0] == 3 * 16 + 1
    accuracy = lines_of(figures.accuracy_figure(history, 0.1))
    epochs = [row for row in written if row["kind"] == "epoch"]
    np.testing.assert_allclose(
        accuracy["derived cell, validation"].get_ydata(), [100 * row["val_accuracy"] for row in epochs]
    )
    assert set(accuracy["chance"].get_ydata()) == {10.0}
    assert "chance" not in lines_of(figures.accuracy_figure(history, math.nan))


def test_axes_have_units_and_warmup_is_shaded(history):
    figure = figures.loss_figure(history)
    axes = figure.axes[0]
    assert axes.get_ylabel() == "cross-entropy (nats)" and axes.get_xlabel() == "step"
    shades = [patch for patch in axes.patches if patch.get_label() == "warm-up"]
    assert [(patch.get_x(), patch.get_width()) for patch in shades] == [(0, 3 * 16)]
    above = axes.child_axes[0]
    assert [label.get_text() for label in above.get_xticklabels()] == [str(number) for number in range(1, 9)]
    np.testing.assert_allclose(above.get_xticks(), [16 * number for number in range(1, 9)])


def test_bins_keep_means_and_extremes():
    x, y = np.arange(10_000.0), np.sin(np.arange(10_000.0))
    y[::7] = math.nan
    known = np.isfinite(y)
    centre, mean, low, high = figures.binned(x, y)
    assert len(mean) == figures.MAX_BINS
    assert low.min() == y[known].min() and high.max() == y[known].max()
    assert (low <= mean).all() and (mean <= high).all() and (np.diff(centre) > 0).all()
    sizes = np.diff(np.linspace(0, known.sum(), figures.MAX_BINS + 1).astype(int))
    np.testing.assert_allclose((mean * sizes).sum(), y[known].sum())
    assert all(len(column) == 0 for column in figures.binned(x, np.full(10_000, math.nan)))


def test_fault_51_skip_connects_and_their_alarm(history):
    lines = lines_of(figures.skip_figure(history))
    for kind in ("normal", "reduce"):
        assert list(lines[f"{kind} cell"].get_ydata()) == [epoch.skips[kind] for epoch in history.epochs]
    assert set(lines["alarm: 2 or more"].get_ydata()) == {2}


def test_memory_in_mib_and_per_sample(history):
    figure = figures.peak_figure(history)
    lines = lines_of(figure)
    for phase in ("weight", "alpha"):
        np.testing.assert_allclose(lines[f"{phase} step"].get_ydata(), history.peaks[phase].bytes / 2**20)
    assert list(lines["alpha step"].get_xdata()) == [4, 5, 6, 7, 8]
    figure.canvas.draw()
    left, right = figure.axes[0], figure.axes[0].child_axes[0]
    np.testing.assert_allclose(right.get_ylim(), np.array(left.get_ylim()) / history.config.batch)
    assert "MiB per sample (batch 32)" in right.get_ylabel() and "(MiB)" in left.get_ylabel()
    rss = lines_of(figures.rss_figure(history))["resident set of the process (RSS)"]
    np.testing.assert_allclose(rss.get_ydata(), history.values["rss_bytes"] / 2**20)


def test_schedules_and_teacher(history):
    (line,) = figures.schedule_figure(history, "tau", "temperature tau").axes[0].get_lines()
    np.testing.assert_allclose(line.get_xdata(), range(1, 9))
    np.testing.assert_allclose(line.get_ydata(), np.linspace(10, 0.1, 8))
    figure = figures.teacher_figure(history)
    lines = lines_of(figure)
    np.testing.assert_allclose(lines["teacher"].get_ydata(), [epoch.teacher_loss for epoch in history.epochs])
    (bar,) = figure.axes[0].collections
    used = [epoch.number for epoch in history.epochs if epoch.teacher_used]
    spans = [path.get_extents() for path in bar.get_paths()]
    assert [(span.x0, span.x1) for span in spans] == [(min(used) - 0.5, max(used) + 0.5)]


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_alpha_has_a_chart_per_edge(space):
    config = demo(space=space, layers=3, image=32, epochs=5, warmup=1)
    history = History.of(config, list(rows(config, 2)))
    for spec in history.space.cells:
        figure = figures.alpha_figure(history, spec)
        shown = [axes for axes in figure.axes if axes.get_visible()]
        assert len(shown) == len(spec.edges)
        chosen = figures.chosen_operations(history, spec.kind)
        for index, (axes, edge) in enumerate(zip(shown, spec.edges, strict=True)):
            title = axes.get_title("left")
            assert title.split(":")[0] == f"{edge.source} → {edge.target}"
            assert (":" in title) == ((edge.source, edge.target) in chosen)
            drawn = np.transpose([line.get_ydata() for line in axes.get_lines()])
            np.testing.assert_allclose(drawn, [epoch.alpha[spec.kind][index] for epoch in history.epochs])
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        assert len(legend) == history.space.num_operations
        lines = shown[0].get_lines()
        looks = {(matplotlib.colors.to_hex(line.get_color()), line.get_linestyle()) for line in lines}
        assert len(looks) == history.space.num_operations


def test_long_runs_stay_small():
    config = demo(epochs=300, warmup=10)
    history = History.of(config, list(rows(config, 40)))
    figure = figures.loss_figure(history)
    assert all(len(line.get_xdata()) <= max(figures.MAX_BINS, 300) for line in figure.axes[0].get_lines())
    figure = figures.alpha_figure(history, history.space.cells[0])
    assert len(figure.axes[0].get_lines()[0].get_xdata()) <= figures.MAX_EPOCH_POINTS
    assert len(inline_svg(figure, "alpha", "alpha")) < 500_000
