"""The ladder: every rung takes less of one thing, the order is fixed, and it ends at the smallest step."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from msgdas.engine.learning.rung import Rung, fewest_images
from msgdas.engine.settings.checks import POLICIES
from msgdas.engine.settings.config import SearchConfig
from msgdas.engine.settings.recipes import demo

RUNGS = st.builds(
    Rung,
    st.integers(1, 64),
    st.lists(st.sampled_from(POLICIES), min_size=1, max_size=6).map(tuple) | st.just(("autograd",)),
    st.integers(1, 8),
)


def ladder(rung: Rung, batch: int, fewest: int) -> list[Rung]:
    found = [rung]
    while (lower := found[-1].lower(batch, fewest)) is not None:
        found.append(lower)
    return found


@given(RUNGS, st.integers(2, 300), st.sampled_from([1, 2]))
def test_down_to_the_smallest_step_one_thing_at_a_time(rung, batch, fewest):
    rungs = ladder(rung, batch, fewest)
    last = rungs[-1]
    assert last.k == 1 and set(last.policies) in ({"min"}, {"autograd"})
    assert last.images(batch) <= max(fewest, rung.images(batch)) or batch % fewest
    for before, after in itertools.pairwise(rungs):
        changed = [name for name in ("accumulate", "policies", "k") if getattr(before, name) != getattr(after, name)]
        assert len(changed) == 1
        assert after.images(batch) <= before.images(batch) and after.k <= before.k
        assert all(POLICIES.index(a) >= POLICIES.index(b) for a, b in zip(after.policies, before.policies, strict=True)
                   if b in POLICIES)  # fmt: skip
        assert after.accumulate <= max(1, batch // fewest) or after.accumulate == before.accumulate
    assert len(rungs) < 40


@given(RUNGS)
def test_a_checkpoint_keeps_it(rung):
    assert Rung.from_dict(rung.to_dict()) == rung


def test_order_is_accumulation_then_policy_then_k():
    rungs = ladder(Rung(1, ("all", "bn"), 4), 6, 2)
    assert [str(rung) for rung in rungs] == [
        "K=4, policy all,bn", "K=4, policy all,bn, 2 micro-batches", "K=4, policy all,bn, 3 micro-batches",
        "K=4, policy bn, 3 micro-batches", "K=4, policy nodes, 3 micro-batches", "K=4, policy min, 3 micro-batches",
        "K=2, policy min, 3 micro-batches", "K=1, policy min, 3 micro-batches",
    ]  # fmt: skip


def test_it_begins_at_the_configuration():
    config = demo(policy="min,all,bn,nodes,min", k=3, accumulate=2)
    assert Rung.of(config) == Rung(2, ("min", "all", "bn", "nodes", "min"), 3)
    assert Rung.of(SearchConfig(policy="autograd")).policies == ("autograd",)


def test_a_map_of_one_pixel_needs_two_images():
    assert fewest_images(demo(image=28), stride=4) == 1 and fewest_images(demo(image=4), stride=4) == 2
