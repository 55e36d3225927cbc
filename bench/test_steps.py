"""Times of search steps, for regressions: C=16, 8 layers, 32x32, batch 16, the same draws in every run."""

from __future__ import annotations

import pytest
from msgdas.bench.gate import gates_of
from msgdas.bench.step import build_step
from msgdas.bench.variants import AUTOGRAD, Variant, in_engine, sampled, size_of
from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 5
VARIANTS = (
    *(sampled(k, "min") for k in (1, 2, 8)),
    *(sampled(2, policy) for policy in ("bn", AUTOGRAD)),
    sampled(2, "min", impl="reference"),
    sampled(2, "min", mode="subgraphs"),
    in_engine("gdas"),
)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_step(benchmark: BenchmarkFixture, variant: Variant) -> None:
    gates_of([variant], "darts")
    step = build_step(method=variant.method, batch=16, **size_of("darts"), **variant.options)
    benchmark.pedantic(step.step, rounds=ROUNDS, warmup_rounds=1)
