"""`python -m msgdas.bench`: its commands, their errors, and that no figure leaves a red gate."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from msgdas.bench import gate, memory, speed
from msgdas.bench.__main__ import COMMANDS, dispatch
from msgdas.bench.command import again, answer, methods_listed
from msgdas.bench.native import TOLERANCE
from msgdas.bench.results import read
from msgdas.bench.variants import SIZES, Variant
from msgdas.engine.errors import ConfigError, GateError
from msgdas.engine.settings.method import METHODS
from msgdas.kernels import native

TINY = {"space": "darts", "channels": 4, "layers": 3, "image": 16, "classes": 10, "stem": "cifar"}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(SIZES, "darts", TINY)


def test_help_lists_every_command_without_torch():
    code = (
        "import sys\nfrom msgdas.bench.__main__ import dispatch\ndispatch(['--help'])\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as left:
        dispatch([name, "--help"])
    assert left.value.code == 0
    assert "usage: python -m msgdas.bench" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "no benchmark was named"),
        (["sped"], 2, "unknown benchmark; got sped; allowed memory"),
        (["memory", "--methods", "dart"], 2, "unknown method; got 'dart'"),
        (["memory", "--metods", "darts"], 2, "perhaps --methods"),
        (["memory", "--space", "dart"], 2, "unknown search space"),
        (["memory", "--space", "nasbench201", "--imagenet"], 2, "allowed darts"),
        (["memory", "--batches", "8", "8"], 2, "2 <= LOW < HIGH"),
        (["speed", "--rounds", "0"], 2, "--rounds: got 0, allowed 1 or more"),
        (["train", "--batch", "many"], 2, "--batch: got many, allowed 1 or more"),
        (["kernels", "--parts", "gpu"], 2, "allowed cpu, traffic, predictions"),
        (["memory", "--only", "msg K=1, min", "--out", "/proc/none/a.jsonl"], 3, "cannot be written"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_errors_are_one_line_with_a_code(words, code, said, capsys):
    assert answer(dispatch, words) == code
    error = capsys.readouterr().err
    assert error.startswith("python -m msgdas.bench: ") and error.count("\n") == 1 and said in error, error


@pytest.mark.usefixtures("tiny")
def test_memory_writes_the_rows_that_it_prints(tmp_path, capsys):
    out = tmp_path / "memory.jsonl"
    words = ["memory", "--methods", "darts,gdas", "--batches", "2", "4", "--draws", "2", "--json", "--out", str(out)]
    assert answer(dispatch, words) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == read(out)
    assert [one["name"] for one in printed] == [
        "darts, as published", "gdas, as published", "darts, min", "gdas, min",
    ]  # fmt: skip
    by_name = {one["name"]: one["figures"] for one in printed}
    dense, ours = by_name["darts, as published"], by_name["darts, min"]
    assert dense["peak_per_image_bytes"]["median"] > 4 * ours["peak_per_image_bytes"]["median"]
    assert dense["peak_per_image_bytes"]["n"] == 1 and by_name["gdas, min"]["kept_per_image_bytes"]["n"] == 2
    assert printed[0]["config"] | TINY == printed[0]["config"]
    assert printed[0]["provenance"]["command"] == (
        "python -m msgdas.bench memory --methods darts,gdas --batches 2 4 --draws 2"
    )


@pytest.mark.usefixtures("tiny")
def test_speed_takes_turns_and_prints_shares(tmp_path, capsys):
    out = tmp_path / "speed.jsonl"
    assert answer(dispatch, ["speed", "--rounds", "2", "--batch", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert all(what in shown for what, _, _ in speed.SHARES)
    found = [one for one in read(out) if "step_ms" in one["figures"]]
    assert all(one["figures"]["step_ms"]["n"] == 2 for one in found)
    assert found[0]["provenance"]["threads"] == 1 and found[0]["config"]["batch"] == 2
    names = {one["name"] for one in found}
    assert {one.name for one in memory.variants(("darts", "gdas", "msg"), "darts")} - names == {
        "msg K=4 sub-graphs, min"
    }


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
def test_kernels_are_timed_counted_and_predicted(tmp_path, capsys):
    out = tmp_path / "kernels.jsonl"
    size = ["--channels", "20", "--side", "8", "--batch", "2"]
    words = ["kernels", "--parts", "cpu,predictions", *size, "--rounds", "3"]
    assert answer(dispatch, [*words, "--out", str(out)]) == 0
    assert "PREDICTION" in capsys.readouterr().out
    found = read(out)
    assert {one["kind"] for one in found} == {"kernels", "prediction"}
    assert all(one["gate"]["errors"]["float32"] <= TOLERANCE for one in found if one["kind"] == "kernels")
    assert found[0]["figures"]["native_ms"]["n"] == 3


def test_no_time_of_a_kernel_whose_result_differs(monkeypatch, capsys):
    monkeypatch.setattr("msgdas.bench.kernels.error", lambda case: 1e-3)
    assert answer(dispatch, ["kernels", "--parts", "cpu", "--channels", "20", "--side", "8"]) in (8, 11)
    assert "no figures of" in capsys.readouterr().err


def test_turns_are_taken_round_by_round(monkeypatch):
    order = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def step(self):
            order.append(self.name)

    found = speed.times_ms({"a": Fake("a"), "b": Fake("b")}, rounds=3)
    assert order == ["a", "b"] * 4
    assert [len(values) for values in found.values()] == [3, 3]


@pytest.mark.usefixtures("tiny")
def test_nothing_is_measured_behind_a_red_gate(monkeypatch, capsys):
    allowed = dict(gate.ALLOWED)
    monkeypatch.setattr(gate, "ALLOWED", {**allowed, "float64": 0.0})
    for words in (["memory", "--methods", "darts"], ["speed", "--methods", "darts"]):
        assert answer(dispatch, words) == 11
        said = capsys.readouterr()
        assert "no figures of darts" in said.err and "darts, as published   " not in said.out


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
@pytest.mark.parametrize("method", METHODS)
def test_gates_are_green(method, space):
    found = gate.gradient_gate(method, space)
    assert found.passed
    # Whose gates only the engine computes, and whose partial channels only plain autograd has.
    alone = method in ("proxyless", "pc-darts")
    assert (
        set(found.errors) == (set() if alone else {"float64", "float32"})
        and ("nothing to compare" in found.reason) == alone
    )


def test_a_wrong_gradient_of_one_parameter_is_red(monkeypatch):
    right = gate._gradients

    def wrong(**options):
        found = right(**options)
        if options["policy"] == "min":
            name = next(name for name, grad in found.items() if name.startswith("alpha") and grad is not None)
            found[name] = found[name] * (1 + 1e-4)
        return found

    monkeypatch.setattr(gate, "_gradients", wrong)
    found = gate.gradient_gate("msg", "nasbench201")
    assert not found.passed and "float64 differs by 1.0e-04" in found.reason
    with pytest.raises(GateError):
        gate.gates_of([Variant("msg K=2, min", "msg", {"policy": "min"})], "nasbench201")


def test_lists_of_methods():
    assert methods_listed("msg, darts,msg") == ("msg", "darts")
    assert "gdas" in methods_listed("all")
    with pytest.raises(ConfigError):
        methods_listed("msg,")


def test_the_command_of_a_row_is_the_one_given():
    argv = ["--methods", "darts", "--out", "/somewhere/rows.jsonl", "--json", "--rounds", "3"]
    assert again("speed", argv) == "python -m msgdas.bench speed --methods darts --rounds 3"
    assert again("memory", ["--only", "msg K=2, min"]) == "python -m msgdas.bench memory --only 'msg K=2, min'"
    assert again("gpu", []) == "python -m msgdas.bench gpu"
