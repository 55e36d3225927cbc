"""`msgdas compare`: runs side by side, as a table for the terminal, as JSON and as one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import RunFolderError
from ..run.history import LARGEST
from .compare_page import comparison_page
from .comparison import ACCURACIES, MEASURES, Comparison, Run, Spread, comparison, setting_text, table_rows
from .page import save_page
from .subject import TrainRun

COMPARISON = "compare.html"


def compare(paths: Sequence[Path], *, out: Path | None = None, as_json: bool = False) -> str:
    """What `msgdas compare` prints; writes the page.

    Args:
        paths: run folders of searches and trainings, two or more.
        out: file of the page, compare.html by default.
        as_json: whether to return JSON.

    Raises:
        ConfigError: for fewer than two folders, or one given twice.
        EngineError: as `read_run`.
        RunFolderError: where the page cannot be written.
    """
    made = comparison(paths)
    path = out or Path(COMPARISON)
    try:
        save_page(comparison_page(made), path)
    except OSError as error:
        raise RunFolderError(
            f"cannot write the page {path}", got=error.strerror, allowed="a file in a writable folder",
            next="another --out",
        ) from None  # fmt: skip
    return json.dumps(_as_dict(made, path), indent=2) if as_json else _text(made, path)


def _text(made: Comparison, path: Path) -> str:
    rows = [made.head, *table_rows(made)[0]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(made.head))]
    lines = [
        "  ".join(
            value.ljust(width) if column < 2 else value.rjust(width)
            for column, (value, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    for command, keys in made.differing.items():
        for key, values in keys.items():
            lines.append(
                f"{command} {key}: {', '.join(f'{name} {setting_text(value)}' for name, value in values.items())}"
            )
    for place in dict.fromkeys(cost.place for _, cost in made.measured):
        names = ", ".join(name for name, cost in made.measured if cost.place == place)
        lines.append(f"measured on {place}: {names}")
    return "\n".join([*lines, *made.notes, f"page: {path}"])


def _as_dict(made: Comparison, path: Path) -> dict[str, Any]:
    """The comparison for programs; what a run does not tell is null."""
    return {
        "runs": [_run_dict(name, run) for name, run in made.named],
        "groups": [
            {
                "runs": list(group.names), "seeds": [run.config.seed for run in group.runs],
                **{key: _spread_dict(of) for key, of in group.spreads.items()},
            }
            for group in made.groups
        ],
        "differing": made.differing,
        "page": str(path),
    }  # fmt: skip


def _run_dict(name: str, run: Run) -> dict[str, Any]:
    usual = run.usual_cost
    return {
        "name": name, "command": run.config.command, "finished": run.finished, "epochs": len(run.history.epochs),
        "of_epochs": run.config.epochs, "seed": run.config.seed, "accuracy_is": ACCURACIES[run.config.command],
        **{measure.key: _finite(measure.of(run)) for measure in MEASURES},
        "counted_at": None if usual is None else asdict(usual[0]),
        "trained": {**asdict(run.size), **asdict(run.cost)} if isinstance(run, TrainRun) else None,
        "measured": run.measured.to_json_dict() if isinstance(run, TrainRun) and run.measured else None,
        "skips_by_cell": dict(run.skips), "genotype": run.genotype.to_json_dict() if run.genotype else None,
    }  # fmt: skip


def _spread_dict(found: Spread) -> dict[str, Any]:
    return {"mean": _finite(found.mean), "sd": _finite(found.sd), "n": found.n}


def _finite(value: float) -> float | None:
    return value if abs(value) < LARGEST else None
