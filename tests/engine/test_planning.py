"""Plans of small searches by the real predictor: the promises that a plan makes, and a real step within its budget."""

from __future__ import annotations

import dataclasses
import functools
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgdas.engine.config import POLICIES
from msgdas.engine.machine import Machine, machine_named
from msgdas.engine.planning import Planner, classes_of, ks_of, methods_named, plan_search
from msgdas.engine.recipes import demo
from msgdas.profiles.budget import Budget, parse
from msgdas.profiles.errors import BudgetError, ProfileError
from msgdas.profiles.planner import MARGIN, plan, usable_bytes

from .allocations import measured_peak_bytes

MIB = 1 << 20
SIZES = {"channels": 4, "layers": 3, "image": 16, "batch": 8}
FLOPS = {"float32": 1e11, "float64": 5e10}
PROCESSOR = Machine("a processor", False, 1 << 40, 1 << 40, 1e10, FLOPS)
GPU = dataclasses.replace(PROCESSOR, name="a GPU", cuda=True, arch=89, context_bytes=3 * MIB)
budgets = st.integers(MIB // 2, 60 * MIB)


@functools.cache
def planner_of(machine_name="a processor", **changes):
    machine = GPU if machine_name == "a GPU" else PROCESSOR
    return Planner(demo(**{**SIZES, **changes}), machine, Budget(), set(changes) - {"graph"})


def planned(planner, budget_bytes, **changes):
    choices = dataclasses.replace(planner.choices(), **changes)
    return plan(planner.surface, budget_bytes, choices, exact=planner.probe)


@given(budgets, budgets, st.sampled_from(POLICIES))
@settings(max_examples=25, deadline=None)
def test_a_larger_budget_never_gives_a_smaller_k_at_the_same_policy(one, other, policy):
    planner = planner_of()
    ks = []
    for budget_bytes in sorted((one, other)):
        try:
            ks.append(planned(planner, budget_bytes, policies=(policy,), cells=0).setting.k)
        except BudgetError:
            ks.append(0)
    assert ks == sorted(ks)


@given(budgets)
@settings(max_examples=25, deadline=None)
def test_a_plan_never_predicts_above_its_budget(budget_bytes):
    planner = planner_of()
    try:
        made = planned(planner, budget_bytes)
    except BudgetError:
        least = planner.probe(1, 2, "min", "union", "float32")
        assert least.needed_bytes > usable_bytes(budget_bytes, MARGIN)
        return
    setting = made.setting
    exact = planner.probe(setting.k, setting.batch, setting.policy, setting.mode, setting.dtype)
    assert made.prediction == exact
    assert exact.needed_bytes <= made.limit_bytes < budget_bytes


@given(st.one_of(st.just(Budget()), st.builds(Budget, st.integers(1, 1 << 50))))
def test_what_is_printed_is_read_back(budget):
    assert parse(str(budget)) == budget


def roomy(machine="a processor", **changes):
    """A planner whose batch is free up to 1024, on a net that is quickly traced."""
    return planner_of(machine, space="nasbench201", channels=8, batch=64, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "graph", "least", "most"),
    [("a processor", False, 12, 200), ("a GPU", False, 60, 500), ("a GPU", True, 60, 900)],
)
def test_no_plan_exceeds_its_budget_in_the_simulator_and_most_of_it_is_used(machine, graph, least, most):
    planner = roomy(machine, graph=graph)
    draw = random.Random(0)
    used = []
    for _ in range(200):
        budget_bytes = draw.randrange(least * MIB, most * MIB)
        made = planned(planner, budget_bytes, batch=64, min_batch=2, max_batch=1024)
        trace = planner.probe.trace(dataclasses.replace(planner.config, **dataclasses.asdict(made.setting)))
        if planner.target.cuda:
            trace.reserve(planner.probe.order(), cap_bytes=budget_bytes - planner.target.context_bytes)
        else:
            assert trace.peak(planner.probe.order()).bytes <= budget_bytes
        if made.setting.batch < 1024:
            used.append(made.prediction.needed_bytes / budget_bytes)
    assert len(used) > 100 and statistics.median(used) >= 0.92


@pytest.mark.parametrize("budget_mib", [3, 8, 20])
def test_a_real_step_stays_within_its_budget(budget_mib):
    planner = planner_of()
    made = planned(planner, budget_mib * MIB)
    config = dataclasses.replace(planner.config, **dataclasses.asdict(made.setting))
    real_bytes = measured_peak_bytes(config, planner.target.impl, guided=True, dropped=True)
    assert real_bytes <= budget_mib * MIB
    assert real_bytes >= 0.5 * made.prediction.needed_bytes


def test_nothing_fits():
    with pytest.raises(BudgetError, match=r"not even K=1 .*asked 0.10 MiB, free 0.09 MiB, needed .*take --budget"):
        planned(planner_of(), MIB // 10)


def test_given_keys_stay_and_the_methods_own_too():
    config = demo(**SIZES, k=3, policy="bn", mode="union")
    made = plan_search(config, PROCESSOR, Budget(64 * MIB), pins=("k", "policy", "mode", "batch"), methods=("msg",))
    assert made.plan.setting.k == 3 and made.plan.setting.policy == "bn"
    assert (made.config.batch, made.config.mode) == (8, "union")
    back = plan_search(demo(**SIZES, method="darts"), PROCESSOR, Budget(64 * MIB), methods=("msg", "darts"))
    assert back.config.method == "darts" and {row.setting.k for row in back.rows if row.method == "msg"} == {1, 2, 4, 8}
    gdas = plan_search(demo(**SIZES, method="gdas", mode="subgraphs"), PROCESSOR, Budget(64 * MIB), methods=("gdas",))
    assert gdas.config.k == 1 and {row.setting.k for row in gdas.rows} == {1}
    assert {row.setting.k for row in made.rows} == {3} and len(made.rows) == 1


def test_every_method_has_its_rows():
    made = plan_search(
        demo(**SIZES, space="nasbench201"), PROCESSOR, Budget(64 * MIB), methods=methods_named(""), workers=1
    )
    found = {(row.method, row.setting.mode, row.setting.k) for row in made.rows}
    unions = {("msg", "union", k) for k in (1, 2, 4, 5)}
    assert found == {*unions, ("msg", "subgraphs", 5), ("gdas", "subgraphs", 1), ("darts", "union", 5)}
    assert len(made.rows) == 4 * len(found)
    for row in made.rows:
        least = row.prediction.needed_bytes <= made.limit_bytes
        assert (row.largest_batch is not None and row.largest_batch >= row.setting.batch) == least


def test_what_a_plan_asks_of_a_configuration():
    assert ks_of(demo()) == (1, 2, 4, 8) and ks_of(demo(space="nasbench201", layers=3)) == (1, 2, 4, 5)
    assert classes_of(demo(data="cifar100")) == 100 and classes_of(demo(data="imagefolder:/nowhere")) == 1000


def test_machines_by_name():
    known = machine_named("RTX 4090")
    assert known.cuda and known.arch == 89 and known.context_bytes and "bfloat16" in known.flops
    assert not machine_named("cpu").cuda
    with pytest.raises(ProfileError, match="rtx-4090"):
        machine_named("rtx-4091")
