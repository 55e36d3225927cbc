"""The store of measurements: kept by key, beside other writers, in spite of damaged lines."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgdas.profiles.errors import ProfileError
from msgdas.profiles.store import Key, MeasurementStore, fingerprint

KEY = Key("NVIDIA H100 80GB HBM3", "580.65.06", "2.14.1+cu130", "3.8.0", "0123456789abcdef")


@pytest.fixture
def store(tmp_path):
    return MeasurementStore(tmp_path / "cache" / "msgdas")


def test_empty_then_kept_by_key(store):
    assert store.read().measurements == ()
    first = store.add(KEY, {"predicted_bytes": 100, "allocated_bytes": 103})
    other = store.add(replace(KEY, config="another"), {"predicted_bytes": 7})
    store.add(replace(KEY, driver="590.1"), {"predicted_bytes": 8})
    second = store.add(KEY, {"predicted_bytes": 100, "allocated_bytes": 104.5})
    contents = store.read()
    assert contents.damaged == 0 and len(contents.measurements) == 4
    assert contents.of(KEY) == (first, second)
    assert contents.of(KEY, any_config=True) == (first, other, second)


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[]",
        b"7",
        b"\xff\xfe\x00",
        b'{"device": "x"}',
        json.dumps(
            {"device": 1, "driver": "", "torch": "", "triton": "", "config": "", "at_utc": "", "values": {}}
        ).encode(),
        json.dumps(
            {"device": "", "driver": "", "torch": "", "triton": "", "config": "", "at_utc": "", "values": {"a": "1"}}
        ).encode(),
        b'{"device":"","driver":"","torch":"","triton":"","config":"","at_utc":"","values":{"a":NaN}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_line_costs_itself_only(store, line):
    before = store.add(KEY, {"a": 1})
    with store.path.open("ab") as file:
        file.write(line + b"\n\n")
    after = store.add(KEY, {"a": 2})
    contents = store.read()
    assert contents.of(KEY) == (before, after) and contents.damaged == 1


@given(cut=st.integers(1, 2000))
def test_a_crash_in_mid_line_loses_that_line(tmp_path_factory, cut):
    store = MeasurementStore(tmp_path_factory.mktemp("store"))
    kept = [store.add(KEY, {"a": number}) for number in range(3)]
    data = store.path.read_bytes()
    cut %= len(data) // 3
    store.path.write_bytes(data[: len(data) - cut])
    kept = kept[:3] if cut <= 1 else kept[:2]
    kept.append(store.add(KEY, {"a": 9}))
    assert list(store.read().measurements) == kept
    assert store.read().damaged == (cut > 1)


def test_writers_at_the_same_time_keep_all_lines(store):
    code = (
        "import sys\nfrom pathlib import Path\nfrom msgdas.profiles.store import Key, MeasurementStore\n"
        "store = MeasurementStore(Path(sys.argv[1]))\n"
        "for number in range(100):\n    store.add(Key('', '', '', '', sys.argv[2]), {'number': number})\n"
    )
    command = [sys.executable, "-c", code, str(store.path.parent)]
    writers = [subprocess.Popen([*command, name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    contents = store.read()
    assert contents.damaged == 0
    for name in "abc":
        numbers = [found.values["number"] for found in contents.of(Key("", "", "", "", name))]
        assert numbers == list(range(100))


def test_a_folder_that_cannot_be_made_is_a_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = MeasurementStore(tmp_path / "file" / "msgdas")
    with pytest.raises(ProfileError, match=r"cannot be kept: .*Next: "):
        store.add(KEY, {"a": 1})
    (tmp_path / "measurements.jsonl").mkdir()
    with pytest.raises(ProfileError, match=r"cannot be read: .*Next: "):
        MeasurementStore(tmp_path).read()


def test_fingerprint_heeds_values_not_order():
    assert fingerprint({"k": 2, "batch": {"size": 64, "shape": [3, 32]}}) == fingerprint(
        {"batch": {"shape": [3, 32], "size": 64}, "k": 2}
    )
    assert fingerprint({"k": 2}) != fingerprint({"k": 3}) and len(fingerprint({})) == 16
    with pytest.raises(ValueError):
        fingerprint({"k": float("nan")})
