"""Rows of results: what they hold, and that a file of them cannot be spoilt unnoticed."""

from __future__ import annotations

import json
import statistics

import pytest
from msgdas.bench.gate import Gate
from msgdas.bench.results import append, latest, provenance, read, row, summary
from msgdas.engine.errors import DataError, GateError
from msgdas.profiles.clocks import cpu_mhz, gpu_state

GREEN = Gate(True, {"float64": 1e-15}, "compared")


def made(name="a", values=(3.0, 1.0, 2.0), **facts):
    return row("speed", name, {"k": 2}, {"step_ms": values}, GREEN, {"machine": "one", **facts})


def test_a_summary_holds_median_and_spread_of_all_values():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    found = summary(values)
    assert (found["n"], found["median"], found["min"], found["max"]) == (5, 3.0, 1.0, 5.0)
    assert [found["q1"], found["q3"]] == statistics.quantiles(values, n=4, method="inclusive")[::2] == [2.0, 4.0]
    assert found["values"] == values
    assert summary([7.0])["q1"] == summary([7.0])["max"] == 7.0
    for bad in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite values"):
            summary(bad)


def test_rows_are_only_appended_and_read_back(tmp_path):
    path = tmp_path / "results" / "speed.jsonl"
    append(path, [made()])
    before = path.read_bytes()
    append(path, [made("b"), made("a", (9.0,))])
    assert path.read_bytes().startswith(before)
    assert [one["name"] for one in read(path)] == ["a", "b", "a"]
    medians = {one["name"]: one["figures"]["step_ms"]["median"] for one in latest(read(path))}
    assert medians == {"a": 9.0, "b": 2.0}
    other = [made(), {**made(), "config": {"k": 3}}, made(machine="two")]
    assert len(latest(other)) == 3


def test_no_row_of_a_red_gate():
    with pytest.raises(GateError, match=r"no figures of a: differs by 1\.0e-02"):
        row("speed", "a", {}, {"step_ms": [1.0]}, Gate(False, {}, "differs by 1.0e-02"), {})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[:-1], "ends in the middle"),
        (lambda text: text[:40] + "\n", "line 1 is not JSON"),
        (lambda text: text.replace('"figures"', '"figure"'), "no figures"),
        (lambda text: text.replace('"median": 2.0', '"median": 1.0'), "step_ms is not the summary"),
        (lambda text: text.replace('"values": [3.0, 1.0, 2.0]', '"values": [1.0, 1.0, 2.0]'), "not the summary"),
        (lambda text: text.replace('"passed": true', '"passed": false'), "red gate"),
        (lambda text: "[]\n" + text, "is no result"),
    ],
)
def test_a_spoilt_file_is_named_and_not_added_to(tmp_path, spoil, message):
    path = tmp_path / "speed.jsonl"
    append(path, [made()])
    spoilt = spoil(path.read_text())
    path.write_text(spoilt)
    with pytest.raises(DataError, match=message):
        read(path)
    with pytest.raises(DataError, match=message):
        append(path, [made()])
    assert path.read_text() == spoilt


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        append(tmp_path / "file" / "speed.jsonl", [made()])


def test_provenance_names_machine_versions_and_commit_but_no_place():
    facts = provenance("python -m msgdas.bench memory", threads=1)
    text = json.dumps(facts)
    assert facts["machine"].endswith("cores") and facts["threads"] == 1
    assert set(facts["versions"]) == {"python", "msgdas", "torch", "triton", "numpy"}
    assert {"commit", "dirty", "command", "date_utc", "gpus", "cpu"} <= set(facts)
    assert facts["cpu"]["mhz"] == cpu_mhz()
    import getpass
    import platform

    for private in (platform.node(), platform.release(), str(getpass.os.path.expanduser("~")), str(pytest.__path__[0])):
        assert private not in text


def test_clocks_of_a_gpu_that_is_not_there():
    state = gpu_state("GPU-00000000-0000-0000-0000-000000000000")
    assert (state.sm_mhz, state.slowed_by, state.clean, state.disturbances) == (None, None, None, [])


GIB_BYTES = 1 << 30
# A hot GPU that a neighbour shares, a cool one of our own, and one whose driver tells nothing of its clocks.
GPUS = f"""
gpu GPU-aaaa {24 * GIB_BYTES} 8.9 NVIDIA GeForce RTX 4090
gpu GPU-bbbb {80 * GIB_BYTES} 9.0 NVIDIA H100 80GB HBM3
gpu GPU-cccc {4 * GIB_BYTES} 7.5 NVIDIA T400
state 0 1410 10501 87 449500 40
state 1 1980 2619 41 120000 1
proc 0 4242 {GIB_BYTES}
"""
ROW = """
from dataclasses import replace
from msgdas.bench import results
from msgdas.bench.gate import Gate
from msgdas.bench.gpu import line
facts, real = results.provenance("bench"), results.gpu_state
if sys.argv[1]:
    results.gpu_state = lambda uuid: replace(real(uuid), slowed_by=tuple(sys.argv[1:]))
figures = {"step_ms": [1.0], "peak_bytes": [1.0]}
one = results.row("gpu", "x", {"batch": 2}, figures, Gate(True, {}, "compared"), results.behind(facts))
print(json.dumps({"before": facts["gpus"], "after": one["provenance"]["gpus"], "line": line(one)}))
"""


def test_fault_52_a_row_of_a_slowed_or_shared_gpu_is_marked_not_clean(in_child):
    found = in_child(ROW, GPUS, "")
    hot, cool, mute = found["before"]
    assert (hot["mhz"], hot["temperature_c"], hot["power_w"]) == ({"sm": 1410, "memory": 10501}, 87, 449.5)
    assert hot["foreign_pids"] == [4242] and hot["clean"] is False
    assert hot["not_clean"] == ["slowed by heat (hardware)", "other processes (4242)"]
    assert (cool["clean"], cool["not_clean"], cool["foreign_pids"]) == (True, [], [])
    assert (mute["clean"], mute["not_clean"], mute["temperature_c"]) == (None, [], None)
    assert found["after"] == found["before"]
    assert found["line"].endswith("  not clean: slowed by heat (hardware), other processes (4242)")


def test_fault_52_what_began_while_it_was_measured_counts_too(in_child):
    cool = GPUS.replace(" 449500 40", " 449500 1").replace("proc 0 4242", "# proc 0 4242")
    assert "not clean" not in in_child(ROW, cool, "")["line"]
    found = in_child(ROW, cool, "power cap")
    assert [gpu["clean"] for gpu in found["before"]] == [True, True, None]
    assert [gpu["clean"] for gpu in found["after"]] == [False, False, False]
    assert found["after"][0]["not_clean"] == ["slowed by power cap"]
    ended = in_child(ROW.replace("tuple(sys.argv[1:])", "()"), GPUS, "nothing any more")["after"]
    assert ended[0]["not_clean"] == ["slowed by heat (hardware)", "other processes (4242)"]
    assert [gpu["clean"] for gpu in ended] == [False, True, None]
