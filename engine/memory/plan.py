"""`msgdas plan`: what a search would take on a device, as text or JSON, with a chart; nothing is run."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from ...profiles.budget import parse
from ..errors import RunFolderError
from ..report.draw import figure_bytes
from ..run.rundir import PLAN
from ..settings.config import SearchConfig
from ..supernet.implementation import device_of
from .machine import machine_named, processor
from .plan_figure import plan_figure
from .plan_text import as_dict, markdown, text
from .planning import methods_named, plan_search
from .search_plan import SearchPlan

FOLDER = Path("runs/plan")


def plan(
    config: SearchConfig,
    *,
    pins: Collection[str],
    gpu: str | None,
    budget: str,
    methods: str,
    out: Path | None,
    form: str,
    workers: int,
) -> str:
    """What `msgdas plan` prints; writes plan.json, plan.png and plan.svg.

    Args:
        config: of the search.
        pins: its keys that the user gave; the plan decides the others.
        gpu: see `machine_named`.
        budget: as `budget.parse` reads it.
        methods: names joined by commas, all where empty.
        out: folder for the files, runs/plan where None.
        form: text, json or markdown.
        workers: see `plan_search`.

    Raises:
        ProfileError: no such device or budget.
        BudgetError: nothing fits.
        ConfigError: a setting that no search can run with.
        RunFolderError: `out` cannot be written to.
    """
    wanted = parse(budget)
    machine = machine_named(gpu)
    made = plan_search(config, machine, wanted, pins=pins, methods=methods_named(methods), workers=workers)
    files = _written(made, FOLDER if out is None else out)
    if form == "json":
        return json.dumps({**as_dict(made), "files": files}, indent=2)
    return markdown(made) if form == "markdown" else text(made, files)


def plan_here(config: SearchConfig, budget: str, *, pins: Collection[str]) -> SearchPlan:
    """The plan for a search on this machine, on the device that `config.device` stands for.

    Raises:
        ProfileError, BudgetError, ConfigError: as `plan`.
    """
    wanted = parse(budget)
    machine = machine_named("auto") if device_of(config).type == "cuda" else processor()
    return plan_search(config, machine, wanted, pins=pins)


def _written(made: SearchPlan, folder: Path) -> dict[str, str]:
    figure = plan_figure(made)
    contents = {
        PLAN: json.dumps(as_dict(made), indent=2).encode(),
        "plan.png": figure_bytes(figure, "png"),
        "plan.svg": figure_bytes(figure, "svg"),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise RunFolderError(
            f"cannot write the plan to {folder}", got=error.strerror or str(error), allowed="a writable folder",
            next="msgdas plan --out DIR",
        ) from None  # fmt: skip
    return {Path(name).suffix[1:]: str(folder / name) for name in contents}
