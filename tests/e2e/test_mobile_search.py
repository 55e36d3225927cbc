"""A search of a chain as a user runs it: run folder, report, genotype, and a resume that changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from msgdas.engine.report.show import show
from msgdas.engine.run import checkpoint
from msgdas.engine.run.rundir import read_metrics
from msgdas.engine.search.searcher import resume, search
from msgdas.engine.settings.recipes import demo
from msgdas.engine.spaces.genotype import Genotype

TINY = {
    "channels": 4, "image": 16, "batch": 8, "limit": 24, "eval_images": 8, "epochs": 2, "warmup": 1, "device": "cpu",
    "checkpoint_every": 2, "keep": 100, "threads": 1, "alpha_lr": 0.1,
}  # fmt: skip


def losses(run: Path) -> list[object]:
    rows = read_metrics(run / "metrics.jsonl")
    return [(row.get("loss"), row.get("genotype")) for row in rows if row["kind"] in ("step", "epoch")]


def test_search_and_resume_bit_for_bit(tmp_path):
    space = "imagenet-mobile"
    result = search(demo(**TINY, space=space), out=tmp_path / "whole")
    assert Genotype.load(tmp_path / "whole" / "genotype.json") == result.genotype
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "Derived chain" in page and "An arc is a layer's shortcut." in page and "Numbers in circles" not in page
    assert "<h2>Layers left out</h2>" in page and ">layers left out</th>" in page and "Skip-connects" not in page
    assert "layers" in show(str(tmp_path / "whole"))
    run = tmp_path / "again"
    shutil.copytree(tmp_path / "whole", run)
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > 4:
            shutil.rmtree(folder)
    again = resume(run)
    assert again.genotype == result.genotype and losses(run) == losses(tmp_path / "whole")
    states = [checkpoint.load(path, demo(**TINY, space=space)).state["learner"] for path in (tmp_path / "whole", run)]
    ours, theirs = ([*state["net"].values(), *state["sampler"].values()] for state in states)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
