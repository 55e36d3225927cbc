"""Plans for random budgets, each run for real in a process whose allocator may take no more than the budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

BUDGETS = 8
# The limit counts mapped memory; what lies between blocks on the heap is not torch's to give back.
MMAP_THRESHOLD_BYTES = 1 << 16
CAPPED = """
import ctypes, gc, json, random, resource, sys
from pathlib import Path
import torch
from msgdas.engine.memory.machine import Machine
from msgdas.engine.memory.planning import plan_search
from msgdas.engine.memory.probe import dearest_learner
from msgdas.engine.settings.recipes import demo
from msgdas.engine.learning.steps import Moment
from msgdas.profiles.budget import Budget
torch.set_num_threads(1)
MIB = 1 << 20
machine = Machine("a processor", False, 1 << 40, 1 << 40, 1e10, {"float32": 1e11})
base = demo(space="nasbench201", channels=8, layers=3, image=32, batch=64, limit=4096)

def data_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))

def fits(config, cap_bytes):
    # What lives between steps is there before the cap and counts against it.
    learner = dearest_learner(config, torch.device("cpu"), 10)
    images = torch.randn(config.batch, 3, config.image, config.image).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(config.batch, dtype=torch.int64)
    held = learner.state_bytes() + images.nbytes + labels.nbytes
    moment = Moment(0, 1.0, 0.0, 0.3, guided=True)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + cap_bytes - held, hard))
    try:
        for phase in (learner.weight_step, learner.alpha_step, learner.weight_step):
            phase(images, labels, moment)
        return True
    except (RuntimeError, MemoryError):
        return False
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))

draw = random.Random(0)
rows = []
for _ in range(int(sys.argv[1])):
    budget_bytes = draw.randrange(40 * MIB, 300 * MIB)
    made = plan_search(base, machine, Budget(budget_bytes))
    predicted_bytes = made.plan.prediction.needed_bytes
    # What oneDNN makes and keeps for each new shape is in the plan's workspaces, not in the step.
    fits(made.config, 1 << 40)
    rows.append((budget_bytes, predicted_bytes, fits(made.config, budget_bytes),
                 fits(made.config, int(0.7 * predicted_bytes))))
print(json.dumps(rows))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux")
def test_no_plan_needs_more_than_its_budget():
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CAPPED, str(BUDGETS)], capture_output=True, text=True, timeout=500,
        check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == BUDGETS
    assert all(within for _, _, within, _ in rows), rows
    assert not any(far_below for *_, far_below in rows), "a cap that nothing feels proves nothing"
    used = sorted(predicted / budget for budget, predicted, _, _ in rows)
    assert used[BUDGETS // 2] >= 0.92
