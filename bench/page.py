"""`python -m msgdas.bench page`: write docs/benchmarks.md and its pictures from the committed results.

Nothing is measured and nothing is typed in: every figure is computed from rows in bench/results, each with its
machine, commit and command.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..engine.cli import Parser
from ..engine.errors import DataError
from ..engine.report.draw import figure_bytes
from ..engine.report.figures import MIB
from . import command, gpu, kernels, latency, loaders, memory, speed, train
from .figures import (
    Value,
    against_k,
    images_per_s,
    memory_and_time,
    peak_mib,
    quality_and_cost,
    skips_over_time,
    step_ms,
)
from .nasbench import Table, yardsticks
from .page_quality import ablations_text, asked_and_found, collapse_text, evaluated, quality_text, where
from .page_text import (
    ABLATIONS,
    COLLAPSE,
    GPU,
    HEAD,
    KERNELS,
    LATENCY,
    LOADERS,
    MEMORY,
    NOTHING,
    PREDICTION,
    QUALITY,
    REGRESSIONS,
    SPEED,
    TRAIN,
)
from .results import FOLDER, Row, append, latest, provenance, read, warning
from .variants import BASE, published, sampled, title

ROOT = FOLDER.parent.parent
MIN = sampled(2, "min").name
# What quark0/darts saves for backward per image at C=16 and 8 layers, of distinct storages, parameters left out.
PUBLISHED_KEPT_MIB = 119.70
# How many times less memory per image, and time of a step, ours should take than a method as published.
ASKED = {"darts": (40.0, 10.0), "pc-darts": (13.0, 3.5), "gdas": (6.0, 1.4)}
CIFAR = ("darts", 32)
FILES = (
    "memory",
    "speed",
    "kernels",
    "quality",
    "ablations",
    "collapse",
    "loaders",
    "latency",
    "train",
    "gpu",
    "yardsticks",
)

Text = Callable[[Sequence[Row]], str]
# Sections that come where there are rows of their kind.
FURTHER: Mapping[str, tuple[str, Text]] = {
    "loaders": (LOADERS, loaders.table), "latency": (LATENCY, latency.table), "train": (TRAIN, train.table),
}  # fmt: skip
# A picture and the line below it.
PICTURE = re.compile(r"!\[[^]]*\]\(([\w-]+)\.png\)\n(?:\*[^\n]*\n)?\n")


def results(folder: Path) -> list[Row]:
    """The latest rows of the files of `FILES` that are there. DataError where there are none."""
    files = [path for name in FILES if (path := folder / f"{name}.jsonl").exists()]
    if not files:
        raise DataError(
            f"{folder} holds no results", got=f"none of {', '.join(FILES)}.jsonl",
            next=f"{command.PROGRAM} memory --out {folder / 'memory.jsonl'}",
        )  # fmt: skip
    return latest(one for path in files for one in read(path))


def _of(rows: Sequence[Row], kind: str) -> list[Row]:
    return [one for one in rows if one["kind"] == kind]


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one machine, date and size each, in the order of their first."""
    found: dict[str, list[Row]] = {}
    for one in rows:
        facts, config = one["provenance"], one["config"]
        size = [config.get(name) for name in ("space", "channels", "image", "batch")] if "space" in config else []
        key = json.dumps([facts["machine"], facts["command"], facts["date_utc"], size])
        found.setdefault(key, []).append(one)
    return list(found.values())


def _where(one: Row) -> str:
    """Machine, versions, commit and date of a row, in words."""
    facts = one["provenance"]
    cpu, versions = facts["cpu"], facts["versions"]
    commit = "no commit" if facts["commit"] is None else f"commit {facts['commit'][:7]}"
    commit += " with changes" if facts["dirty"] else ""
    threads = f", {facts['threads']} thread(s)" if "threads" in facts else ""
    gpus = "".join(f", {gpu['name']} (driver {gpu['driver']})" for gpu in facts["gpus"]) + warning(one, ", ")
    return (
        f"{facts['machine']} ({cpu['instructions']}, {cpu['mhz'] or 'unknown'} MHz){gpus}{threads}; Python "
        f"{versions['python']}, torch {versions['torch']}, Triton {versions['triton']}; {commit}; {facts['date_utc']}"
    )


def _measured(rows: Sequence[Row], table: Text) -> Iterator[str]:
    """Command, expected output and provenance of each group."""
    for group in _groups(rows):
        yield f"`{group[0]['provenance']['command']}`\n\n```\n{table(group)}\n```\n\n*{_where(group[0])}.*\n"


def _section(rows: Sequence[Row], kinds: Sequence[str], table: Text, hint: str) -> str:
    found = [one for one in rows if one["kind"] in kinds]
    return "\n".join(_measured(found, table)) if found else NOTHING.format(command=hint)


def _size(group: Sequence[Row]) -> Mapping[str, Any]:
    return group[0]["config"]


def _speed_table(group: Sequence[Row]) -> str:
    return speed.table(group, _size(group), group[0]["provenance"]["threads"])


def _cifar(rows: Sequence[Row], kind: str) -> list[list[Row]]:
    """The runs of a kind at CIFAR's size."""
    return _groups(
        [one for one in _of(rows, kind) if (one["config"].get("space"), one["config"].get("image")) == CIFAR]
    )


def targets(rows: Sequence[Row]) -> str:
    """Asked and measured at CIFAR's size, a line each; ratios are of rows of one run."""
    lines = ["| what | asked | measured |", "|---|---|---|"]
    for group in _cifar(rows, "memory"):
        dense = next((one for one in group if one["name"] == BASE), None)
        if dense is not None:
            kept = dense["figures"]["kept_per_image_bytes"]["median"] / MIB
            lines.append(f"| {BASE}: kept per image | {PUBLISHED_KEPT_MIB:.2f} MiB within 1 % | {kept:.2f} MiB |")
        lines += _ratios(group, "peak memory per image", peak_mib, 0)
    for group in _cifar(rows, "speed"):
        lines += _ratios(group, "time of a step", step_ms, 1)
    lines += asked_and_found(rows)
    return "\n".join(lines)


def _ratios(group: Sequence[Row], what: str, value: Value, place: int) -> Iterator[str]:
    by_name = {one["name"]: one for one in group}
    for method, asked in ASKED.items():
        theirs, ours = by_name.get(published(method).name), by_name.get(MIN)
        if theirs is not None and ours is not None:
            ratio = value(theirs) / value(ours)
            yield f"| {what}, {theirs['name']} against `{MIN}` | at least {asked[place]:g}x less | {ratio:.1f}x |"


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """The pictures that the rows allow, by file name without its end: the last measured run at CIFAR's size."""
    memory_runs, speed_runs = _cifar(rows, "memory"), _cifar(rows, "speed")
    peaks = memory_runs[-1] if memory_runs else []
    times = [one for one in speed_runs[-1] if "step_ms" in one["figures"]] if speed_runs else []
    found: dict[str, Figure] = {}
    if peaks:
        found["bench-memory"] = against_k(peaks, peak_mib, "peak of a step, MiB per image", title(_size(peaks)))
    if times:
        run = f"{title(_size(times))}\nbatch {_size(times)['batch']}, {times[0]['provenance']['machine']}"
        found["bench-throughput"] = against_k(times, images_per_s, "images a second", run)
        if peaks:
            found["bench-pareto"] = memory_and_time(peaks, times, run)
    searches = evaluated(rows)
    if searches:
        placed = [{**one, "where": where(one)} for one in searches]
        found["bench-quality"] = quality_and_cost(placed, searches[0]["provenance"]["machine"])
    collapse = _of(rows, "collapse")
    if collapse:
        found["bench-collapse"] = skips_over_time(collapse, collapse[0]["provenance"]["machine"])
    return found


def page(rows: Sequence[Row], drawn: Collection[str]) -> str:
    """The whole page as Markdown; of its pictures those that were drawn."""
    sections = (
        HEAD.format(targets=targets(rows)),
        MEMORY + _section(rows, ["memory"], lambda group: memory.table(group, _size(group)), "memory"),
        SPEED + _section(rows, ["speed"], _speed_table, "speed"),
        *([QUALITY, quality_text(rows)] if evaluated(rows) else []),
        *([ABLATIONS, ablations_text(_of(rows, "ablation"))] if _of(rows, "ablation") else []),
        *([COLLAPSE, collapse_text(_of(rows, "collapse"))] if _of(rows, "collapse") else []),
        KERNELS + _section(rows, ["kernels"], kernels.table, "kernels --parts cpu"),
        _section(rows, ["traffic"], kernels.table, "kernels --parts traffic"),
        *(words + _section(rows, [kind], table, kind) for kind, (words, table) in FURTHER.items() if _of(rows, kind)),
        *([GPU, _section(rows, ["gpu"], gpu.table, "gpu")] if _of(rows, "gpu") else []),
        PREDICTION + _section(rows, ["prediction"], kernels.table, "kernels --parts predictions"),
        REGRESSIONS,
    )
    text = "\n".join(section.strip("\n") + "\n" for section in sections)
    return PICTURE.sub(lambda found: found[0] if found[1] in drawn else "", text)


def main(argv: Sequence[str]) -> int:
    made = Parser(prog=f"{command.PROGRAM} page", description=(__doc__ or "").partition(": ")[2], allow_abbrev=False)
    made.add_argument("--results", type=Path, default=FOLDER, metavar="DIR", help="default: bench/results")
    made.add_argument("--table", type=Path, metavar="FILE",
                      help="first record from NAS-Bench-201's table what a search has to be held against")  # fmt: skip
    made.add_argument("--docs", type=Path, default=ROOT / "docs", metavar="DIR", help="default: docs")
    arguments = made.parse_args(argv)
    if arguments.table is not None:
        values = yardsticks(Table.read(arguments.table))
        facts = provenance(f"{command.PROGRAM} page --table FILE")
        append(arguments.results / "yardsticks.jsonl", [{"kind": "yardsticks", "values": values, "provenance": facts}])
    rows = results(arguments.results)
    arguments.docs.mkdir(parents=True, exist_ok=True)
    drawn = figures(rows)
    (arguments.docs / "benchmarks.md").write_text(page(rows, drawn), encoding="utf-8")
    for name, figure in drawn.items():
        for kind in ("svg", "png"):
            (arguments.docs / f"{name}.{kind}").write_bytes(figure_bytes(figure, kind))
    print(f"wrote {arguments.docs / 'benchmarks.md'} from {len(rows)} rows")
    return 0


if __name__ == "__main__":
    raise SystemExit(command.answer(main))
