"""Fixtures shared by all tests, and Triton's mode."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Triton decides once, when it is first imported, whether it interprets kernels; many modules import it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also compile and count every kernel in every form")


@pytest.fixture
def full_tables(request: pytest.FixtureRequest) -> None:
    """Skips the test unless `--full` was given; it takes many minutes."""
    if not request.config.getoption("--full"):
        pytest.skip("many minutes: pytest --full")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets beside the repository; the test is skipped where it is missing."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data folder {folder}")
    return folder
