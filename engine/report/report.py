"""The report: one HTML page about a search or a training, made from the files of its folder alone."""

from __future__ import annotations

from pathlib import Path

from ..errors import EngineError
from ..run.rundir import CONFIG, is_training
from .page import save_page
from .search_page import search_page
from .subject import SearchRun, read_run
from .training_page import training_page

REPORT = "report.html"


def write_report(run_path: Path, out: Path | None = None) -> Path:
    """Write the page about a run folder and return its path, RUN/report.html by default.

    A run that has not finished, or just begun, gets one too.

    Raises:
        EngineError: where the folder is no run folder of this version.
        OSError: where the page cannot be written.
    """
    text = page(run_path)
    path = out or run_path / REPORT
    save_page(text, path)
    return path


def page(run_path: Path) -> str:
    """The page's HTML. Raises EngineError as `write_report` does."""
    run = read_run(run_path)
    return search_page(run) if isinstance(run, SearchRun) else training_page(run)


def refresh_parent(run_path: Path) -> str:
    """Write the page of the search in whose folder a training lies anew, if there is one.

    Returns:
        What became of it, in a line; "" where the training lies in no search's folder.
    """
    parent = run_path.absolute().parent
    if not (parent / CONFIG).is_file():
        return ""
    try:
        return "" if is_training(parent) else f"report {write_report(parent)}"
    except (EngineError, OSError, ValueError) as error:
        return f"warning: the report of the search in {parent} is as it was ({error})"
