"""What `pytest bench --benchmark-only` writes beside its times: the project's provenance, no host and no branch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from msgdas.bench.results import dirty, provenance
from msgdas.engine.run.environment import commit
from msgdas.profiles.errors import one_line

COMMAND = "pytest bench --benchmark-only"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    """Facts that must be equal for times to be compared; pytest-benchmark warns where they are not."""
    facts = provenance(COMMAND)
    return {"machine": facts["machine"], "instructions": facts["cpu"]["instructions"], "system": facts["system"]}


def pytest_benchmark_generate_commit_info() -> dict[str, Any]:
    """Of the source tree."""
    return {"id": commit() or "none", "dirty": dirty()}


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Clocks, versions, date; single rounds are left out."""
    for one in output_json["benchmarks"]:
        one["stats"].pop("data", None)
    output_json["provenance"] = provenance(COMMAND, threads=1)


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_compare_machine_info(machine_info: dict[str, Any], compared_benchmark: dict[str, Any]) -> None:
    """Leave with exit code 4 where a baseline is another machine's."""
    theirs = compared_benchmark["machine_info"]
    if theirs != machine_info:
        reason = one_line("the baseline is of another machine", got=theirs, allowed=str(machine_info),
                          next="pytest bench --benchmark-only --benchmark-json=FILE makes one of this")  # fmt: skip
        pytest.exit(reason, returncode=pytest.ExitCode.USAGE_ERROR)
