"""What a finished search found, and its last lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..spaces.genotype import Genotype


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Where a finished search lies and what it found.

    Attributes:
        path: the run folder.
        genotype: the derived network.
        val_accuracy: of the derived cell with the super-net's weights on the alpha half, 0 to 1.
        peak_bytes: the largest measured peak of a step.
    """

    path: Path
    genotype: Genotype
    val_accuracy: float
    peak_bytes: int


def summary(result: SearchResult) -> str:
    """The last lines of a search, for the terminal."""
    cells = json.dumps(result.genotype.to_json_dict())
    return (
        f"derived cell: {cells}\n"
        f"validation accuracy of the derived cell with the super-net's weights: {result.val_accuracy:.1%}\n"
        f"largest measured peak of a step: {result.peak_bytes / 2**20:.1f} MiB\n"
        f"look at it: {result.path / 'report.html'}, or msgdas show {result.path}"
    )
