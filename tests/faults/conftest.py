"""The two runs that nothing happened to, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgdas.engine.cli import main

from .jobs import JOBS, Job


@pytest.fixture(params=JOBS)
def job(request: pytest.FixtureRequest) -> Job:
    """`msgdas search`, then `msgdas train`."""
    return JOBS[request.param]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run folder of each."""
    found = {name: tmp_path_factory.mktemp("whole") / name for name in JOBS}
    for name, path in found.items():
        assert main(JOBS[name].words(path)) == 0
    return found


@pytest.fixture
def whole(job: Job, runs: dict[str, Path]) -> Path:
    """The finished run folder of the test's command."""
    return runs[job.verb]
