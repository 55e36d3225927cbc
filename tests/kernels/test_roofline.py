"""Predicted times: what they are made of."""

from __future__ import annotations

import pytest
from msgdas.kernels import budgets, roofline


def test_tap_loops_cost_what_the_compiler_reported():
    found = {row.kernel: row for row in roofline.predictions(branches=3) if (row.channels, row.side) == (16, 32)}
    taps = 3 * 64 * 32 * 32 * 16 * 25
    per_tap = budgets.read()["kernels"]["stage_kernel"]["sm_90"]["per_tap"]
    assert found["stage, first"].issue_us == pytest.approx(1e6 * taps * per_tap / roofline.ISSUE_RATE)
    assert found["combine"].issue_us == 0
    assert found["combine"].bound == "bytes"
