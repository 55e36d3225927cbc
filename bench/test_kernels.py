"""Times of the C++ kernels, for regressions: maps of 32x32 and batch 16."""

from __future__ import annotations

import functools

import pytest
from msgdas.bench.native import TOLERANCE, Case, cases, error
from msgdas.kernels import native
from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 51
CHANNELS = (16, 64)
NAMES = [case.name for case in cases(16, 4, 2)] if native.why_not() is None else []

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))


@functools.cache
def jobs(channels: int) -> dict[str, Case]:
    return {case.name: case for case in cases(channels, 32, 16)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_kernel(benchmark: BenchmarkFixture, channels: int, name: str) -> None:
    case = jobs(channels)[name]
    assert error(case) <= TOLERANCE
    benchmark.pedantic(case.ours, rounds=ROUNDS, warmup_rounds=3)
