"""Plans by a synthetic probe: the rules hold for any surface of memory."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgdas.profiles.errors import BudgetError
from msgdas.profiles.planner import Choices, Surface, plan, usable_bytes
from msgdas.profiles.predictor import Prediction
from msgdas.profiles.trace import Peak

MIB = 1 << 20
POLICIES = ("min", "nodes", "bn", "all")
PER_IMAGE = {"min": 2 * MIB, "nodes": 3 * MIB, "bn": 9 * MIB, "all": 14 * MIB}
GROWS = {"min": 0, "nodes": MIB // 8, "bn": 2 * MIB, "all": 5 * MIB}
SLOW = {"min": 1.5, "nodes": 1.4, "bn": 1.1, "all": 1.0}
CHOICES = Choices(tuple(range(1, 9)), 64, 512, 2, POLICIES, ("union", "subgraphs"), ("float32",), cells=8)


def synthetic(k, batch, policy, mode, dtype):
    """Affine in the batch, concave in K, smaller in sub-graphs, a policy of each cell adds up."""
    cells = policy.split(",") if "," in policy else [policy] * 8
    width = k**0.7 if mode == "union" else 1
    per_image = sum(PER_IMAGE[cell] + GROWS[cell] * width for cell in cells) / 8
    needed = int(30 * MIB + 3 * MIB * k + batch * per_image)
    slow = sum(SLOW[cell] for cell in cells) / 8
    step_s = 1e-3 + 1e-4 * batch * k * slow
    return Prediction(Peak(needed, "weight", {"kept": needed}), needed, 0, 0, step_s, batch)


budgets = st.integers(200 * MIB, 100_000 * MIB)


@given(budgets)
def test_a_plan_never_predicts_above_its_budget(budget_bytes):
    made = plan(synthetic, budget_bytes, CHOICES)
    found = made.setting
    again = synthetic(found.k, found.batch, found.policy, found.mode, found.dtype)
    assert made.prediction == again
    assert again.needed_bytes <= made.limit_bytes < budget_bytes


@given(budgets, budgets)
def test_a_larger_budget_never_gives_a_smaller_k_at_the_same_policy(one, other):
    small, large = sorted((one, other))
    for policy in POLICIES:
        pinned = dataclasses.replace(CHOICES, policies=(policy,), cells=0)
        try:
            before = plan(synthetic, small, pinned).setting.k
        except BudgetError:
            continue
        assert plan(synthetic, large, pinned).setting.k >= before


@given(budgets, st.integers(1, 8), st.integers(2, 512))
def test_pinned_values_are_kept(budget_bytes, k, batch):
    pinned = dataclasses.replace(CHOICES, ks=(k,), batch=batch, min_batch=batch, max_batch=batch)
    needed_bytes = min(synthetic(k, batch, "min", mode, "float32").needed_bytes for mode in pinned.modes)
    if needed_bytes > usable_bytes(budget_bytes, 0.05):
        with pytest.raises(BudgetError):
            plan(synthetic, budget_bytes, pinned)
        return
    found = plan(synthetic, budget_bytes, pinned)
    assert (found.setting.k, found.setting.batch) == (k, batch)
    assert found.why[0].endswith("given") and found.why[1].endswith("given")


@given(st.integers(1000 * MIB, 4000 * MIB))
@settings(max_examples=50)
def test_the_largest_batch_is_found_to_the_image(limit_bytes):
    surface = Surface(synthetic)
    start = plan(synthetic, limit_bytes, dataclasses.replace(CHOICES, cells=0)).setting
    found = surface.largest_batch(dataclasses.replace(start, batch=64), 2, 1 << 20, limit_bytes)
    assert surface.fits(found, limit_bytes)
    assert not surface.fits(dataclasses.replace(found, batch=found.batch + 1), limit_bytes)


def test_at_least_92_percent_of_the_budget_is_used_in_the_median():
    used = sorted(
        made.prediction.needed_bytes / made.budget_bytes
        for step in range(100)
        for made in [plan(synthetic, (600 + 20 * step) * MIB, CHOICES)]
    )
    assert used[len(used) // 2] >= 0.92


def test_late_cells_keep_more_than_early_ones():
    fixed = dataclasses.replace(CHOICES, ks=(4,), min_batch=64, max_batch=64)
    made = plan(synthetic, 900 * MIB, fixed)
    cells = made.setting.policy.split(",")
    assert len(cells) == 8 and cells == sorted(cells, key=POLICIES.index) and len(set(cells)) == 2
    assert any("last" in line for line in made.why)


def test_the_exact_probe_has_the_last_word():
    def dearer(*setting):
        quick = synthetic(*setting)
        return dataclasses.replace(quick, allocator_bytes=quick.needed_bytes + 40 * MIB)

    made = plan(synthetic, 900 * MIB, CHOICES, exact=dearer)
    assert made.prediction.needed_bytes <= made.limit_bytes
    assert made.setting.batch < plan(synthetic, 900 * MIB, CHOICES).setting.batch


def test_nothing_fits_says_how_much_would():
    with pytest.raises(BudgetError, match=r"not even K=1 with batch 2 and policy min.*take --budget 39MiB") as caught:
        plan(synthetic, 20 * MIB, CHOICES)
    assert caught.value.asked_bytes == 20 * MIB
    plan(synthetic, 39 * MIB, CHOICES)
