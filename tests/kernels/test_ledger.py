"""What the ledger sees: exact bytes, access out of bounds, races; and what the kernels move."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl
from msgdas.kernels import backend

if not backend.interpreting():
    pytest.skip("the ledger needs Triton's interpreter", allow_module_level=True)

from msgdas.kernels import budgets, ledger
from msgdas.kernels.ledger import AccessError


@triton.jit
def copy_kernel(x, y, N, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < N), mask=i < N)


@triton.jit
def window_kernel(x, y, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for tap in range(TAPS):
        total += tl.load(x + i + tap)
    tl.store(y + i, total)


@triton.jit
def strided_kernel(x, y, STEP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i * STEP))


@triton.jit
def overlapping_kernel(y, BLOCK: tl.constexpr):
    tl.store(y + tl.program_id(0) * (BLOCK - 1) + tl.arange(0, BLOCK), 1.0)


@triton.jit
def shifting_kernel(y, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i + BLOCK, tl.load(y + i))


@triton.jit
def same_place_kernel(y, BLOCK: tl.constexpr):
    tl.store(y + tl.arange(0, BLOCK) // 2, tl.arange(0, BLOCK).to(tl.float32))


@triton.jit
def adding_kernel(y):
    tl.atomic_add(y, 1.0)


@triton.jit
def product_kernel(a, b, y, N: tl.constexpr):
    i = tl.arange(0, N)
    place = i[:, None] * N + i[None, :]
    tl.store(y + place, tl.dot(tl.load(a + place), tl.load(b + place)))


def test_a_copy_moves_the_least():
    x, y = torch.randn(1000), torch.empty(1000)
    with ledger.count() as found:
        copy_kernel[(4,)](x, y, 1000, BLOCK=256)
    traffic = found.kernels["copy_kernel"]
    assert torch.equal(x, y)
    assert (traffic.launches, traffic.programs, traffic.loaded, traffic.stored) == (1, 4, 4000, 4000)
    assert (traffic.ratio, traffic.again, traffic.shared) == (1.0, 0, 0)


def test_reloads_are_split_between_one_program_and_several():
    x, y = torch.randn(66), torch.empty(64)
    with ledger.count() as found:
        window_kernel[(4,)](x, y, TAPS=3, BLOCK=16)
    traffic = found.kernels["window_kernel"]
    # Each program loads 3 * 16 numbers of 18, and shares 2 with the next.
    assert traffic.least == 4 * (66 + 64)
    assert traffic.again == 4 * 4 * (48 - 18)
    assert traffic.shared == 4 * 3 * 2
    assert traffic.moved == traffic.least + traffic.again + traffic.shared


def test_sectors_show_what_is_not_coalesced():
    x, y = torch.randn(1024), torch.empty(128)
    with ledger.count() as found:
        strided_kernel[(1,)](x, y, STEP=8, BLOCK=128)
    assert found.kernels["strided_kernel"].sectors == 128 * 32 + 128 * 4


def test_products_are_counted():
    a, b, y = torch.randn(3, 16, 16)
    with ledger.count() as found:
        product_kernel[(1,)](a, b, y, N=16)
    assert found.kernels["product_kernel"].flops == 2 * 16**3


def test_launches_add_up_and_nothing_is_counted_outside():
    x, y = torch.randn(256), torch.empty(256)
    copy_kernel[(1,)](x, y, 256, BLOCK=256)
    with ledger.count() as found:
        for _ in range(3):
            copy_kernel[(1,)](x, y, 256, BLOCK=256)
    copy_kernel[(1,)](x, y, 256, BLOCK=256)
    assert found.kernels["copy_kernel"].least == found.kernels["copy_kernel"].moved == 3 * 2048


@pytest.mark.parametrize("end", [100, 101])
def test_access_out_of_a_view_is_stopped_before_it_happens(end):
    storage = torch.zeros(256)
    x, y = torch.ones(128), storage[: end - 1]
    with ledger.count(), pytest.raises(AccessError, match="store outside the launch's tensors, "):
        copy_kernel[(1,)](x, y, end, BLOCK=128)
    assert not storage.any()


def test_a_load_out_of_bounds_names_kernel_and_program():
    with ledger.count(), pytest.raises(AccessError, match=r"copy_kernel: load .* 24 of 128 .* \(1, 0, 0\)"):
        copy_kernel[(2,)](torch.ones(232), torch.ones(256), 256, BLOCK=128)


@pytest.mark.parametrize(
    ("launch", "fault"),
    [
        (
            lambda: overlapping_kernel[(4,)](torch.zeros(64), BLOCK=8),
            "3 elements are written by more than one",
        ),
        (lambda: shifting_kernel[(3,)](torch.zeros(64), BLOCK=16), "16 elements are read by a program while"),
        (lambda: same_place_kernel[(1,)](torch.zeros(64), BLOCK=16), "writes an element twice"),
        (lambda: adding_kernel[(1,)](torch.zeros(1)), "atomic"),
    ],
)
def test_races_are_found(launch, fault):
    with ledger.count(), pytest.raises(AccessError, match=fault):
        launch()


def test_a_program_may_overwrite_what_it_read():
    x = torch.randn(64)
    with ledger.count() as found:
        copy_kernel[(4,)](x, x, 64, BLOCK=16)
    assert found.kernels["copy_kernel"].ratio == 1.0


@pytest.fixture(scope="module")
def kernels() -> dict[str, ledger.Traffic]:
    # Every access is within bounds and no launch races, or this raises.
    return ledger.count_cell("darts-16")


def test_no_kernel_moves_more_than_its_bound(kernels):
    most = budgets.read()["traffic"]
    assert {"draw_kernel", "draw_backward_kernel", "combine_kernel", "reduce_kernel"} <= set(most) & set(kernels)
    assert ledger.breaches(kernels, most) == []


def test_what_stages_move_beyond_the_least_is_mostly_taps_in_the_cache(kernels):
    # Without what one program loads again, a stage moves little more than the least: weights, halos, shared dy.
    for name in ("stage_kernel", "gather_kernel", "inner_kernel"):
        traffic = kernels[name]
        assert traffic.again > traffic.shared
        assert (traffic.moved - traffic.again) / traffic.least < 1.6


def test_a_breach_is_one_line(kernels):
    lines = ledger.breaches(kernels, {"stage_kernel": 1.05, "absent_kernel": 1.0, "draw_kernel": 1.0})
    assert len(lines) == 1
    assert lines[0].startswith("stage_kernel: moves ")


def test_the_command_interprets_by_itself():
    compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "msgdas.kernels.ledger", "--cells", "nas-bench-16", "--json"]
    result = subprocess.run(command, env=compiling, capture_output=True, text=True, check=True)
    found = {line["kernel"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert found["dense_weights_kernel"]["flops"] > 0
    assert found["draw_kernel"]["ratio"] == 1.0
    assert result.stderr == ""


def test_every_cell(full_tables):
    for name in set(ledger.CELLS) - {"darts-16", "nas-bench-16"}:
        assert ledger.breaches(ledger.count_cell(name), budgets.read()["traffic"]) == []
