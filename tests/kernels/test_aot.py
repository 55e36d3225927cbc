"""Compilation without a GPU: what is read from machine code, the launch table, and the kernels' budgets."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgdas.kernels
import pytest
from msgdas.kernels import aot, budgets
from msgdas.kernels.machine_code import Facts, inner_loops

COMPILING = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
FACTS = Facts(
    registers=100, spill_bytes=0, shared_bytes=2048, instructions=500, loads=10, wide_loads=8, matrix=4, per_tap=3.0,
    per_normalised_tap=None,
)  # fmt: skip
BUDGETS: dict[str, Any] = {
    "limits": {"stage_kernel": {"sm_90": {"per_tap": 3.1}}},
    "kernels": {
        "stage_kernel": {
            "sm_90": {
                "registers": 100, "shared_bytes": 2048, "instructions": 500, "per_tap": 3.0, "wide_share": 0.8,
                "matrix": 4,
            }
        }
    },
}  # fmt: skip


def result_of(**changes: Any) -> aot.Result:
    return aot.Result("stage_kernel", "sm_90", "darts-16", "bfloat16", dataclasses.replace(FACTS, **changes), None)


def test_within_its_budget_a_kernel_says_nothing():
    assert aot.breaches([result_of(), result_of(registers=60)], BUDGETS) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"spill_bytes": 8}, "stage_kernel on sm_90 (darts-16): spill_bytes 8, allowed 0"),
        ({"registers": 111}, "stage_kernel on sm_90: registers 111, allowed 110"),
        ({"shared_bytes": 4096}, "stage_kernel on sm_90: shared_bytes 4096, allowed 2252.8"),
        ({"instructions": 600}, "stage_kernel on sm_90: instructions 600, allowed 550"),
        ({"per_tap": 3.2}, "stage_kernel on sm_90 (darts-16): per_tap 3.20, allowed 3.1"),
        ({"wide_loads": 5}, "stage_kernel on sm_90: wide_share 0.5, at least 0.727273"),
        ({"matrix": 0}, "stage_kernel on sm_90: matrix 0, at least 3.63636"),
    ],
)
def test_fault_30_every_breach_is_one_line(changes, line):
    assert aot.breaches([result_of(), result_of(**changes)], BUDGETS) == [line]


def test_limits_hold_at_stride_2_too():
    result = dataclasses.replace(result_of(per_tap=3.2), cell="darts-32-reduction")
    assert aot.breaches([result], BUDGETS) == ["stage_kernel on sm_90 (darts-32-reduction): per_tap 3.20, allowed 3.1"]


def test_a_cell_that_misses_a_limit_has_its_own():
    limits = {"stage_kernel": {"sm_90": {"per_tap": 3.1, "cells": {"darts-96-reduction": {"per_tap": 3.3}}}}}
    missing = dataclasses.replace(result_of(per_tap=3.25), cell="darts-96-reduction")
    assert aot.breaches([missing], {**BUDGETS, "limits": limits}) == []
    missing = dataclasses.replace(result_of(per_tap=3.3 + 0.01), cell="darts-96-reduction")
    assert aot.breaches([missing], {**BUDGETS, "limits": limits})[0].endswith("per_tap 3.31, allowed 3.3")


def test_budgets_are_printed_as_the_docs_show_them(capsys):
    budgets.main(["--figure", "registers"])
    heads, _, *rows = capsys.readouterr().out.splitlines()
    assert set(heads.split(" | ")[1:]) >= {"sm_80", "sm_90"}
    assert len(rows) == len(budgets.read()["kernels"])
    budgets.main([])
    assert "| stage | " in capsys.readouterr().out


def test_what_does_not_compile_or_has_no_budget_is_a_breach():
    failed = dataclasses.replace(result_of(), facts=None, error="no such instruction")
    assert aot.breaches([failed], BUDGETS) == [
        "stage_kernel on sm_90 (darts-16): does not compile: no such instruction"
    ]
    unknown = dataclasses.replace(result_of(), arch="sm_80")
    assert aot.breaches([unknown], BUDGETS) == ["stage_kernel on sm_80: no budget; run with --update"]


def test_loops_are_found_in_machine_code():
    code = [
        "MOV",
        "FFMA",
        "LDG",
        "FFMA",
        "@P0 BRA `(.L_x_1)",
        "IADD",
        "@!P1 BRA `(.L_x_0)",
        "EXIT",
        "BRA `(.L_x_2)",
    ]
    labels = {".L_x_0": 1, ".L_x_1": 2, ".L_x_2": 8}
    assert list(inner_loops(code, labels)) == [code[2:5]]


@pytest.fixture(scope="module")
def toys() -> dict[str, dict[str, Any]]:
    command = [sys.executable, str(Path(__file__).with_name("compiled_toys.py"))]
    result = subprocess.run(command, env=COMPILING, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def test_wide_loads_need_aligned_pointers(toys):
    assert toys["aligned"]["wide_loads"] == toys["aligned"]["loads"] == 8
    assert toys["unaligned"]["wide_loads"] == 0
    assert toys["unaligned"]["loads"] == 32


def test_spills_are_seen(toys):
    assert toys["crowded"]["spill_bytes"] > 0
    assert toys["crowded"]["registers"] <= 32
    assert toys["aligned"]["spill_bytes"] == 0


def test_tensor_cores_are_seen(toys):
    assert toys["product"]["matrix"] > 0
    assert toys["aligned"]["matrix"] == 0


def test_instructions_per_tap_are_counted(toys):
    assert 1 < toys["taps"]["per_tap"] < 8
    assert toys["aligned"]["per_tap"] is None


def test_the_launch_table_holds_every_kernel():
    program = "from msgdas.kernels import recording as r; print(*{launch.kernel for launch in r.launch_table('sm_90')})"
    result = subprocess.run([sys.executable, "-c", program], env=COMPILING, capture_output=True, text=True, check=True)
    written = set()
    for module in pkgutil.iter_modules(msgdas.kernels.__path__):
        if not module.ispkg:
            source = Path(importlib.import_module(f"msgdas.kernels.{module.name}").__file__).read_text()
            written |= set(re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE))
    assert written == set(result.stdout.split())


def run_aot(*arguments: str) -> tuple[dict[tuple[str, str], list[dict[str, Any]]], str, int]:
    """(facts by kernel and architecture, stderr, exit code)."""
    command = [sys.executable, "-m", "msgdas.kernels.aot", "--json", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in map(json.loads, result.stdout.splitlines()):
        found.setdefault((line["kernel"], line["arch"]), []).append(line["facts"])
    return found, result.stderr, result.returncode


def test_the_costly_kernels_of_a_cell_are_within_their_budgets_on_sm_90():
    costly = ("stage_kernel", "point_kernel", "point_weights_kernel", "combine_kernel", "reduce_kernel")
    found, complaints, code = run_aot("--arch", "sm_90", "--cells", "darts-16", "--kernels", *costly)
    assert complaints == ""
    assert code == 0
    for kernel in ("stage_kernel", "point_kernel", "point_weights_kernel"):
        assert all(facts["matrix"] > 0 for facts in found[kernel, "sm_90"])
    for kernel in ("combine_kernel", "reduce_kernel"):
        assert all(facts["wide_loads"] / facts["loads"] > 0.5 for facts in found[kernel, "sm_90"])
    # The depthwise forward.
    taps = [facts["per_tap"] for facts in found["stage_kernel", "sm_90"]]
    assert all(value is not None and value <= 3.2 for value in taps)


def test_a_kernel_compiles_for_every_architecture():
    found, complaints, code = run_aot("--cells", "darts-16", "--kernels", "draw_backward_kernel")
    assert complaints == ""
    assert code == 0
    assert {arch for _, arch in found} == set(aot.TARGETS)


def test_the_whole_table(full_tables):
    _, complaints, code = run_aot()
    assert complaints == ""
    assert code == 0
    assert set(budgets.read()["kernels"]["stage_kernel"]) == set(aot.TARGETS)
