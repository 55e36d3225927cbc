"""What cost.json of a training holds, on the pages, in the comparison and in `msgdas show`; damaged it is not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from msgdas.engine.cli import main
from msgdas.engine.report.compare import compare
from msgdas.engine.report.comparison import comparison
from msgdas.engine.report.report import page
from msgdas.engine.run.rundir import COST, GENOTYPE, METRICS

sys.path.insert(0, str(Path(__file__).parent))
from runs import cost_of, small_demo, training, write_run

FACTS = ("A processor, 1 thread, float32, channels_last", "12.35 ms", "12.00 to 13.50", "3.00 MiB", "57.00 MiB")
TIMES = cost_of()["latency_ms"]
DAMAGED: dict[str, Any] = {
    "empty": b"", "cut": json.dumps(cost_of()).encode()[:90], "a list": b"[1]", "deep": b"[" * 100_000,
    "no field": b"{}", "a word": cost_of(params="many"), "a flag": cost_of(macs=True), "negative": cost_of(batch=-1),
    "huge": cost_of(inference_peak_bytes=10**400), "a number": cost_of(device=7), "a line": cost_of(device="a\nb"),
    "half": cost_of(latency_ms={"median": 1.0}), "not a number": cost_of(latency_ms=TIMES | {"median": float("nan")}),
    "endless": cost_of(latency_ms=TIMES | {"max": float("inf")}), "null": cost_of(latency_ms=None),
    "no stem": cost_of(network=cost_of()["network"] | {"stem": "none"}), "an object": cost_of(auxiliary={}),
}  # fmt: skip


def measured(path: Path, content: object, **overrides: Any) -> Path:
    """A training's folder with that cost.json."""
    run = training(path, 0.2, **overrides)
    (run / COST).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return run


def test_a_trainings_page_has_what_was_measured(tmp_path: Path) -> None:
    text = page(measured(tmp_path / "run", cost_of()))
    assert all(fact in text for fact in FACTS)
    assert "batch 64 in 2 parts" in text and "process time" in text


def test_a_searchs_page_has_that_of_the_trainings_in_its_folder(tmp_path: Path) -> None:
    search = write_run(tmp_path / "search", small_demo(epochs=1, warmup=0))
    training(search / "plain", 0.1)
    assert "Measured at" not in page(search)
    measured(search / "trained", cost_of())
    text = page(search)
    assert all(fact in text for fact in (FACTS[0], ">12.35<", ">12.00 to 13.50<", ">3.0<", ">57.0<"))


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object) -> None:
    run = measured(tmp_path / "run", content)
    (run / COST).rename(tmp_path / "kept")
    without = page(run)
    (tmp_path / "kept").rename(run / COST)
    assert page(run) == without and "Measured" not in without
    other = training(tmp_path / "other", 0.1)
    assert "latency" not in compare([run, other], out=tmp_path / "page.html")
    assert main(["show", str(run)]) == 0
    assert "latency and peak memory on this machine: the same command" in capsys.readouterr().out


def test_the_comparison_has_columns_where_a_run_tells_them(tmp_path: Path) -> None:
    runs = [measured(tmp_path / "a", cost_of()), training(tmp_path / "b", 0.1, channels=12)]
    text = compare(runs, out=tmp_path / "page.html")
    head, first, second = text.splitlines()[:3]
    assert head.split()[-5:] == ["latency,", "ms", "inference", "peak,", "MiB"]
    assert first.split()[-2:] == ["12.35", "3.0"] and second.split()[-2:] == ["none", "none"]
    assert f"measured on {FACTS[0]}: a\n" in text
    assert "no mean is taken over different machines" in text
    html = (tmp_path / "page.html").read_text()
    assert "latency, ms" in html and ">12.35<" in html and FACTS[0] in html
    found = json.loads(compare(runs, out=tmp_path / "page.html", as_json=True))
    assert (found["runs"][0]["latency_ms"], found["runs"][0]["inference_peak_bytes"]) == (12.345, 3 << 20)
    assert found["runs"][0]["measured"] == cost_of()
    assert found["runs"][1]["latency_ms"] is None and found["runs"][1]["measured"] is None


@pytest.mark.parametrize(("second", "mean"), [({}, 13.345), ({"device": "Another"}, None), ({"threads": 2}, None)])
def test_a_mean_is_of_what_was_measured_alike(tmp_path: Path, second: dict[str, Any], mean: float | None) -> None:
    slower = cost_of(latency_ms=TIMES | {"median": 14.345}, **second)
    runs = [measured(tmp_path / str(seed), cost, seed=seed) for seed, cost in enumerate((cost_of(), slower))]
    (group,) = comparison(runs).groups
    found = group.spreads["latency_ms"]
    assert found.n == (0 if mean is None else 2)
    assert mean is None or found.mean == pytest.approx(mean)
    assert group.spreads["accuracy"].n == 2


def test_show_counts_a_training_as_it_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = measured(tmp_path / "run", cost_of())
    (run / GENOTYPE).unlink(missing_ok=True)
    assert main(["show", str(run)]) == 0
    text = capsys.readouterr().out
    assert "C=8, 3 layers, 28 px, 10 classes, cifar stem, as it was trained\n" in text
    assert f"measured on {FACTS[0]}\n" in text and "latency 12.35 ms (12.00 to 13.50; " in text
    assert "of cost.json, from the end of the training; on this machine now: the same command with --measure" in text
    assert main(["show", str(run), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["network"] == shown["trained_at"] == cost_of()["network"]
    assert (shown["measured"], shown["measured_by"]) == (cost_of(), "cost.json")


def test_a_size_that_the_user_gives_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The measurement is of another network then."""
    run = measured(tmp_path / "run", cost_of())
    assert main(["show", str(run), "--layers", "5", "--image", "64"]) == 0
    text = capsys.readouterr().out
    assert "C=8, 5 layers, 64 px, 10 classes, cifar stem, not as it was trained: C=8, 3 layers, 28 px" in text
    assert "latency 12.35" not in text and "the same command with --measure" in text
    assert main(["show", str(run), "--layers", "5", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["measured"] is None and shown["trained_at"]["layers"] == 3 and shown["network"]["layers"] == 5


def test_show_measures_a_training_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = measured(tmp_path / "run", cost_of())
    assert main(["show", str(run), "--measure", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["measured_by"] == "this command" and shown["measured"]["device"] != "A processor"
    assert shown["measured"]["network"] == shown["trained_at"]


def test_a_training_that_does_not_tell_its_classes_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = training(tmp_path / "run", 0.2, data="imagefolder:photos", epochs=1)
    (run / METRICS).write_text("")
    assert main(["show", str(run)]) == 0
    assert "as it was trained; its number of classes is not known" in capsys.readouterr().out
