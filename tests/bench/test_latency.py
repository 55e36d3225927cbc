"""The latency benchmark on a few cells: rows as the others', and an error that prediction brings down."""

from __future__ import annotations

import json

import pytest
from msgdas.bench.latency import distinct_cells, main


def test_sixty_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """Looser than the benchmark's bound: fewer cells and rounds, on a machine that may be busy."""
    assert main(["--cells", "60", "--image", "16", "--rounds", "9", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["figures"]["relative_error_fitted"]["median"] < 0.15
    assert len(distinct_cells(40, 1)) == len(set(distinct_cells(40, 1))) == 40
