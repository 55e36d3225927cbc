"""Measured costs of a network against other counts of the same."""

from __future__ import annotations

import json

import torch
from msgdas.engine.report.cost import MeasuredCost
from msgdas.engine.settings.train_config import demo
from msgdas.engine.spaces.costs import NetworkSize
from msgdas.engine.spaces.genotype_text import load_any
from msgdas.engine.training.cost import cost_of, measure_network
from msgdas.engine.training.student import Student
from msgdas.profiles.meter import allocated_peak
from msgdas.profiles.timing import LEAST_RUNS, MOST_RUNS, warm_runs_ms

CELL = load_any("DARTS_V2")
SIZE = NetworkSize(8, 3, 16, 10, "cifar")
CPU = torch.device("cpu")


def student(**changes) -> Student:
    values = {"genotype": json.dumps(CELL.to_json_dict()), "channels": 8, "layers": 3, "image": 16, "device": "cpu"}
    return Student(demo(**values | {"batch": 16} | changes), 10, CPU)


def test_peaks_are_those_of_the_allocator():
    """Of inference, and of a training step behind the first, all that lives before it included; of inference without
    what a kernel takes and frees inside."""
    one = student()
    weights_bytes = sum(tensor.nbytes for tensor in one.network.state_dict().values())
    found = measure_network(CELL, SIZE, 16)

    def infer() -> None:
        with torch.no_grad():
            one.judged_logits(torch.zeros(1, 3, 16, 16))

    infer()
    truth, _ = allocated_peak(infer, CPU, weights_bytes)
    assert 0.8 * truth < found.inference_peak_bytes <= truth

    def step() -> None:
        one.step(torch.randn(16, 3, 16, 16), torch.arange(16) % 10, 0, 0)

    step()
    truth, _ = allocated_peak(step, CPU, one.fixed_bytes())
    assert found.training_peak_bytes == truth
    assert found.training_peak_bytes > 3 * 4 * found.params


def test_a_larger_batch_takes_more_and_nothing_else_changes():
    small, large = (measure_network(CELL, SIZE, batch) for batch in (4, 16))
    assert large.training_peak_bytes > 2 * small.training_peak_bytes
    assert large.inference_peak_bytes == small.inference_peak_bytes


def test_a_student_is_as_before_and_its_own_setting_is_measured():
    one = student(precision="bfloat16", auxiliary=0.4, ema=0.5, accumulate=4)
    before = {name: tensor.clone() for name, tensor in one.network.state_dict().items()}
    cost = cost_of(one, 10, 123)
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.network.state_dict().items())
    assert (cost.dtype, cost.batch, cost.micro_batches, cost.training_peak_bytes) == ("bfloat16", 16, 4, 123)
    said = "\n".join(cost.lines())
    assert "bfloat16" in said and "batch 16 in 4 parts" in said and "auxiliary head" in said
    assert MeasuredCost.from_json_dict(json.loads(json.dumps(cost.to_json_dict()))) == cost


def test_a_slow_run_is_taken_a_few_times_only():
    now, calls = [0], []

    def run() -> None:
        calls.append(now[0])
        now[0] += 10**9

    assert warm_runs_ms(run, lambda: now[0]) == [1000.0] * LEAST_RUNS
    assert len(calls) == LEAST_RUNS + 2
    assert len(warm_runs_ms(lambda: None, lambda: now[0])) == MOST_RUNS
