"""Every method searches, and resumes bit for bit."""

from __future__ import annotations

import shutil

import pytest
from msgdas.engine.learning.steps import Learner
from msgdas.engine.report.subject import read_run
from msgdas.engine.run import checkpoint
from msgdas.engine.run.rundir import read_metrics
from msgdas.engine.search.searcher import resume, search
from msgdas.engine.settings.config import from_json
from msgdas.engine.settings.method import METHODS
from msgdas.engine.settings.recipes import demo

from .test_search import flat, without_times

TINY = {
    "channels": 4, "layers": 3, "image": 16, "batch": 4, "epochs": 4, "warmup": 1, "limit": 8, "eval_images": 4,
    "checkpoint_every": 1, "keep": 100, "threads": 1,
}  # fmt: skip
# What the smallest search of a method needs beside TINY.
SHORTER: dict[str, dict[str, object]] = {
    "proxyless": {"limit": 20, "epochs": 2},
    "proxyless-two": {"limit": 20, "epochs": 2},
    "pc-darts": {"channels": 8},
    "random": {"candidates": 4},
}


def state(run) -> dict[str, object]:
    config = from_json((run / "config.json").read_text())
    return dict(flat(checkpoint.load(run, config).state["learner"]))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_search_and_its_resume(method, tmp_path):
    options = {**TINY, **SHORTER.get(method, {})}
    whole, run = tmp_path / "whole", tmp_path / "run"
    result = search(demo(method=method, **options), out=whole)
    assert result.genotype.kinds == ("normal", "reduce") and result.peak_bytes > 0
    shutil.copytree(whole, run)
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > 4:
            shutil.rmtree(folder)
    resume(run)
    assert without_times(run) == without_times(whole)
    assert (run / "genotype.json").read_text() == (whole / "genotype.json").read_text()
    ours, theirs = state(run), state(whole)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.equal(theirs[name]) if hasattr(value, "equal") else value == theirs[name], name
    trained = [row["alpha_loss"] is not None for row in read_metrics(whole / "metrics.jsonl") if row["kind"] == "step"]
    assert any(trained) == (method != "random")
    # Of the cell in genotype.json, which random search chooses at its end.
    assert read_run(whole).accuracy == result.val_accuracy == read_run(run).accuracy


@pytest.mark.parametrize(
    ("method", "same", "ahead"), [("snas", True, False), ("darts", False, False), ("darts2", False, True)]
)
def test_which_images_alpha_learns_from(method, same, ahead, tmp_path, monkeypatch):
    """Of the first step with both: the W step's own batch, or others; and whether it looks ahead to the W step's."""
    seen: dict[str, list] = {"alpha": [], "train": [], "weight": []}
    alpha_step, weight_step = Learner.alpha_step, Learner.weight_step

    def on_alpha(self, images, labels, moment, train=None):
        seen["alpha"].append(images)
        seen["train"].append(train)
        return alpha_step(self, images, labels, moment, train)

    def on_weights(self, images, labels, moment):
        seen["weight"].append(images)
        return weight_step(self, images, labels, moment)

    monkeypatch.setattr(Learner, "alpha_step", on_alpha)
    monkeypatch.setattr(Learner, "weight_step", on_weights)
    search(demo(method=method, **{**TINY, "epochs": 1, "warmup": 0}), out=tmp_path / "run")
    assert all(one.equal(other) == same for one, other in zip(seen["alpha"], seen["weight"], strict=True))
    assert all((train is not None) == ahead for train in seen["train"])
    assert all(train[0].equal(images) for train, images in zip(seen["train"], seen["weight"], strict=True) if train)
