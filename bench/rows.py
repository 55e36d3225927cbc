"""Rows of searches: flat JSON Lines that are only ever appended to, one per search, as it finishes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..engine.errors import DataError
from ..engine.run.rundir import read_metrics
from ..engine.settings.config import SearchConfig


def without_paths(config: SearchConfig) -> dict[str, Any]:
    """A configuration as it stands in a row: what decides a result, without where the images lay."""
    kept = asdict(config)
    del kept["data_root"]
    return {**kept, "data": config.data.partition(":")[0]}


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row as one line, its folder too where there is none; DataError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise DataError(
            f"{path} cannot be written", got=error.strerror, allowed="a writable place", next="another --out"
        ) from None


def rows_of(path: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of that kind, without lines that are not whole objects; [] where there is no file."""
    return [row for row in read_metrics(path) if row.get("kind") == kind]
