"""The report's part on memory: peaks, the timeline of a step, and the prediction held against a real step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..run.history import History, number_or_nan
from ..run.rundir import PROBE
from . import figures
from .text import escaped, nothing, quantity
from .timeline import TimelineFile, last_timeline, timeline_figure

MIB = figures.MIB
MAX_PROBE_BYTES = 1 << 20
# At this scale the text of a wide figure is as large as that of the charts.
PX_PER_INCH = 105


def figure_html(figure: Figure, name: str, label: str, caption: str, *, wide: bool = False) -> str:
    """A figure with its caption (HTML); a wide one keeps its size on a phone and scrolls."""
    svg = figures.inline_svg(figure, name, escaped(label))
    width_px = round(PX_PER_INCH * figure.get_size_inches()[0])
    box = f'<div class="scroll" style="--natural: {width_px}px">{svg}</div>' if wide else svg
    return f"<figure>{box}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def charts_html(*charts: str, small: bool = False) -> str:
    """Figures side by side where there is room."""
    return f'<div class="charts{" small" if small else ""}">{"".join(charts)}</div>' if charts else ""


def memory_html(run_path: Path, history: History) -> str:
    """All that a run folder tells about memory."""
    if not history.peaks and not len(history.step):
        return nothing("No step yet.")
    source = f" Source: {escaped(history.source)}." if history.source else ""
    charts = []
    if history.peaks:
        caption = (
            "<b>Peak of a step.</b> Live bytes above what lived before the step (weights, alpha, optimizer state are "
            f"not in it), measured at the first step of each epoch.{source}"
        )
        charts.append(figure_html(figures.peak_figure(history), "peak", "Peak memory over epochs", caption))
    if any(math.isfinite(value) for value in history.values["rss_bytes"]):
        caption = "<b>RSS.</b> Everything the process holds: Python, libraries, data, weights. Source: the kernel."
        charts.append(figure_html(figures.rss_figure(history), "rss", "Resident memory over steps", caption))
    timeline = last_timeline(run_path)
    return charts_html(*charts) + ("" if timeline is None else _timeline(timeline)) + _probe(run_path)


def _timeline(timeline: TimelineFile) -> str:
    what = f"step {timeline.step}" if timeline.step else "a stretch of the run"
    caption = (
        f"<b>Memory during {what}.</b> {escaped(timeline.source)}, {escaped(timeline.thread)}: "
        f"peak {quantity(timeline.peak_bytes / MIB, 'MiB')}, {escaped(timeline.sampling)}. A spike shorter than the "
        "gap may have been missed. An allocator keeps what is freed for the next to ask, so this follows live tensors "
        "up and not down. Counting them makes the first step of an epoch slower than the others."
    )
    picture = figure_html(timeline_figure(timeline), "timeline", f"Memory during {what}", caption, wide=True)
    head = ("phase", "peak, MiB", "time, ms", "samples/s", "largest gap, ms")
    rows = [
        (
            phase.name, _number(phase.peak_bytes / MIB, 1), _number(phase.time_ms, 1), _number(phase.rate_hz, 0),
            _number(phase.largest_gap_ms, 1),
        )
        for phase in timeline.phases
    ]  # fmt: skip
    return picture + table_html("Phases of this step as a table", head, rows)


def table_html(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A folded table whose first column is text, the others numbers; nothing without rows."""
    if not rows:
        return ""
    cells = f'<th scope="col">{escaped(head[0])}</th>'
    cells += "".join(f'<th scope="col" class="number">{escaped(name)}</th>' for name in head[1:])
    lines = "".join(
        f'<tr><th scope="row">{escaped(row[0])}</th>'
        + "".join(f'<td class="number">{escaped(value)}</td>' for value in row[1:])
        + "</tr>"
        for row in rows
    )
    table = f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'
    return f"<details><summary>{escaped(title)}</summary>{table}</details>"


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else "none"


def _probe(run_path: Path) -> str:
    """Predicted against measured; nothing where no probe was made."""
    try:
        with open(run_path / PROBE, "rb") as file:
            found = json.loads(file.read(MAX_PROBE_BYTES))
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(found, dict):
        return ""
    predicted, measured = number_or_nan(found.get("predicted_bytes")), number_or_nan(found.get("measured_bytes"))
    if not math.isfinite(measured) or not measured:
        reason = escaped(found.get("reason") or "no number in probe.json")
        return f'<h3>Predicted and measured</h3><p class="alarm">The probe measured nothing: {reason}</p>'
    off, tolerance = predicted / measured - 1, number_or_nan(found.get("tolerance"))
    verdict = (
        f"Predicted {quantity(predicted / MIB, 'MiB', 2)}, measured {quantity(measured / MIB, 'MiB', 2)} "
        f"({escaped(found.get('source', ''))}): {off:+.2%}, tolerance {tolerance:.1%}."
    )
    alarm = ' class="alarm"' if not abs(off) <= tolerance else ""
    splits = [_split(found.get(f"{which}_split_bytes")) for which in ("predicted", "measured")]
    names = list(dict.fromkeys([*splits[0], *splits[1]]))
    rows = [
        (name, *(_number(number_or_nan(split.get(name)) / MIB, 2) for split in splits)) for name in names
    ]  # fmt: skip
    lead = "A step of the dearest operations in a process of its own, before the search."
    table = table_html("By category, of requested bytes", ("category", "predicted, MiB", "measured, MiB"), rows)
    return f"<h3>Predicted and measured</h3><p{alarm}>{lead} {verdict}</p>{table}"


def _split(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
