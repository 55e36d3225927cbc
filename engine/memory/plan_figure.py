"""The chart of a plan: the peak against K, for every method and policy, with the budget."""

from __future__ import annotations

import itertools

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from ..report.figures import BLUE, FAINT_INK, GREEN, INK, ORANGE, PURPLE, RED, STYLE, chart
from .plan_text import MIB, short_policy
from .planning import BY_MEMORY
from .search_plan import Row, SearchPlan

COLOURS = dict(zip(BY_MEMORY, (GREEN, BLUE, PURPLE, ORANGE), strict=True))


@matplotlib.rc_context(STYLE)
def plan_figure(made: SearchPlan) -> Figure:
    """Peaks of a whole step at the table's batch; both axes are logarithmic."""
    figure, axes = chart(6.4, 4.2)
    unit, name = (MIB, "MiB") if max((row.prediction.needed_bytes for row in made.rows), default=0) < 1 << 30 else (
        1 << 30, "GiB",
    )  # fmt: skip
    for policy in dict.fromkeys(row.setting.policy for row in made.rows):
        colour = COLOURS.get(policy, INK)
        union = _rows(made, policy, "msg", "union")
        axes.plot(_ks(union), _peaks(union, unit), color=colour, marker="o", linestyle="-")
        for row in _rows(made, policy, "msg", "subgraphs"):
            axes.plot([1.35, row.setting.k], [_peak(row, unit)] * 2, color=colour, linestyle=":")
        for method, marker in _markers(made).items():
            found = [*_rows(made, policy, method, "union"), *_rows(made, policy, method, "subgraphs")]
            axes.plot(_ks(found), _peaks(found, unit), color=colour, marker=marker, markersize=7, linestyle="",
                      markerfacecolor="none")  # fmt: skip
    axes.axhline(made.budget_bytes / unit, color=RED, linewidth=1.2)
    axes.annotate(f"budget {made.budget_bytes / unit:,.1f} {name}", (1, made.budget_bytes / unit), color=RED,
                  xytext=(0, 3), textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    ks = sorted({row.setting.k for row in made.rows})
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.set_xlabel("K, operations sampled per edge")
    axes.set_ylabel(f"predicted peak of a step, {name}")
    config, shown = made.config, made.rows[0].setting if made.rows else made.plan.setting
    axes.set_title(
        f"{config.space}, C={config.channels}, {config.layers} cells, {config.image} px, batch {shown.batch}, "
        f"{shown.dtype}\n{made.machine.name}", loc="left", fontsize=9, color=INK,
    )  # fmt: skip
    _legend(figure, made)
    return figure


def _legend(figure: Figure, made: SearchPlan) -> None:
    policies = dict.fromkeys(row.setting.policy for row in reversed(made.rows))
    handles = [
        *(Line2D([], [], color=COLOURS.get(policy, INK), label=f"policy {short_policy(policy)}") for policy in
          sorted(policies, key=lambda one: -BY_MEMORY.index(one) if one in BY_MEMORY else 1)),
        Line2D([], [], color=FAINT_INK, marker="o", label="msg, union of K paths"),
        Line2D([], [], color=FAINT_INK, linestyle=":", label="msg, K sub-graphs in turn"),
        *(Line2D([], [], color=FAINT_INK, marker=marker, markersize=7, linestyle="", markerfacecolor="none",
                 label=", ".join((method, *made.alike.get(method, ()))))
          for method, marker in _markers(made).items()),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside right upper")


def _markers(made: SearchPlan) -> dict[str, str]:
    """A marker for each method of the table but msg, which has lines."""
    methods = dict.fromkeys(row.method for row in made.rows if row.method != "msg")
    return dict(zip(methods, itertools.cycle("s^DvP*Xhd<>")))


def _rows(made: SearchPlan, policy: str, method: str, mode: str) -> list[Row]:
    return [
        row for row in made.rows if (row.method, row.setting.mode, row.setting.policy) == (method, mode, policy)
    ]  # fmt: skip


def _ks(rows: list[Row]) -> list[int]:
    return [row.setting.k for row in rows]


def _peak(row: Row, unit: int) -> float:
    return row.prediction.needed_bytes / unit


def _peaks(rows: list[Row], unit: int) -> list[float]:
    return [_peak(row, unit) for row in rows]
