"""`msgdas train` and `msgdas eval` on the embedded images, tiny."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from msgdas.engine.cli import main
from msgdas.engine.errors import CheckpointError, ConfigError, GenotypeError, InterruptedSearchError
from msgdas.engine.run import checkpoint
from msgdas.engine.run.rundir import read_metrics
from msgdas.engine.settings.train_config import RECIPES, TrainConfig, demo, from_json, learning_rate
from msgdas.engine.spaces.genotype_text import published
from msgdas.engine.training.judging import judge
from msgdas.engine.training.trainer import resume, train

CELL = json.dumps(published()["DARTS_V2"])
TINY: dict[str, Any] = {
    "genotype": CELL, "channels": 4, "layers": 3, "image": 28, "batch": 16, "limit": 64, "epochs": 2,
    "eval_images": 65, "drop_path": 0.3, "auxiliary": 0.4, "ema": 0.9, "cutout": 8, "threads": 1,
    "accumulate": 2, "checkpoint_every": 1, "keep": 99,
}  # fmt: skip


def tiny(**overrides: Any) -> TrainConfig:
    return demo(**{**TINY, **overrides})


def rows(run: Path) -> list[dict[str, Any]]:
    """What was measured, without what a clock says and what a resumed run adds."""
    kept = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] in ("step", "epoch")]
    return [{name: value for name, value in row.items() if name != "time"} for row in kept]


def states_equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(states_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(states_equal, a, b))
    return a == b


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of 8 steps with a checkpoint after each."""
    return train(tiny(), out=tmp_path_factory.mktemp("train") / "run").path


def test_a_training_leaves_what_its_network_costs_here(whole: Path) -> None:
    cost = json.loads((whole / "cost.json").read_text())
    assert cost["network"] == {"channels": 4, "layers": 3, "image": 28, "classes": 10, "stem": "cifar"}
    assert (cost["batch"], cost["micro_batches"], cost["threads"], cost["dtype"]) == (16, 2, 1, "float32")
    assert cost["training_peak_bytes"] == max(row.get("peak_bytes", 0) for row in read_metrics(whole / "metrics.jsonl"))
    assert 0 < cost["inference_peak_bytes"] < cost["training_peak_bytes"] and cost["latency_ms"]["median"] > 0


@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_a_training_resumes_bit_for_bit_from_any_step(whole: Path, tmp_path: Path, step: int) -> None:
    """In mid-epoch, at the end of an epoch, and one step before the end."""
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(whole), str(run)], check=True)
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            subprocess.run(["rm", "-r", str(folder)], check=True)
    resume(run)
    assert rows(run) == rows(whole)
    last, again = (checkpoint.load(path, tiny()) for path in (whole, run))
    assert last is not None and again is not None
    assert last.step == again.step == 8
    assert states_equal(last.state, again.state)


def test_the_last_epoch_is_the_result_and_the_best_is_only_written_down(whole: Path) -> None:
    epochs = [row for row in rows(whole) if row["kind"] == "epoch"]
    assert [row["best"] for row in epochs] == [epochs[0]["val_accuracy"], max(row["val_accuracy"] for row in epochs)]
    shown = json.loads(judge(whole, limit=65, as_json=True))
    assert shown["images"] == 65
    assert shown["top1"] == epochs[-1]["val_accuracy"]
    assert shown["top5"] == epochs[-1]["val_top5"] >= shown["top1"]
    assert len(shown["classes"]) == 10


def test_fault_02_a_signal_ends_a_training_after_its_step_and_it_goes_on(tmp_path: Path, whole: Path) -> None:
    code = (
        "import os, signal, sys, json\n"
        "from pathlib import Path\n"
        "from msgdas.engine.training import student\n"
        "from msgdas.engine.settings.train_config import from_json\n"
        "from msgdas.engine.training.trainer import train\n"
        "real = student.Student.passes\n"
        "def passes(self, images, labels, number, epoch):\n"
        "    if number == 2:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return real(self, images, labels, number, epoch)\n"
        "student.Student.passes = passes\n"
        "train(from_json(sys.argv[1]), out=Path(sys.argv[2]))\n"
    )
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", code, tiny().to_json(), str(run)], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert InterruptedSearchError.__name__ in done.stderr and f"signal {int(signal.SIGTERM)}" in done.stderr
    assert [row["step"] for row in rows(run)] == [1, 2, 3]
    resume(run)
    assert rows(run) == rows(whole)


def test_a_training_learns(tmp_path: Path) -> None:
    """Ten classes of the embedded images; a guess is right in 10 %. Seeds end between 45 and 65 % after 120 steps."""
    config = demo(genotype=CELL, channels=8, layers=3, epochs=3, limit=1280, eval_images=500, batch=32, threads=1)
    assert train(config, out=tmp_path / "run").accuracy > 0.35


def test_bfloat16_and_the_other_space_train(tmp_path: Path) -> None:
    arch = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|skip_connect~2|"
    config = tiny(genotype=json.dumps({"arch": arch}), precision="bfloat16", layers=3, epochs=1, limit=32)
    assert train(config, out=tmp_path / "run").peak_bytes > 0


def test_a_budget_cuts_the_batch_into_the_fewest_parts_that_fit(tmp_path: Path) -> None:
    config = tiny(batch=32, accumulate=1, epochs=1, limit=32, ema=0.0)
    free = train(config, out=tmp_path / "free").peak_bytes
    budget_bytes = free // 2
    bound = train(tiny(batch=32, accumulate=1, epochs=1, limit=32, ema=0.0, budget=f"{budget_bytes}B"),
                  out=tmp_path / "bound")  # fmt: skip
    assert bound.peak_bytes <= budget_bytes
    found = checkpoint.load(bound.path, from_json((bound.path / "config.json").read_text()))
    assert found is not None
    parts = found.state["student"]["micro_batches"]
    assert parts > 1 and bound.peak_bytes > budget_bytes // 3


def test_schedules_are_those_of_the_sources() -> None:
    imagenet = RECIPES["imagenet"](genotype=CELL)
    # PC-DARTS: lr (epoch + 1) / 5 of 0.5 * 245 / 245 in the first epoch, the tail from epoch 245 on.
    assert learning_rate(imagenet, 0) == pytest.approx(0.1)
    assert learning_rate(imagenet, 10) == pytest.approx(0.5 * 235 / 245)
    assert learning_rate(imagenet, 245) == pytest.approx(0.5 * 5 / (245 * 5))
    cifar = RECIPES["cifar"](genotype=CELL)
    assert (learning_rate(cifar, 0), learning_rate(cifar, 300)) == (0.025, pytest.approx(0.0125))


def test_wrong_input_is_one_line(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, words in (
        (["train", "DARTS_V2", "nasbench201"], 6, "another space"),
        (["train", "DARTS_V2", "demo", "--image", "30"], 2, "multiple of 4"),
        (["train", "DARTS_V2", "demo", "--image", "2"], 2, "multiple of 4"),
        (["train", "DARTS_V2", "demo", "--layers", "100000000"], 2, "allowed 1 to 1000"),
        (["train", "DARTS_V2", "--set", "num_classes=11", "--out", str(tmp_path / "c")], 3, "num_classes 11; allowed"),
        (["train", "DARTS_V3", "demo"], 6, "published name"),
        (["train", "DARTS_V2", "nothing"], 2, "unknown recipe"),
        (["train", "DARTS_V2", "--precision", "float16", "--device", "cpu", "--out", str(tmp_path / "a")], 2, "CUDA"),
        (["train", "DARTS_V2", "--budget", "1MiB", "--out", str(tmp_path / "b")], 10, "not even"),
        (["train"], 2, "nothing to train"),
        (["train", "--resume", str(whole), "--epochs", "3"], 2, "--resume RUN alone"),
        (["eval", str(tmp_path / "none")], 4, "no run folder"),
        (["eval", str(whole), "--data", "nothing"], 3, "unknown data set"),
    ):
        assert main(arguments) == code, arguments
        text = capsys.readouterr().err
        assert words in text and text.count("\n") == 1, text


def test_random_cells_are_trained_by_their_seed(tmp_path: Path) -> None:
    size = "demo --channels 4 --layers 3 --epochs 1 --limit 64 --set eval_images=64 --set threads=1"
    for name, target in (("a", "random:1"), ("b", "random:1"), ("c", "random:2")):
        assert main(["train", target, *size.split(), "--out", str(tmp_path / name)]) == 0
    cells = [(tmp_path / name / "genotype.json").read_text() for name in "abc"]
    assert cells[0] == cells[1] != cells[2]


def test_weights_of_another_genotype_are_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(whole), str(run)], check=True)
    other = tiny(genotype=json.dumps(published()["PDARTS"]))
    (run / "config.json").write_text(other.to_json())
    with pytest.raises(CheckpointError, match=r"another configuration.*genotype"):
        judge(run)
    for words in (["eval", str(run)], ["export", str(run)], ["train", "--resume", str(run)]):
        assert main(words) == 5, words
        text = capsys.readouterr().err
        assert "another configuration" in text and "Next: " in text and text.count("\n") == 1, text


def test_a_search_is_not_a_training(tmp_path: Path) -> None:
    from msgdas.engine.settings.recipes import demo as search_demo

    with pytest.raises(ConfigError, match="not of a training"):
        from_json(search_demo().to_json())
    with pytest.raises(GenotypeError):
        tiny(genotype='{"normal": []}')
