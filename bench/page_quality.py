"""The parts of docs/benchmarks.md on what searches find: means beside what needs no search, ablations, collapse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from . import command
from .collapse import table_text
from .quality import DEVELOPMENT_SEEDS, LEAST_GOOD, YARDSTICKS, mean_text, paired_lines
from .results import Row
from .statistics import summary

# The evaluated reconstructions, newest first.
OURS = ("msg-loo", "msg-late", "msg")
# The cell with 3x3 convolutions alone, which a search has to beat on average.
ALL_3X3 = 93.76
HEADS = (
    "method", "n", "accuracy, mean ± sd", "least", "most", "regret", "below 91", "tau, held-out loss",
    "training loss", "parameters", "CPU s",
)  # fmt: skip
# (seconds or passes of a budget, its name)
Budget = tuple[float, str]


def evaluated(rows: Sequence[Row]) -> list[Row]:
    """Searches on seeds that no setting was chosen on."""
    return [one for one in rows if one["kind"] == "quality" and one["seed"] not in DEVELOPMENT_SEEDS]


def budget_of(one: Row) -> Budget:
    minutes, passes = one["budget_minutes"], one["budget_passes"]
    return (60.0 * minutes, f"{minutes:g} CPU minutes") if minutes else (float(passes), f"{passes:,} sample-passes")


def where(one: Row) -> str:
    """Space and size of the super-net, which all searches of a table share."""
    size = one["settings"]
    return f"{one['space']}, {size['layers']} cells, C={size['channels']}, {size['image']} px"


def grouped(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """(where, budget, rows) of each comparison, in order."""
    for place, budget in sorted({(where(one), budget_of(one)) for one in rows}):
        yield place, budget[1], [one for one in rows if (where(one), budget_of(one)) == (place, budget)]


def quality_text(rows: Sequence[Row]) -> str:
    """Yardsticks, a table for each budget, paired tests; Markdown."""
    found = evaluated(rows)
    values = [one["values"] for one in rows if one["kind"] == "yardsticks"]
    lines = [*_yardsticks(values[-1])] if values else []
    for place, budget, own in grouped(found):
        lines += _of_budget(f"{place}, {budget}", own)
    return "\n".join((*lines, made_by(found)))


def asked_and_found(rows: Sequence[Row]) -> Iterator[str]:
    """A line of the page's first table for each space, size and budget that ours was evaluated with."""
    for method in OURS:
        for place, budget, own in grouped([one for one in evaluated(rows) if one["method"] == method]):
            accuracy = summary([one["accuracy"] for one in own])
            seeds = f"{len(own)} seed{'s' if len(own) > 1 else ''}"
            yield (
                f"| {method} on NAS-Bench-201, {place}, {budget}, {seeds} | no seed below {LEAST_GOOD}, mean "
                f"above {ALL_3X3} | least {accuracy.low:.2f}, mean {accuracy.mean:.2f} |"
            )


def _yardsticks(values: Mapping[str, float]) -> Iterator[str]:
    yield "| without a search | test accuracy, % |\n|---|---|"
    yield from (f"| {name} | {values[name]:.2f} |" for name in YARDSTICKS)
    yield ""


def ablations_text(rows: Sequence[Row]) -> str:
    """A table for each space and budget, and the base's paired tests with each other value; Markdown."""
    lines: list[str] = []
    for place, budget, own in grouped(rows):
        lines += _of_budget(f"{place}, {budget}", own, against=("base",))
    return "\n".join((*lines, made_by(rows)))


def collapse_text(rows: Sequence[Row]) -> str:
    """The command's own table, and what it was measured on."""
    return f"`{command.PROGRAM} collapse`\n\n```\n{table_text(rows)}\n```\n\n{made_by(rows)}"


def made_by(rows: Sequence[Row]) -> str:
    """Machines, commits and dates of a group of searches."""
    facts = [one["provenance"] for one in rows]
    machines, dates = sorted({one["machine"] for one in facts}), sorted(one["date_utc"][:10] for one in facts)
    commits = sorted({str(one["commit"])[:7] + (" with changes" if one["dirty"] else "") for one in facts})
    days = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return f"*{', '.join(machines)}; commit {', '.join(commits)}; {days}.*\n"


def _of_budget(budget: str, rows: Sequence[Row], against: Sequence[str] = OURS) -> Iterator[str]:
    yield f"**{budget} a search**\n"
    yield f"| {' | '.join(HEADS)} |\n{'|---' * len(HEADS)}|"
    groups = {
        name: [one for one in rows if one["method"] == name] for name in dict.fromkeys(one["method"] for one in rows)
    }
    for method, own in groups.items():
        accuracy = summary([one["accuracy"] for one in own])
        taus = " | ".join(mean_text(own, name) for name in ("tau", "tau_training", "tau_of_parameters"))
        bad = sum(one["accuracy"] < LEAST_GOOD for one in own)
        spread = f" ± {accuracy.sd:.2f}" if accuracy.n > 1 else ""
        yield (
            f"| {method} | {accuracy.n} | {accuracy.mean:.2f}{spread} | {accuracy.low:.2f} "
            f"| {accuracy.high:.2f} | {mean_text(own, 'regret')} | {bad} of {len(own)} | {taus} "
            f"| {mean_text(own, 'cpu_s', 0)} |"
        )
    yield ""
    yield from (f"- {line}" for name in against if name in groups for line in paired_lines(groups, name))
    yield ""
