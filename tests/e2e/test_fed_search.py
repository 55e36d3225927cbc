"""Searches on photographs in class folders, fed by each decoder, stopped in mid-epoch and gone on bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from msgdas.engine.cli import main
from msgdas.engine.run import checkpoint
from msgdas.engine.run.rundir import read_metrics
from msgdas.engine.search.searcher import resume, search
from msgdas.engine.settings.config import SearchConfig, build

from ..loaders import LOADERS
from .test_search import flat, without_times

STEPS = 3


def config_of(data: Path, loader: str) -> SearchConfig:
    """The stem and the crops of ImageNet at a small side."""
    keys = {
        "data": f"imagefolder:{data}", "stem": "imagenet", "image": 64, "channels": 4, "layers": 3, "batch": 4,
        "epochs": 1, "warmup": 0, "limit": 4 * STEPS, "eval_images": 4, "checkpoint_every": 1, "keep": 100,
        "threads": 1, "loader": loader, "jitter": "0.4,0.4,0.4,0.2",
    }  # fmt: skip
    return build({}, keys)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_search_goes_on_in_mid_epoch_bit_for_bit(
    shared_data: Path, tmp_path: Path, loader: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(shared_data / "caltech101_20", loader)
    search(config, out=tmp_path / "whole")
    said = capsys.readouterr().out
    assert "images: " in said and f"loader {loader} makes" in said
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [row["loader"] for row in rows if row["kind"] == "data"] == [loader]
    assert all(row["time"]["wait_s"] >= 0 for row in rows if row["kind"] == "step")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for later in sorted((tmp_path / "cut" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    (tmp_path / "cut" / "genotype.json").unlink()
    resume(tmp_path / "cut")
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "cut")
    ours, theirs = (dict(flat(checkpoint.load(tmp_path / run, config).state["learner"])) for run in ("whole", "cut"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name], name
    if loader == "torch":
        assert_says_that_another_fed_it(tmp_path / "cut", capsys)


def assert_says_that_another_fed_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_metrics(run / "metrics.jsonl")
    changed = (json.dumps(row | {"loader": "dali"} if "loader" in row else row) + "\n" for row in rows)
    (run / "metrics.jsonl").write_text("".join(changed))
    capsys.readouterr()
    resume(run)
    assert "warning: loader torch feeds this search now, dali did before" in capsys.readouterr().out


def test_a_missing_folder_is_one_line_and_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["search", "--data", f"imagefolder:{tmp_path / 'none'}", "--image", "64", "--out", str(tmp_path / "r")])
    assert code == 3
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and f"cannot read the image folder {tmp_path / 'none'}" in said
