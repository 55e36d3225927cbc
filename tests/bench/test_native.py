"""Both sides of every line of bench.native do the same job."""

from __future__ import annotations

import pytest
from msgdas.bench.native import TOLERANCE, cases, error, times_ms
from msgdas.kernels import native


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
def test_jobs_agree_and_are_timed_in_turn():
    jobs = list(cases(channels=20, side=8, batch=2))
    assert len({job.name for job in jobs}) == len(jobs) > 20
    for job in jobs:
        assert error(job) < TOLERANCE, job.name
    plain, ours = times_ms(jobs[0], rounds=3)
    assert len(plain) == len(ours) == 3 and min(plain + ours) > 0
