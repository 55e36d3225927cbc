"""The contest of the loaders: a gate that sees wrong pixels, and rows that can be kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from msgdas.bench.loaders import PIL, Contest, main, measured
from msgdas.bench.results import read
from msgdas.engine.errors import ConfigError, GateError
from msgdas.engine.images.decoding import TurboDecoder
from PIL import Image


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for number in range(8):
        coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        path = tmp_path / "tree" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((80, 70), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "tree"


def test_rows_of_a_run(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "rows.jsonl"
    words = ["--data", str(tree), "--image", "32", "--batch", "4", "--rounds", "1", "--out", str(out), "--json"]
    try:
        assert main(words) == 0
    finally:
        torch.set_num_threads(threads)
    rows = read(out)
    assert [row["name"] for row in rows][:2] == [PIL, "torch"]
    assert rows == [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["figures"]["less"]["values"] == [1.0]
    assert str(tree) not in out.read_text()


def test_wrong_pixels_are_no_figures(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contest = Contest(tree, image=32, batch=4, threads=1, batches=1)
    assert contest.gate().passed
    right = TurboDecoder.decode
    monkeypatch.setattr(TurboDecoder, "decode", lambda self, *of: right(self, *of).flip(2))
    with pytest.raises(GateError, match="no figures of torch"):
        contest.gate().require("torch")


def test_ratios_are_taken_within_a_round() -> None:
    found = measured({PIL: lambda: sum(range(200_000)) and None, "torch": lambda: None}, 10, 3)
    for theirs, ours, less in zip(*(found[PIL]["cpu_ms"], found["torch"]["cpu_ms"], found["torch"]["less"])):
        assert less == theirs / ours > 1


def test_a_tree_that_is_too_small(tree: Path) -> None:
    with pytest.raises(ConfigError, match="too few images for two batches"):
        Contest(tree, image=32, batch=8, threads=1, batches=1)
