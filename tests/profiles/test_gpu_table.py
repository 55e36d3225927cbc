"""The table of GPUs: every row whole and plausible, and names found as people write them."""

from __future__ import annotations

import re
from urllib.parse import urlparse

import pytest
from msgdas.profiles.errors import ProfileError
from msgdas.profiles.gpu_table import TABLE, find_gpu, gpu_named, known_gpus

GIB_BYTES = 1 << 30


def test_enough_rows_and_no_two_with_one_name():
    rows = known_gpus().values()
    assert len(rows) >= 30
    assert len({row.name for row in rows}) == len(rows)


@pytest.mark.parametrize("row", known_gpus().values(), ids=lambda row: row.key)
def test_row_is_plausible(row):
    assert 7 * GIB_BYTES < row.memory_bytes < 200 * GIB_BYTES
    assert 1e11 < row.bandwidth_bytes_per_s < 1e13
    assert 4e12 < row.fp32_flops < 2e14
    # bf16 tensor cores came with sm_80; dense rates lie between 2 and 30 times fp32.
    assert (row.bf16_flops is None) == (int(row.arch.removeprefix("sm_")) < 80)
    assert row.bf16_flops is None or 1.9 < row.bf16_flops / row.fp32_flops < 30
    assert row.checked and set(row.checked) <= {"cluster_info", "cuda-gpus", "nvidia-smi", "techpowerup"}
    assert re.fullmatch(r"sm_(7|8|9|10|12)\d", row.arch) and 2017 <= row.year <= 2026
    assert urlparse(row.source).scheme == "https"


@pytest.mark.parametrize(
    "name", ["rtx-4090", "RTX 4090", "nvidia geforce rtx 4090", "NVIDIA GeForce RTX_4090", "rtx--4090"]
)
def test_name_as_people_write_it(name):
    assert gpu_named(name).key == "rtx-4090"


def test_name_as_nvml_reports_it():
    assert [find_gpu(row.name) for row in known_gpus().values()] == list(known_gpus().values())
    assert find_gpu("NVIDIA Quadro 600") is None


def test_peak_from_cores_and_clock():
    # 2 operations * 3584 cores * 1.78 GHz
    assert gpu_named("rtx-3060").fp32_flops == pytest.approx(12.76e12, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "near"),
    [("rtx-4900", "rtx-4090"), ("H1000", "h100"), ("a100", "a100-80gb"), ("rtx 3090 super", "rtx-3090,")],
)
def test_unknown_name_suggests_the_nearest(name, near):
    with pytest.raises(ProfileError, match=f"got '{name}'.*try .*{near}"):
        gpu_named(name)


def test_what_a_row_was_checked_against_is_explained_in_the_file():
    comments = [line for line in TABLE.read_text().splitlines() if line.startswith("#")]
    explained = {line.split()[1] for line in comments if re.match(r"#   \S", line)}
    assert explained == {name for row in known_gpus().values() for name in row.checked}


def test_name_far_from_all_lists_them():
    with pytest.raises(ProfileError, match=r"take one of v100-16gb, .*--budget 24GiB"):
        gpu_named("??")
