"""A recorded memory timeline as checked values and as a figure with its phases shaded. Nothing here imports torch.

The file may be cut, old or edited, so what is not a timeline counts as none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..run.history import Floats, number_or_nan
from .figures import BLUE, GREEN, INK, MIB, ORANGE, PAPER, PURPLE, RED, STYLE

MAX_BYTES = 1 << 22
MAX_MS, MAX_MEMORY_BYTES = 1e10, float(1 << 60)
OTHER_COLOURS = (GREEN, PURPLE, RED, "#8a939d")
# Forward is the lighter of a step's two; what is not named here takes the next of the others.
COLOURS = {
    "alpha forward": ("#f0b27a", 0.45), "alpha backward": (ORANGE, 0.45), "W forward": ("#90b8e0", 0.45),
    "W backward": (BLUE, 0.45), "optimizer": (GREEN, 0.55), "alpha step": (ORANGE, 0.35), "W step": (BLUE, 0.35),
    "alpha draw": ("#8a939d", 0.25), "W draw": ("#8a939d", 0.25),
}  # fmt: skip
MAX_SPANS = 4000


@dataclass(frozen=True, slots=True)
class Phase:
    """What a phase took in all of its stretches; NaN where the file does not tell."""

    name: str
    peak_bytes: float
    time_ms: float
    rate_hz: float
    largest_gap_ms: float


@dataclass(frozen=True, slots=True)
class TimelineFile:
    """A timeline as a file has it.

    Attributes:
        step: number of the step that it shows, counted from 1; 0 where it shows none in particular.
        source, thread: whose memory, and what sampled it.
        peak_bytes, rate_hz, largest_gap_ms: of the whole.
        times_ms, bytes: the samples, thinned so that peaks stay.
        spans: (phase, first, last millisecond).
        phases: the same summed up.
        live_times_ms, live_bytes: live tensors, those between steps included; empty where they were not counted.
    """

    step: int
    source: str
    thread: str
    peak_bytes: float
    rate_hz: float
    largest_gap_ms: float
    times_ms: Floats
    bytes: Floats
    spans: tuple[tuple[str, float, float], ...]
    phases: tuple[Phase, ...]
    live_times_ms: Floats
    live_bytes: Floats

    @property
    def sampling(self) -> str:
        """What stands beside every peak."""
        return f"{self.rate_hz:,.0f} samples/s achieved, largest gap {self.largest_gap_ms:.1f} ms"

    @classmethod
    def of(cls, values: object) -> TimelineFile | None:
        """The timeline in a JSON value, None where it is none."""
        if not isinstance(values, dict):
            return None
        x, y = _series(values, "times_ms", "bytes")
        live_x, live_y = _series(values, "live_times_ms", "live_bytes")
        peak, rate, gap = (number_or_nan(values.get(name)) for name in ("peak_bytes", "rate_hz", "largest_gap_ms"))
        if not len(x) or not math.isfinite(peak + rate + gap):
            return None
        step, source, thread = (values.get(name) for name in ("step", "source", "thread"))
        return cls(
            step if type(step) is int and 0 < step < 1 << 53 else 0, source if isinstance(source, str) else "",
            thread if isinstance(thread, str) else "", peak, rate, gap, x, y, _spans(values.get("phases")),
            _phases(values.get("by_phase")), live_x, live_y,
        )  # fmt: skip


def read_timeline(path: Path) -> TimelineFile | None:
    """The timeline of a file, None where there is none that can be read."""
    try:
        with open(path, "rb") as file:
            return TimelineFile.of(json.loads(file.read(MAX_BYTES)))
    except (OSError, ValueError, RecursionError):
        return None


def last_timeline(run_path: Path) -> TimelineFile | None:
    """Of the latest step that a run folder has one of."""
    numbered = [
        (int(path.stem.removeprefix("timeline-")), path)
        for path in run_path.glob("timeline-*.json")
        if path.stem.removeprefix("timeline-").isdecimal()
    ]
    found = (read_timeline(path) for _, path in sorted(numbered, reverse=True))
    return next((timeline for timeline in found if timeline is not None), None)


def _series(values: Mapping[str, Any], x_name: str, y_name: str) -> tuple[Floats, Floats]:
    """Two columns of numbers that a clock and a memory can show, of one length; empty where the file has none."""
    none = np.empty(0, dtype=np.float64)
    first, second = values.get(x_name), values.get(y_name)
    if not isinstance(first, list) or not isinstance(second, list) or len(first) != len(second):
        return none, none
    x, y = (np.array([number_or_nan(value) for value in column], dtype=np.float64) for column in (first, second))
    sound = ((x >= 0) & (x < MAX_MS)).all() and ((y >= 0) & (y < MAX_MEMORY_BYTES)).all()
    return (x, y) if sound else (none, none)


def _spans(value: object) -> tuple[tuple[str, float, float], ...]:
    spans = []
    for entry in value[:MAX_SPANS] if isinstance(value, list) else ():
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
            continue
        start, end = number_or_nan(entry[1]), number_or_nan(entry[2])
        if math.isfinite(start) and math.isfinite(end) and start <= end:
            spans.append((entry[0], start, end))
    return tuple(spans)


def _phases(value: object) -> tuple[Phase, ...]:
    entries: Mapping[Any, Any] = value if isinstance(value, dict) else {}
    return tuple(
        Phase(name, *(number_or_nan(of.get(key)) for key in ("peak_bytes", "time_ms", "rate_hz", "largest_gap_ms")))
        for name, of in entries.items()
        if isinstance(of, dict)
    )


@matplotlib.rc_context(STYLE)
def timeline_figure(timeline: TimelineFile) -> Figure:
    """Memory in MiB over the milliseconds of a recording, its phases shaded and its peaks marked.

    Live tensors, where they were counted, stand above what was sampled, each with an axis of its own.
    """
    panels = [(timeline.times_ms, timeline.bytes, timeline.source, timeline.peak_bytes)]
    if len(timeline.live_times_ms):
        live = timeline.live_bytes
        panels.insert(0, (timeline.live_times_ms, live, "live tensors", float(live.max())))
    figure = Figure(figsize=(9.2, 0.8 + 2.3 * len(panels)), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    looks = _looks([name for name, _, _ in timeline.spans])
    first, last = float(timeline.times_ms[0]), float(timeline.times_ms[-1])
    for axes, (x, y, label, peak_bytes) in zip(grid, panels, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        for name, start, end in _merged(timeline.spans, (last - first) / 2000):
            colour, strength = looks[name]
            axes.axvspan(start, end, color=colour, alpha=strength, linewidth=0, zorder=0)
        _draw_course(axes, x, y / MIB, peak_bytes / MIB)
        axes.set_ylabel(f"{label} (MiB)")
    grid[-1].set_xlim(first, max(last, first + 1e-3))
    grid[-1].set_xlabel("time (ms)")
    patches = [Patch(color=colour, alpha=strength, label=name) for name, (colour, strength) in looks.items()]
    if patches:
        figure.legend(handles=patches, loc="outside upper left", ncols=len(patches), columnspacing=1.0,
                      handlelength=1.2, fontsize=8, frameon=False)  # fmt: skip
    return figure


def _draw_course(axes: Axes, x: Floats, y: Floats, peak: float) -> None:
    """One course in MiB with its peak; a scale that shows a hundredth as little."""
    axes.step(x, y, where="post", color=INK, linewidth=1.1)
    top = int(np.argmax(y))
    axes.plot([x[top]], [y[top]], marker="v", color=RED, markersize=5, zorder=4)
    right = x[top] > (x[0] + x[-1]) / 2
    axes.annotate(
        f"peak {peak:,.1f} MiB", (x[top], y[top]), xytext=(-6 if right else 6, 5), textcoords="offset points",
        ha="right" if right else "left", color=RED, fontsize=8,
    )  # fmt: skip
    room = max(float(y.max() - y.min()), 0.05 * float(y.max()), 0.1)
    axes.set_ylim(max(0.0, float(y.min()) - 0.1 * room), float(y.min()) + 1.25 * room)


def _looks(names: Sequence[str]) -> dict[str, tuple[str, float]]:
    """(colour, strength) of each phase, in the order of their first appearance; at most eight."""
    looks: dict[str, tuple[str, float]] = {}
    for name in names:
        other = OTHER_COLOURS[len(looks) % len(OTHER_COLOURS)], 0.3
        looks.setdefault(name, COLOURS.get(name, other))
    return dict(list(looks.items())[:8])


def _merged(spans: Sequence[tuple[str, float, float]], near_ms: float) -> list[tuple[str, float, float]]:
    """Stretches of a phase that lie closer than the eye can tell, as one; those without a look left out."""
    looks = _looks([name for name, _, _ in spans])
    merged: list[tuple[str, float, float]] = []
    for name, start, end in spans:
        if name not in looks:
            continue
        if merged and merged[-1][0] == name and start - merged[-1][2] <= near_ms:
            merged[-1] = (name, merged[-1][1], end)
        else:
            merged.append((name, start, end))
    return merged


def save_timeline(timeline: TimelineFile, folder: Path) -> list[Path]:
    """Write timeline.svg and timeline.png into a folder.

    Raises:
        OSError: where they cannot be written.
    """
    figure = timeline_figure(timeline)
    paths = [folder / "timeline.svg", folder / "timeline.png"]
    with matplotlib.rc_context(STYLE):
        for path in paths:
            figure.savefig(path, dpi=150)
    return paths
