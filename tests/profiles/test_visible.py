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


# Two compute instances share GPU instance 1.
INSTANCES = (("MIG-11", "MIG-GPU-cc/1/0"), ("MIG-12", "MIG-GPU-cc/1/1"), ("MIG-21", "MIG-GPU-cc/2/0"))
SHARED = (Candidate("GPU-bb", "A100"), Candidate("GPU-cc", "A100", INSTANCES))


def left(value, candidates=TWO, *, pci_order=False, one_instance=False):
    return visible(value, candidates, pci_order=pci_order, one_instance=one_instance).uuids


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
def test_fault_27_indices_and_uuids(value, uuids):
    assert left(value) == uuids


@pytest.mark.parametrize(
    ("value", "uuids"),
    [
        (None, ("MIG-1111", "MIG-1122", "GPU-dd")),
        ("0", ("MIG-1111",)),
        ("0,1", ("MIG-1111", "GPU-dd")),
        ("1", ("GPU-dd",)),
        ("MIG-1122,MIG-1111", ("MIG-1122", "MIG-1111")),
        ("MIG-1122,GPU-dd", ("MIG-1122",)),
        ("MIG-1122,MIG-112", ()),
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


@pytest.mark.parametrize(
    ("value", "one_instance", "uuids", "without"),
    [
        (None, False, ("GPU-bb", "MIG-11", "MIG-21"), "MIG-12"),
        (None, True, ("MIG-11",), "GPU-bb, MIG-12, MIG-21"),
        ("MIG-12,MIG-11,MIG-21", False, ("MIG-12", "MIG-21"), "MIG-11"),
        ("MIG-12,MIG-11,MIG-21", True, ("MIG-12",), "MIG-11, MIG-21"),
        ("0,1", True, ("MIG-11",), "GPU-bb"),
        ("0", True, ("GPU-bb",), None),
        ("MIG-21", True, ("MIG-21",), None),
    ],
)
def test_cuda_lists_fewer_instances_than_are_named(value, one_instance, uuids, without):
    found = visible(value, SHARED, pci_order=False, one_instance=one_instance)
    assert found.uuids == uuids
    assert [note.rpartition("without ")[2] for note in found.notes] == ([] if without is None else [without])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("-1", "hides all GPUs"),
        ("", "hides all GPUs"),
        ("NoDevFiles", "no single GPU is 'NoDevFiles'"),
        ("GPU-aa", "no single GPU is 'GPU-aa'"),
        ("0,7,1", "no single GPU is '7', so it and all after it are hidden"),
        ("0,0", "names a GPU twice, which hides all"),
        (" GPU-aaaa-1", "no single GPU is 'GPU-aaaa-1'"),
        ("gpu-aaaa-1", "no single GPU is 'gpu-aaaa-1'"),
    ],
)
def test_what_hides_a_gpu_is_said(value, said):
    (note,) = visible(value, TWO, pci_order=False, one_instance=False).notes
    assert note.startswith(f"CUDA_VISIBLE_DEVICES={value}") and said in note


def test_an_index_among_different_gpus_names_none_unless_the_order_is_set():
    assert left("1", MIXED) == ()
    assert "name UUIDs" in visible("1", MIXED, pci_order=False, one_instance=False).notes[0]
    assert left("1", MIXED, pci_order=True) == ("GPU-aabb-2",)
    assert left("GPU-aab", MIXED) == ("GPU-aabb-2",)
    assert "PCI_BUS_ID" in visible(None, MIXED, pci_order=False, one_instance=False).notes[0]


@given(
    st.one_of(st.text(max_size=30), st.lists(st.sampled_from(["0", "1", "2", "GPU-aa", "MIG-1", "-"])).map(",".join))
)
def test_fault_27_any_text_leaves_known_gpus_once_or_says_why(value):
    found = visible(value, TWO, pci_order=True, one_instance=False)
    assert set(found.uuids) <= {"GPU-aaaa-1", "GPU-aabb-2"} and len(set(found.uuids)) == len(found.uuids)
    assert found.uuids or found.notes
