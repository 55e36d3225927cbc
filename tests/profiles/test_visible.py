"""CUDA_VISIBLE_DEVICES: what it leaves, by CUDA's rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgdas.profiles.visible import Candidate, visible

TWO = (Candidate("GPU-aaaa-1", "H100"), Candidate("GPU-aabb-2", "H100"))
MIXED = (Candidate("GPU-aaaa-1", "T4"), Candidate("GPU-aabb-2", "H100"))
PARTS = (
    Candidate("GPU-cc", "A100", (("MIG-1111", "MIG-GPU-cc/1/0"), ("MIG-1122", "MIG-GPU-cc/2/0"))),
    Candidate("GPU-dd", "A100"),
)


def left(value, candidates=TWO, *, pci_order=False):
    return visible(value, candidates, pci_order=pci_order).uuids


@pytest.mark.parametrize(
    ("value", "uuids"),
    [
        (None, ("GPU-aaaa-1", "GPU-aabb-2")),
        ("1", ("GPU-aabb-2",)),
        ("1,0", ("GPU-aabb-2", "GPU-aaaa-1")),
        (" 1 , 0 ", ("GPU-aabb-2", "GPU-aaaa-1")),
        ("1gpu", ("GPU-aabb-2",)),
        ("0,7,1", ("GPU-aaaa-1",)),
        ("-1", ()),
        ("0,-1,1", ("GPU-aaaa-1",)),
        ("", ()),
        ("NoDevFiles", ()),
        ("0,0", ()),
        ("GPU-aabb-2", ("GPU-aabb-2",)),
        ("GPU-aab", ("GPU-aabb-2",)),
        ("GPU-aab,GPU-aaa", ("GPU-aabb-2", "GPU-aaaa-1")),
        ("GPU-aa", ()),
        ("GPU-aab,0", ("GPU-aabb-2",)),
        ("GPU-aab,GPU-aabb-2", ()),
        ("GPU-zz", ()),
    ],
)
def test_indices_and_uuids(value, uuids):
    assert left(value) == uuids


@pytest.mark.parametrize(
    ("value", "uuids"),
    [
        (None, ("MIG-1111", "GPU-dd")),
        ("0", ("MIG-1111",)),
        ("GPU-cc", ("MIG-1111",)),
        ("MIG-1122", ("MIG-1122",)),
        ("MIG-112", ("MIG-1122",)),
        ("MIG-11", ()),
        ("MIG-GPU-cc/2/0", ("MIG-1122",)),
        ("MIG-GPU-cc/9/0", ()),
    ],
)
def test_partitioned(value, uuids):
    assert left(value, PARTS) == uuids


def test_an_index_among_different_gpus_names_none_unless_the_order_is_set():
    assert left("1", MIXED) == ()
    assert "name UUIDs" in visible("1", MIXED, pci_order=False).notes[0]
    assert left("1", MIXED, pci_order=True) == ("GPU-aabb-2",)
    assert left("GPU-aab", MIXED) == ("GPU-aabb-2",)
    assert "PCI_BUS_ID" in visible(None, MIXED, pci_order=False).notes[0]


@given(
    st.one_of(st.text(max_size=30), st.lists(st.sampled_from(["0", "1", "2", "GPU-aa", "MIG-1", "-"])).map(",".join))
)
def test_any_text_leaves_known_gpus_once_or_says_why(value):
    found = visible(value, TWO, pci_order=True)
    assert set(found.uuids) <= {"GPU-aaaa-1", "GPU-aabb-2"} and len(set(found.uuids)) == len(found.uuids)
    assert found.uuids or found.notes
