"""A whole search step by the kernels: no wait for the device, few launches, no more memory than the plain path."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from msgdas.bench.memory import slope
from msgdas.bench.step import build_step
from msgdas.kernels import backend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

# Operators that make no kernel run on a device.
VIEWS = {
    "view", "t", "permute", "expand", "unsqueeze", "select", "slice", "as_strided", "detach", "transpose", "unbind",
    "split", "_unsafe_view", "alias", "squeeze", "_reshape_alias", "empty", "new_empty", "empty_like", "empty_strided",
    "lift_fresh", "scalar_tensor",
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {}, {"mode": "subgraphs"}, {"policy": "bn", "dtype": "bfloat16"}, {"k": 8},
        {"space": "nasbench201", "layers": 3},
      {"method": "gdas"}, {"stem": "imagenet", "image": 64},
    ],
)  # fmt: skip
def test_a_step_reads_nothing_from_the_device(options):
    with FakeTensorMode():
        step = build_step(impl="triton", channels=8, batch=4, **{"layers": 5, **options})
        step.forward()
        step.step()
        step.step()


class Launches(TorchDispatchMode):
    """Counts operators that are not views; the kernels' own are counted where they launch."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        space, name = func._schema.name.split("::")
        if space != "msgdas" and name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def test_launches_of_one_forward(monkeypatch):
    if not backend.interpreting():
        pytest.skip("counts the interpreter's launches")
    from triton.runtime import interpreter

    step = build_step(impl="triton", channels=8, layers=5, batch=2, image=8)
    launches = Launches()
    call = interpreter.GridExecutor.__call__

    def counted(self, *args, **kwargs):
        launches.counts["triton"] += 1
        return call(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)
    with launches:
        step.forward()
    assert launches.counts["triton"] >= 100
    assert sum(launches.counts.values()) <= 220


@pytest.mark.parametrize("policy", ["min", "bn", "nodes"])
def test_memory_is_no_higher_than_the_plain_paths_and_half_in_bf16(policy):
    plain = slope((8, 16), policy=policy, impl="reference").per_sample_bytes
    with FakeTensorMode():
        fused = slope((8, 16), policy=policy, impl="triton").per_sample_bytes
        half = slope((8, 16), policy=policy, impl="triton", dtype="bfloat16").per_sample_bytes
    assert fused <= 1.005 * plain
    assert half <= 0.51 * fused


def test_flops_are_counted():
    with FakeTensorMode():
        step = build_step(impl="triton", layers=2, batch=2)
        with FlopCounterMode(display=False) as counter:
            step.forward()
    counts = counter.get_flop_counts()["Global"]
    assert counts[torch.ops.msgdas.grouped_stage] > counts[torch.ops.aten.convolution] > 0
