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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets beside the repository; the test is skipped where it is missing."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data folder {folder}")
    return folder
