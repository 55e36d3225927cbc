"""Budgets: read, written again as they were, and refused with a way out."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgdas.profiles.budget import UNITS, Budget, parse, size_text
from msgdas.profiles.errors import BudgetError, ProfileError

GIB_BYTES = 1 << 30

budgets = st.one_of(
    st.just(Budget()),
    st.builds(lambda size: Budget(size_bytes=size), st.integers(1, 1 << 50)),
    st.builds(
        lambda size, unit: Budget(size_bytes=size * UNITS[unit]), st.integers(1, 5000), st.sampled_from(list(UNITS))
    ),
    st.builds(
        lambda share: Budget(percent=share),
        st.decimals(Decimal("0.001"), 100, places=3, allow_nan=False, allow_infinity=False),
    ),
)


@given(budgets)
def test_written_and_read_again_is_the_same(budget):
    assert parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("10GiB", 10 * GIB_BYTES),
        ("24 GB", 24 * 10**9),
        ("24gb", 24 * 10**9),
        ("1.5gib", 3 * GIB_BYTES // 2),
        (" 512MiB ", 1 << 29),
        ("1000KB", 10**6),
        ("1B", 1),
    ],
)
def test_sizes(text, size_bytes):
    assert parse(text) == Budget(size_bytes=size_bytes)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(10 * GIB_BYTES, "10GiB"), (24 * 10**9, "24GB"), (3 * GIB_BYTES // 2, "1.5GiB"), (1023, "1.023KB"), (999, "999B")],
)
def test_text_is_short_and_exact(size_bytes, text):
    assert size_text(size_bytes) == text


def test_shares_and_auto_of_a_device():
    assert parse("80%").bytes_on(total_bytes=1000, free_bytes=900) == 800
    assert parse("87.5 %").bytes_on(total_bytes=1000, free_bytes=900) == 875
    assert parse("AUTO").bytes_on(total_bytes=1000, free_bytes=900) == 900


@given(budgets, st.integers(0, 1 << 42), st.integers(0, 1 << 42))
def test_never_more_than_is_free(budget, one, other):
    total_bytes, free_bytes = max(one, other), min(one, other)
    share_bytes = int(total_bytes * budget.percent / 100) if budget.percent else None
    asked_bytes = budget.size_bytes or share_bytes or 0
    if asked_bytes > free_bytes:
        with pytest.raises(BudgetError) as caught:
            budget.bytes_on(total_bytes=total_bytes, free_bytes=free_bytes)
        assert (caught.value.asked_bytes, caught.value.free_bytes) == (asked_bytes, free_bytes)
    else:
        assert 0 <= budget.bytes_on(total_bytes=total_bytes, free_bytes=free_bytes) <= free_bytes


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10", "write 10GiB"),
        ("0.8", "write 80% for a share"),
        ("10G", r"write 10GiB \(1024 based\) or 10GB"),
        ("10Gb", "write 10GiB"),
        ("10m", "write 10MiB"),
        ("10 parsecs", "--budget auto"),
        ("120%", "at most 100%"),
        ("0%", "above 0%"),
        ("0GiB", "nothing"),
        ("0.1B", "nothing"),
        ("-3GiB", "cannot be read"),
        ("1e3GB", "cannot be read"),
        ("nan", "cannot be read"),
        ("10,5GiB", "cannot be read"),
        ("٣GiB", "cannot be read"),
        ("9" * 4000 + "GiB", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(text, hint):
    with pytest.raises(ProfileError, match=hint) as caught:
        parse(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_above_what_is_free_names_who_holds_it():
    with pytest.raises(BudgetError, match=r"others hold 14\.00 GiB: asked 19\.20 GiB, free 10\.00 GiB\. Next: .*auto"):
        parse("80%").bytes_on(total_bytes=24 * GIB_BYTES, free_bytes=10 * GIB_BYTES)


def test_above_the_device():
    with pytest.raises(BudgetError, match=r"above the device's 24\.00 GiB: asked 32\.00 GiB, free 20\.00 GiB"):
        parse("32GiB").bytes_on(total_bytes=24 * GIB_BYTES, free_bytes=20 * GIB_BYTES)
