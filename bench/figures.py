"""Charts of results: memory and throughput against K, memory against time, quality against cost, skips over time.

Each takes rows of one machine as `results.read` gives them and draws what is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from ..engine.report.figures import BLUE, FAINT_INK, GREEN, INK, MIB, ORANGE, PAPER, PURPLE, RED, STYLE, chart
from .results import Row
from .variants import AUTOGRAD, SWEPT, published, sampled

COLOURS = dict(zip(SWEPT, (RED, PURPLE, GREEN), strict=True))
# Published methods by the K that they are: all operations, or one path.
MARKERS = {"darts": "s", "pc-darts": "D", "gdas": "^"}
# Of a chart of searches, percent; cells below have collapsed, and none is above.
LEAST_SHOWN, MOST_SHOWN = 70.0, 95.5
DBI_COLOURS = {"off": RED, "dropout": ORANGE, "dropblock": GREEN}
Value = Callable[[Row], float]


def peak_mib(one: Row) -> float:
    """Median peak of a step per image, MiB."""
    return float(one["figures"]["peak_per_image_bytes"]["median"]) / MIB


def step_ms(one: Row) -> float:
    """Median time of a step, milliseconds."""
    return float(one["figures"]["step_ms"]["median"])


def images_per_s(one: Row) -> float:
    """Images a second, those of the alpha step and of the W step."""
    return 2e3 * float(one["config"]["batch"]) / step_ms(one)


@matplotlib.rc_context(STYLE)
def against_k(rows: Sequence[Row], value: Value, label: str, title: str) -> Figure:
    """A line for each swept policy over K, and the published methods as marks at all operations or one path."""
    figure, axes = chart(5.6, 3.6)
    by_name = {one["name"]: one for one in rows}
    ks = sorted({one["config"]["k"] for one in rows if one["config"]["method"] == "msg"})
    for policy, colour in COLOURS.items():
        found = [(k, by_name[name]) for k in ks if (name := sampled(k, policy).name) in by_name]
        axes.plot([k for k, _ in found], [value(one) for _, one in found], color=colour, marker="o",
                  label=policy if policy == AUTOGRAD else f"policy {policy}")  # fmt: skip
    for method, marker in MARKERS.items():
        one = by_name.get(published(method).name)
        if one is not None and ks:
            axes.plot([1 if method == "gdas" else ks[-1]], [value(one)], color=INK, marker=marker, markersize=6,
                      linestyle="", markerfacecolor="none", label=one["name"])  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    _log(axes, "y")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("K, operations sampled per edge")
    axes.set_ylabel(label)
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    figure.legend(loc="outside right upper")
    return figure


@matplotlib.rc_context(STYLE)
def memory_and_time(memory: Sequence[Row], speed: Sequence[Row], title: str) -> Figure:
    """Every variant whose memory and time were measured, by number; the line joins those that none beats in both."""
    figure, axes = chart(7.2, 4.4)
    peaks = {one["name"]: peak_mib(one) for one in memory}
    points = {one["name"]: (step_ms(one), peaks[one["name"]]) for one in speed if one["name"] in peaks}
    best = pareto(points)
    axes.plot(*zip(*(points[name] for name in best)), color=GREEN, linewidth=1.2, drawstyle="steps-post", zorder=1)
    for number, (name, place) in enumerate(sorted(points.items(), key=lambda pair: pair[1]), 1):
        marker, colour = ("s", INK) if "published" in name else ("o", GREEN if name in best else BLUE)
        axes.plot(*place, marker=marker, color=colour, markersize=5, linestyle="", zorder=2, label=f"{number}  {name}")
        axes.annotate(str(number), place, xytext=(0, 5 if number % 2 else -11), textcoords="offset points", fontsize=7,
                      ha="center", color=FAINT_INK)  # fmt: skip
    _log(axes, "x")
    _log(axes, "y")
    axes.set_xlabel("time of a step, ms")
    axes.set_ylabel("peak of a step, MiB per image")
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    figure.legend(loc="outside right upper", fontsize=7)
    return figure


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other one is at most equal to in both, and less in one; by the first coordinate."""
    kept = [
        name for name, (x, y) in points.items()
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())
    ]  # fmt: skip
    return sorted(kept, key=lambda name: points[name])


@matplotlib.rc_context(STYLE)
def quality_and_cost(rows: Sequence[Row], title: str) -> Figure:
    """Accuracy of the found cells over CPU minutes, a panel for each `where` of the rows.

    Every seed is a dot, the means of each method are a line; what is below LEAST_SHOWN is a triangle on the edge.
    """
    places = list(dict.fromkeys(one["where"] for one in rows))
    colours = dict(zip(dict.fromkeys(one["method"] for one in rows), (GREEN, BLUE, ORANGE, PURPLE, RED, INK) * 4))
    figure = Figure(figsize=(2.3 * len(places) + 1.2, 3.4), facecolor=PAPER, layout="constrained")
    panels = figure.subplots(1, len(places), squeeze=False, sharex=True, sharey=True)[0]
    for axes, place in zip(panels, places, strict=True):
        for method, colour in colours.items():
            own = [one for one in rows if (one["where"], one["method"]) == (place, method)]
            if own:
                _method_on(axes, own, method, colour)
        _log(axes, "x")
        axes.set_ylim(LEAST_SHOWN - 1, MOST_SHOWN)
        axes.set_title(place.replace(", ", "\n", 1), fontsize=8)
    figure.supxlabel("cost of a search, CPU minutes", fontsize=9)
    panels[0].set_ylabel("test accuracy of the found cell, %")
    figure.suptitle(title, fontsize=9, color=INK)
    named = {line.get_label(): line for axes in panels for line in axes.lines if line.get_label() in colours}
    figure.legend(named.values(), named.keys(), loc="outside right upper")
    return figure


def _method_on(axes: Axes, rows: Sequence[Row], method: str, colour: str) -> None:
    """One method's searches of a panel; one whose CPU time is not whole stands at the mean of its budget's others."""
    budgets: dict[tuple[float, float], list[Row]] = {}
    for one in rows:
        budgets.setdefault((one["budget_minutes"] or 0.0, one["budget_passes"] or 0.0), []).append(one)
    means = []
    for seeds in budgets.values():
        whole = [one["cpu_s"] / 60 for one in seeds if one["cpu_s_is_whole"]]
        mean = sum(whole) / len(whole) if whole else seeds[0]["budget_minutes"] or 0.0
        means.append((mean, sum(one["accuracy"] for one in seeds) / len(seeds)))
        for one in seeds:
            _point(axes, one["cpu_s"] / 60 if one["cpu_s_is_whole"] else mean, one["accuracy"], ".", colour, alpha=0.5)
    for minutes, accuracy in means:
        _point(axes, minutes, accuracy, "o", colour)
    costs, accuracies = zip(*sorted(means), strict=True)
    axes.plot(costs, [max(value, LEAST_SHOWN) for value in accuracies], color=colour, label=method)


def _point(axes: Axes, minutes: float, accuracy: float, marker: str, colour: str, alpha: float = 1.0) -> None:
    shape = marker if accuracy >= LEAST_SHOWN else "v"
    axes.plot(minutes, max(accuracy, LEAST_SHOWN), color=colour, marker=shape, markersize=5, alpha=alpha)


@matplotlib.rc_context(STYLE)
def skips_over_time(rows: Sequence[Row], title: str) -> Figure:
    """Skip-connects of the normal cell after each epoch, a panel per space, a line per kind of Dropblock-Identity."""
    spaces = list(dict.fromkeys(one["space"] for one in rows))
    figure = Figure(figsize=(2.4 * len(spaces) + 1.2, 2.8), facecolor=PAPER, layout="constrained")
    for number, (axes, space) in enumerate(zip(figure.subplots(1, len(spaces), squeeze=False)[0], spaces)):
        for dbi, colour in DBI_COLOURS.items():
            curves = [one["skips"] for one in rows if (one["space"], one["dbi"]) == (space, dbi)]
            if not curves:
                continue
            epochs = range(1, len(curves[0]) + 1)
            means = [sum(values) / len(values) for values in zip(*curves, strict=True)]
            axes.plot(epochs, means, color=colour, label=None if number else dbi)
            spread = [(min(values), max(values)) for values in zip(*curves, strict=True)]
            axes.fill_between(epochs, *zip(*spread, strict=True), color=colour, alpha=0.12, linewidth=0)
        axes.set_ylim(0, 8)
        axes.set_title(space, fontsize=9)
        axes.set_xlabel("epoch")
        if not number:
            axes.set_ylabel("skip-connects of 8")
    figure.suptitle(title, fontsize=9, color=INK)
    figure.legend(loc="outside right upper")
    return figure


def _log(axes: Axes, which: Literal["x", "y"]) -> None:
    axes.set(**{f"{which}scale": "log"})
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(FuncFormatter(_tick))
    axis.set_minor_formatter(FuncFormatter(_tick))
    axes.tick_params(axis=which, which="minor", labelsize=7)


def _tick(value: float, _: int) -> str:
    """1, 2 and 5 of every decade; the others crowd."""
    return f"{value:,.10g}" if f"{value:e}"[0] in "125" else ""
