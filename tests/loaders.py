"""The loaders that decode while a search runs, as parameters of tests; DALI only where it can run."""

from __future__ import annotations

import pytest
import torch
from msgdas.engine.images import dali

needs_dali = pytest.mark.skipif(dali.why_not(torch.device("cpu")) is not None, reason="needs DALI")
LOADERS = ["torch", pytest.param("dali", marks=needs_dali)]
