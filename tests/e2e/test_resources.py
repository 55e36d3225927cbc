"""Searches with limits on the derived network, from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from msgdas.engine.cli import main
from msgdas.engine.run.rundir import read_metrics
from msgdas.engine.search.searcher import resume, search
from msgdas.engine.settings.recipes import demo
from msgdas.engine.spaces.counting import count
from msgdas.engine.spaces.genotype import Genotype

from .test_methods import TINY
from .test_search import without_times

SMALL = [
    "search", "demo", "--space", "nasbench201", "--channels", "4", "--layers", "3", "--image", "28", "--batch", "16",
    "--epochs", "2", "--warmup", "1", "--limit", "48", "--set", "eval_images=16", "--set", "threads=1",
    "--policy", "all", "--impl", "reference", "--set", "alpha_lr=0.5",
]  # fmt: skip
TARGET = {"channels": 16, "layers": 15, "image": 32, "classes": 10, "stem": "cifar"}


@pytest.mark.parametrize("method", ["msg", "random"])
def test_a_search_ends_within_its_limits(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--max-macs", "30M", "--set", "max_params=0.4M"]
    more = ["--set", "candidates=20"] if method == "random" else []
    out = tmp_path / "run"
    assert main([*SMALL, "--method", method, *limits, *more, "--out", str(out)]) == 0, capsys.readouterr().err
    told = capsys.readouterr()
    assert "at most 30 M MACs" in told.out + told.err and "at most 400 k parameters" in told.out + told.err
    cost = count(Genotype.load(out / "genotype.json"), **TARGET)
    assert cost.macs <= 30_000_000 and cost.params <= 400_000
    epochs = [row for row in read_metrics(out / "metrics.jsonl") if row["kind"] == "epoch"]
    for row in epochs:
        seen = count(Genotype.from_json_dict(row["genotype"]), **TARGET)
        assert row["costs"] == {"macs": seen.macs, "params": seen.params} and seen.macs <= 30_000_000


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*SMALL, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("msgdas: ") and error.count("\n") == 1 and "Next: " in error, error
    return error


def test_limits_that_no_network_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def out(name: str) -> tuple[str, str]:
        return "--out", str(tmp_path / name)

    assert "7.784 M MACs or more" in fails(capsys, "--max-macs", "5M", *out("a"))
    assert "got 'many'" in fails(capsys, "--max-macs", "many", *out("b"))
    assert "no device_table" in fails(capsys, "--set", "target_latency=80ms", *out("c"))
    missing = ("--set", "target_latency=80ms", "--set", f"device_table={tmp_path / 'none.json'}")
    assert "No such file" in fails(capsys, *missing, *out("d"))
    (tmp_path / "damaged.json").write_text('{"format": 1}')
    damaged = ("--set", "target_latency=1s", "--set", f"device_table={tmp_path / 'damaged.json'}")
    assert "cannot read the device table" in fails(capsys, *damaged, *out("e"))


def test_an_expected_cost_makes_cells_cheaper_and_resumes(tmp_path: Path) -> None:
    more = {"method": "darts", "alpha_lr": 0.1, "cost": "macs", "cost_weight": 10.0, "cost_ramp": 1.0}
    options = {**TINY, "space": "nasbench201", "epochs": 6, **more}
    whole, run = tmp_path / "whole", tmp_path / "run"
    result = search(demo(**options), out=whole)
    costly = search(demo(**{**options, "cost": "none"}), out=tmp_path / "costly")
    assert count(result.genotype, **TARGET).macs < count(costly.genotype, **TARGET).macs
    expected = [row["expected_cost"] for row in read_metrics(whole / "metrics.jsonl") if row["kind"] == "epoch"]
    assert expected == sorted(expected, reverse=True) and expected[-1] < 0.8 * expected[0]
    shutil.copytree(whole, run)
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > 5:
            shutil.rmtree(folder)
    resume(run)
    assert without_times(run) == without_times(whole)
