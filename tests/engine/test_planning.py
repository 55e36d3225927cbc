"""Plans of small searches by the real predictor: the promises that a plan makes, and a real step within its budget."""

from __future__ import annotations

import dataclasses
import functools
import random
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgdas.engine.memory.machine import Machine, machine_named
from msgdas.engine.memory.measured import keep
from msgdas.engine.memory.planning import Planner, classes_of, ks_of, methods_named, plan_search
from msgdas.engine.memory.prediction import spread
from msgdas.engine.run.environment import package_version
from msgdas.engine.settings.checks import POLICIES
from msgdas.engine.settings.method import METHODS
from msgdas.engine.settings.recipes import demo
from msgdas.profiles.budget import Budget, parse
from msgdas.profiles.errors import BudgetError, ProfileError
from msgdas.profiles.planner import MARGIN, MOST_SLOWDOWN, plan, usable_bytes
from msgdas.profiles.store import Key

from .allocations import measured_peak_bytes

MIB = 1 << 20
MOST_IMAGES = 1 << 14
SIZES = {"channels": 4, "layers": 3, "image": 16, "batch": 8}
CHAIN = {"space": "imagenet-mobile", "layers": 21, "channels": 8, "image": 32}
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
    """A planner whose batch is free up to MOST_IMAGES, on a net that is quickly traced."""
    return planner_of(machine, space="nasbench201", channels=8, batch=64, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "graph", "least", "most", "budgets"),
    [("a processor", False, 12, 200, 200), ("a GPU", False, 200, 2000, 200), ("a GPU", True, 200, 2500, 60)],
)
def test_no_plan_exceeds_its_budget_in_the_simulator_and_most_of_it_is_used(machine, graph, least, most, budgets):
    planner = roomy(machine, graph=graph)
    draw = random.Random(0)
    used = []
    for _ in range(budgets):
        budget_bytes = draw.randrange(least * MIB, most * MIB)
        made = planned(planner, budget_bytes, batch=64, min_batch=2, max_batch=MOST_IMAGES)
        trace = planner.probe.trace(dataclasses.replace(planner.config, **dataclasses.asdict(made.setting)))
        if planner.target.cuda:
            trace.reserve(planner.probe.order(), cap_bytes=budget_bytes - planner.target.context_bytes)
        else:
            assert trace.peak(planner.probe.order()).bytes <= budget_bytes
        if made.setting.batch < MOST_IMAGES:
            used.append(made.prediction.needed_bytes / budget_bytes)
    assert len(used) > budgets // 2 and statistics.median(used) >= 0.92


@pytest.mark.parametrize("budget_mib", [3, 8, 20])
def test_a_real_step_stays_within_its_budget(budget_mib):
    planner = planner_of()
    made = planned(planner, budget_mib * MIB)
    config = dataclasses.replace(planner.config, **dataclasses.asdict(made.setting))
    real_bytes = measured_peak_bytes(config, planner.target.impl, guided=True, dropped=True)
    assert real_bytes <= budget_mib * MIB
    assert real_bytes >= 0.5 * made.prediction.needed_bytes


def test_k_costs_time_where_it_costs_no_memory():
    """With `min` every K fits; the one that is taken trains half the images of K=1 at least, and the next does not."""
    planner = planner_of(channels=16, batch=64, policy="min", mode="union")
    made = planned(planner, 1 << 40)
    speed = {
        k: planner.surface.at(dataclasses.replace(made.setting, k=k, batch=64)).samples_per_s for k in (1, 2, 4, 8)
    }
    taken = made.setting.k
    assert 1 < taken < 8 and speed[taken] * MOST_SLOWDOWN >= speed[1] > speed[2 * taken] * MOST_SLOWDOWN
    assert f"{2 * taken} would fit too" in made.why[0]
    assert planned(planner, 1 << 40, most_slowdown=1e9).setting.k == 8


def test_a_schedule_is_planned_by_its_dearest_stage():
    planner = planner_of(policy="all", mode="union", k_schedule="grow")
    made = plan_search(planner.config, PROCESSOR, Budget(16 * MIB), pins=("policy", "mode"))
    ks = [k for k, _ in made.stages]
    assert ks == list(made.config.k_stages) and ks[0] == 1 and len(ks) > 1
    peaks = [found.needed_bytes for _, found in made.stages]
    assert made.plan.prediction.needed_bytes == max(peaks) == peaks[-1] > peaks[0]
    mean_s = sum(found.step_s for _, found in made.stages) / len(ks)
    assert made.plan.prediction.step_s == pytest.approx(mean_s) and made.stages[0][1].step_s < mean_s
    back = plan_search(
        dataclasses.replace(planner.config, k_schedule="shrink"), PROCESSOR, Budget(16 * MIB), pins=("policy", "mode")
    )
    assert [k for k, _ in back.stages] == ks[::-1] and back.plan.setting == made.plan.setting
    listed = plan_search(demo(**SIZES, k_schedule="1,3"), PROCESSOR, Budget(64 * MIB))
    assert listed.config.k == 3 and [k for k, _ in listed.stages] == [1, 3]


def test_bfloat16_where_it_is_free_and_the_device_has_it():
    modern = dataclasses.replace(GPU, flops=FLOPS | {"bfloat16": 4e11})
    made = plan_search(demo(**SIZES), modern, Budget(400 * MIB))
    assert made.config.dtype == "bfloat16" and any("bfloat16" in why for why in made.plan.why)
    assert plan_search(demo(**SIZES), modern, Budget(400 * MIB), pins=("dtype",)).config.dtype == "float32"
    assert plan_search(demo(**SIZES), GPU, Budget(400 * MIB)).config.dtype == "float32"


def test_what_the_device_took_before_counts(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = dataclasses.replace(PROCESSOR, model="this processor")
    config = demo(**SIZES, k=2, policy="min", mode="union")
    pins = ("k", "batch", "policy", "mode")
    before = plan_search(config, here, Budget(64 * MIB), pins=pins)
    key = Key("this processor", "", torch.__version__, package_version("triton") or "", "any")
    keep(key, predicted_bytes=1000, measured_bytes=1300)
    after = plan_search(config, here, Budget(64 * MIB), pins=pins)
    assert after.plan.prediction.allocator_bytes == int(1.3 * before.plan.prediction.allocator_bytes)
    assert after.target.correction == 1.3
    assert plan_search(config, PROCESSOR, Budget(64 * MIB), pins=pins).target.correction == 1


def test_draws_lie_below_the_dearest_sample_and_differ():
    config = demo(**SIZES, policy="all", mode="union", k=1)
    made = plan_search(config, PROCESSOR, Budget(64 * MIB), pins=("k", "batch", "policy", "mode"), methods=("msg",))
    low, high = made.spread_bytes[0], made.spread_bytes[-1]
    assert low < high <= made.plan.prediction.allocator_bytes and sorted(made.spread_bytes) == list(made.spread_bytes)
    on_gpu = plan_search(config, GPU, Budget(400 * MIB), pins=("k", "batch", "policy", "mode"), methods=("msg",))
    assert on_gpu.spread_bytes == ()


def test_a_draw_is_predicted_as_the_learner_takes_it():
    """The choice of the first draw, traced on shapes, against a real step that is made to draw it."""
    config = demo(**SIZES, policy="all", mode="union", k=2)
    planner = Planner(config, PROCESSOR, Budget())
    real_bytes = [
        measured_peak_bytes(config, planner.target.impl, guided=True, dropped=True, draw=draw) for draw in range(3)
    ]
    assert sorted(real_bytes) == pytest.approx(spread(planner.probe, config, 3), rel=0.005)


def test_surveys_of_other_processes_change_nothing():
    planner, other = Planner(demo(**SIZES), PROCESSOR, Budget(20 * MIB)), planner_of()
    for policy in POLICIES:
        planner.learn(Planner(demo(**SIZES), PROCESSOR, Budget(20 * MIB)).survey(policy, planned=True))
    asked = len(planner.surface.known)
    made, rows = planner.plan(), planner.rows()
    assert len(planner.surface.known) <= asked + 4, "a few mixtures of policies"
    assert made.plan.setting == planned(other, 20 * MIB).setting and len(rows) == len(other.rows())


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


def test_methods_that_take_the_same_step_share_their_rows():
    made = plan_search(
        demo(**SIZES, space="nasbench201"), PROCESSOR, Budget(64 * MIB), pins=("policy",), methods=methods_named("all")
    )
    assert made.alike["darts"] and "snas" in made.alike["darts"]
    shown = {row.method for row in made.rows}
    assert shown | {other for others in made.alike.values() for other in others} == set(METHODS) - {"pc-darts"}
    (reason,) = made.left_out
    assert reason.startswith("pc-darts: ") and "--channels 8" in reason
    for name, others in made.alike.items():
        mine = next(row.prediction for row in made.rows if row.method == name)
        for other in others:
            alone = plan_search(
                demo(**SIZES, space="nasbench201", method=other), PROCESSOR, Budget(64 * MIB), pins=("policy",),
                methods=(other,),
            )  # fmt: skip
            theirs = alone.rows[0].prediction
            assert theirs.needed_bytes == pytest.approx(mine.needed_bytes, rel=0.005), (name, other)
            # What draws are made of is launches: a part of so small a network's step.
            assert theirs.step_s == pytest.approx(mine.step_s, rel=0.25), (name, other)


def test_what_a_plan_asks_of_a_configuration():
    assert ks_of(demo(with_none=False)) == (1, 2, 4, 7)
    assert ks_of(demo()) == (1, 2, 4, 8) and ks_of(demo(space="nasbench201", layers=3)) == (1, 2, 4, 5)
    mobile = demo(space="imagenet-mobile", layers=21, image=32)
    assert ks_of(mobile) == (1, 2, 4, 6) and planner_of(**CHAIN).choices().ks == (1, 2, 4, 6)
    assert ks_of(demo(space="imagenet-mobile", layers=21, image=32, method="darts", k=7)) == (1, 2, 4, 7)
    assert planner_of(**CHAIN, method="darts", k=7).choices().ks == (7,)
    assert classes_of(demo(data="cifar100")) == 100 and classes_of(demo(data="imagefolder:/nowhere")) == 1000


def test_machines_by_name():
    known = machine_named("RTX 4090")
    assert known.cuda and known.arch == 89 and known.context_bytes and "bfloat16" in known.flops
    assert not machine_named("cpu").cuda
    with pytest.raises(ProfileError, match="rtx-4090"):
        machine_named("rtx-4091")


def test_batches_ahead_take_what_is_left_and_give_way_first(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    data = {"data": f"imagefolder:{tmp_path}/photos", "crop": "resized", "loader": "dali", "image": 64}
    config = demo(**{**SIZES, **data, "k": 2, "policy": "min", "mode": "union"})
    pins = {"k", "policy", "mode", "batch"}

    def ahead(budget_bytes, pinned=pins):
        return Planner(config, dataclasses.replace(GPU, memory_bytes=budget_bytes, free_bytes=budget_bytes),
                       Budget(), pinned).plan()  # fmt: skip

    roomy = ahead(1 << 33)
    assert roomy.config.prefetch == 4 and "prefetch 4" in " ".join(roomy.plan.why)
    needs = [ahead(1 << 33, pins | {"prefetch"}).plan.prediction.needed_bytes]
    assert ahead(1 << 33, pins | {"prefetch"}).config.prefetch == config.prefetch == 2
    one_bytes = (roomy.plan.prediction.needed_bytes - needs[0]) // 2
    assert one_bytes == 2 * 8 * 3 * 64 * 64 * 4
    tight = next(
        size for size in range(needs[0], 2 * needs[0], one_bytes // 4) if usable_bytes(size, MARGIN) >= needs[0]
    )
    assert ahead(tight).config.prefetch == 2
    assert ahead(tight - one_bytes).config.prefetch == 1
    with pytest.raises(BudgetError):
        ahead(tight - one_bytes, pins | {"prefetch"})
