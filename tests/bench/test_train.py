"""The benchmark of a training step: its gate, and a row of a tiny network."""

from __future__ import annotations

import json

import pytest
from msgdas.bench import train


def test_the_gate_holds_for_the_published_cells() -> None:
    for name in ("DARTS_V2", "NASNet"):
        gate = train.gradient_gate(name)
        assert gate.passed, gate.reason
        assert set(gate.errors) == {"NCHW", "msgdas"}


def test_rows_compare_with_plain_torch(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--channels", "4", "--layers", "3", "--batch", "4", "--rounds", "2", "--json"]
    assert train.main(arguments) == 0
    plain, ours = (json.loads(text) for text in capsys.readouterr().out.splitlines())
    assert plain["figures"]["faster"]["median"] == 1.0
    assert ours["figures"]["of_memory"]["median"] < 1.0
