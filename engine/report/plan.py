"""The report's part on the plan: what a budget was planned to, and the prediction held against a real step.

The files may be cut, old or edited, so that every value is checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..run.history import number_or_nan
from ..run.rundir import PLAN, PROBE, read_object
from .figures import MIB
from .page import folded, table_html
from .text import escaped, nothing, number_text, percent, quantity

CHOICES = ("k", "batch", "policy", "mode", "dtype")
MAX_ENTRIES = 400


def plan_html(run_path: Path) -> str:
    """All that plan.json and probe.json of a run folder tell."""
    made = read_object(run_path / PLAN)
    if not made:
        return nothing("No budget was given, so nothing was planned: msgdas search --budget plans.") + _probe(run_path)
    machine, chosen = _object(made.get("machine")), _object(made.get("plan"))
    settings = ", ".join(f"{key} {_word(chosen.get(key))}" for key in CHOICES if key in chosen)
    margin = percent(number_or_nan(made.get("margin")))
    budget = f"{_word(made.get('budget'))} ({quantity(_mib(made, 'budget_bytes'), 'MiB')}), of which {margin} stay free"
    speed = quantity(number_or_nan(chosen.get("samples_per_s")), "images/s", 0)
    lead = (
        f"<p>For {_word(machine.get('name'))} and a budget of {budget}: {settings}. "
        f"Predicted: {quantity(_mib(chosen, 'needed_bytes'), 'MiB')}, at most {speed}.</p>"
    )
    why = "".join(f"<li>{escaped(reason)}</li>" for reason in _list(chosen.get("why")))
    parts = [
        (name, number_text(number_or_nan(size) / MIB, 2)) for name, size in _object(chosen.get("split_bytes")).items()
    ]
    split = folded("Predicted peak by category", table_html(("category", "MiB"), parts))
    return lead + (f"<ul>{why}</ul>" if why else "") + split + _variation(made) + _probe(run_path)


def _variation(made: Mapping[str, Any]) -> str:
    """How the predicted peak differs from stage to stage of a K schedule, and from sample to sample."""
    lines = []
    stages = [
        (_plain(stage.get("k")), _mib(stage, "needed_bytes")) for stage in map(_object, _list(made.get("stages")))
    ]
    if len(stages) > 1:
        peaks = ", ".join(f"{quantity(size, 'MiB')} with {k}" for k, size in stages)
        lines.append(f"K schedule: {peaks}.")
    spread = [number_or_nan(size) / MIB for size in _list(made.get("spread_bytes"))]
    if spread:
        low, high = quantity(min(spread), "MiB"), quantity(max(spread), "MiB")
        lines.append(f"{len(spread)} samples from the first alpha take {low} to {high}; planned is the dearest.")
    return f"<p>{escaped(' '.join(lines))}</p>" if lines else ""


def _probe(run_path: Path) -> str:
    """Predicted against measured; nothing where no probe was made."""
    found = read_object(run_path / PROBE)
    if not found:
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
    splits = [_object(found.get(f"{which}_split_bytes")) for which in ("predicted", "measured")]
    names = list(dict.fromkeys([*splits[0], *splits[1]]))
    rows = [
        (name, *(number_text(number_or_nan(split.get(name)) / MIB, 2) for split in splits)) for name in names
    ]  # fmt: skip
    lead = "A step of the dearest operations in a process of its own, before the search."
    table = table_html(("category", "predicted, MiB", "measured, MiB"), rows)
    return f"<h3>Predicted and measured</h3><p{alarm}>{lead} {verdict}</p>" + folded(
        "By category, of requested bytes", table
    )


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[Any]:
    return value[:MAX_ENTRIES] if isinstance(value, list) else ()


def _mib(values: Mapping[str, Any], name: str) -> float:
    return number_or_nan(values.get(name)) / MIB


def _plain(value: object) -> str:
    return "none" if value is None else str(value)


def _word(value: object) -> str:
    return escaped(_plain(value))
