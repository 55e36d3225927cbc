"""The scratch that the kernels declare is what their launchers allocate, at every size that ships."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILING = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
PROGRAM = Path(__file__).with_name("launch_scratch.py")


@pytest.fixture(scope="module")
def found():
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, env=COMPILING, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_launcher_was_seen(found):
    from msgdas.kernels import scratch

    assert set(found) >= set(scratch._SCRATCH)


@pytest.mark.parametrize(
    "name",
    [
        "bn_combine", "bn_combine_backward", "drop_mask", "gather_backward", "grouped_stage", "point_backward",
        "prepare_backward", "prepare_into", "stage_weight_grads", "taps_backward",
    ],
)  # fmt: skip
def test_declared_is_what_is_allocated(found, name):
    assert found[name]
    for inside_bytes, declared_bytes in found[name]:
        assert declared_bytes == inside_bytes
