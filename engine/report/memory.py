"""The report's part on memory: peaks, and the timeline of a step."""

from __future__ import annotations

import math
from pathlib import Path

from ..run.history import Course
from . import figures
from .page import charts_html, figure_html, folded, table_html
from .text import escaped, nothing, number_text, quantity
from .timeline import TimelineFile, last_timeline, timeline_figure

MIB = figures.MIB
_WHEN = "measured at the first step of each epoch"
PEAK_NOTES = {
    "search": f"Live bytes above what lived before the step (weights, alpha, optimizer state are not in it), {_WHEN}.",
    "train": f"Live bytes, with images, weights and optimizer state, {_WHEN}.",
}


def memory_html(run_path: Path, history: Course) -> str:
    """All that a run folder tells about memory."""
    if not history.peaks and not len(history.step):
        return nothing("No step yet.")
    source = f" Source: {escaped(history.source)}." if history.source else ""
    charts = []
    if history.peaks:
        caption = f"<b>Peak of a step.</b> {PEAK_NOTES[history.config.command]}{source}"
        charts.append(figure_html(figures.peak_figure(history), "peak", "Peak memory over epochs", caption))
    if any(math.isfinite(value) for value in history.values["rss_bytes"]):
        caption = "<b>RSS.</b> Everything the process holds: Python, libraries, data, weights. Source: the kernel."
        charts.append(figure_html(figures.rss_figure(history), "rss", "Resident memory over steps", caption))
    timeline = last_timeline(run_path)
    return charts_html(*charts) + ("" if timeline is None else _timeline(timeline))


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
            phase.name, number_text(phase.peak_bytes / MIB, 1), number_text(phase.time_ms, 1),
            number_text(phase.rate_hz, 0), number_text(phase.largest_gap_ms, 1),
        )
        for phase in timeline.phases
    ]  # fmt: skip
    return picture + folded("Phases of this step as a table", table_html(head, rows))
