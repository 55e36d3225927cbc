"""The page of benchmarks: written from results, and the committed one is what its command writes."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from msgdas.bench.__main__ import dispatch
from msgdas.bench.figures import pareto
from msgdas.bench.gate import Gate
from msgdas.bench.page import figures, page, results, targets
from msgdas.bench.quality import EVALUATION_SEEDS
from msgdas.bench.results import FOLDER, append, row
from msgdas.bench.speed import SHARES
from msgdas.bench.variants import BASE, SIZES, published, sampled, sweep
from msgdas.engine.errors import DataError
from msgdas.engine.report.draw import figure_bytes

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
GREEN = Gate(True, {}, "compared")
FACTS = {
    "machine": "a processor, 2 cores", "cpu": {"instructions": "AVX2", "mhz": None}, "gpus": [], "threads": 1,
    "versions": {"python": "3.11", "torch": "2", "triton": "3"}, "commit": "0123456789", "dirty": False,
    "command": "python -m msgdas.bench speed", "date_utc": "2026-01-01T00:00:00+00:00",
}  # fmt: skip
VARIANTS = [published("darts"), published("gdas"), *sweep("darts")]


def memory_rows(facts=FACTS):
    for number, one in enumerate(VARIANTS):
        config = {**SIZES["darts"], "method": one.method, **one.options, "batches": [2, 3]}
        bytes_ = {"peak_per_image_bytes": [2.0**27 / (number + 1)], "kept_per_image_bytes": [119.7 * 2**20]}
        yield row("memory", one.name, config, {**bytes_, "fixed_bytes": [0.0]}, GREEN, facts)


def speed_rows(facts=FACTS):
    for number, one in enumerate(VARIANTS):
        config = {**SIZES["darts"], "batch": 16, "method": one.method, **one.options}
        yield row("speed", one.name, config, {"step_ms": [1000.0 - number, 900.0 - number, 800.0]}, GREEN, facts)


def quality_rows(methods=("msg", "darts"), minutes=(2.0, 8.0)):
    chance = random.Random(0)
    for method in methods:
        for budget in minutes:
            for seed in (0, *EVALUATION_SEEDS):
                yield {
                    "kind": "quality", "method": method, "seed": seed, "budget_minutes": budget, "budget_passes": None,
                    "accuracy": 90 + 4 * chance.random() if seed else 10.0, "regret": 1.0, "tau": 0.5,
                    "tau_of_parameters": 0.57, "cpu_s": 60 * budget * (1 + 0.1 * chance.random()),
                    "cpu_s_is_whole": seed != EVALUATION_SEEDS[0], "sample_passes": 1000, "space": "nasbench201",
                    "provenance": FACTS,
                    "settings": {"layers": 3, "channels": 16, "image": 8},
                }  # fmt: skip


def collapse_rows():
    for space in ("s1", "s2"):
        for number, dbi in enumerate(("off", "dropblock")):
            for seed in range(2):
                yield {
                    "kind": "collapse", "space": space, "dbi": dbi, "seed": seed, "skips": [1, 2 + number, 4 + seed],
                    "val_accuracy": [0.5], "provenance": FACTS,
                }  # fmt: skip


def test_the_committed_page_is_what_the_command_writes(tmp_path):
    assert dispatch(["page", "--docs", str(tmp_path)]) == 0
    assert (tmp_path / "benchmarks.md").read_text() == (DOCS / "benchmarks.md").read_text(), (
        "python -m msgdas.bench page writes it anew"
    )
    for picture in tmp_path.glob("*.png"):
        assert (DOCS / picture.name).exists() and f"({picture.name})" in (DOCS / "benchmarks.md").read_text()


def test_committed_rows_are_of_a_commit_and_of_no_host():
    for one in results(FOLDER):
        if "figures" in one:
            assert one["provenance"]["commit"] and not one["provenance"]["dirty"], one["name"]
    text = "".join(path.read_text() for path in FOLDER.rglob("*.json*"))
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)


def test_a_page_of_rows():
    rows = [*memory_rows(), *speed_rows(), *quality_rows()]
    text = page(rows, figures(rows))
    assert "| darts, as published: kept per image | 119.70 MiB within 1 % | 119.70 MiB |" in text
    number = [one.name for one in VARIANTS].index(sampled(2, "min").name)
    assert f"darts, as published against `msg K=2, min` | at least 40x less | {number + 1.0:.1f}x |" in text
    assert f"at least 10x less | {900 / (900 - number):.1f}x |" in text
    assert all(one.name in text for one in VARIANTS)
    assert re.findall(r"\((bench-\w+)\.png\)", text) == list(figures(rows))
    assert "(bench-" not in page(rows, ()) and "*Green" in text and "*Green" not in page(rows, ())
    assert "Nothing is recorded yet: `python -m msgdas.bench kernels --parts cpu" in text
    assert "lazy gradients" not in text and len(SHARES) > 4
    assert "**nasbench201, 3 cells, C=16, 8 px, 2 CPU minutes a search**" in text
    assert f"| msg | {len(EVALUATION_SEEDS)} | 9" in text
    assert "- msg - darts: " in text
    assert "C=16, 8 px, 8 CPU minutes, 8 seeds | no seed below 91.0, mean above 93.76 | least 9" in text


def test_searches_of_another_size_have_a_table_of_their_own():
    larger = [{**one, "settings": {**one["settings"], "layers": 9}} for one in quality_rows(minutes=(2.0,))]
    text = page([*memory_rows(), *quality_rows(minutes=(2.0,)), *larger], ())
    for layers in (3, 9):
        assert f"**nasbench201, {layers} cells, C=16, 8 px, 2 CPU minutes a search**" in text
    assert text.count(f"| msg | {len(EVALUATION_SEEDS)} |") == 2


def test_ratios_are_of_one_run():
    later = {**FACTS, "date_utc": "2026-01-02T00:00:00+00:00"}
    rows = [one for one in memory_rows() if one["name"] == BASE]
    rows += [one for one in memory_rows(later) if one["name"] != BASE]
    assert "darts, as published against" not in targets(rows)


def test_pictures_follow_the_rows():
    rows = [*memory_rows(), *speed_rows(), *quality_rows()]
    found = figures(rows)
    assert list(found) == ["bench-memory", "bench-throughput", "bench-pareto", "bench-quality"]
    lines = {line.get_label() for line in found["bench-memory"].axes[0].lines}
    assert {"policy min", "policy bn", "plain autograd", BASE, "gdas, as published"} <= lines
    assert figure_bytes(found["bench-memory"], "svg") == figure_bytes(figures(rows)["bench-memory"], "svg")
    assert list(figures([*memory_rows()])) == ["bench-memory"]
    assert figures([]) == {}


def test_ablations_and_collapse_have_sections_of_their_own():
    ablations = [{**one, "kind": "ablation"} for one in quality_rows(("base", "k-1"), (1.0,))]
    rows = [*memory_rows(), *ablations, *collapse_rows()]
    text = page(rows, figures(rows))
    assert "## Ablations" in text and "- base - k-1: " in text and "## Quality" not in text
    assert f"| base | {len(EVALUATION_SEEDS) + 1} |" in text
    assert "## Collapse" in text and "s2, dropblock" in text and "(bench-collapse.png)" in text
    panels = figures(rows)["bench-collapse"].axes
    assert [axes.get_title() for axes in panels] == ["s1", "s2"]
    assert list(panels[0].lines[1].get_ydata()) == [1, 3, 4.5]
    assert "*a processor, 2 cores; commit 0123456; 2026-01-01.*" in text


def test_a_gpu_has_a_section_where_one_was_measured():
    config = {"batch": 64, "run": "graph"}
    taken = {"step_ms": [2.0, 4.0, 8.0], "peak_bytes": [2**30], "reserved_bytes": [2**31]}
    text = page([*memory_rows(), row("gpu", "cifar: K=2", config, taken, GREEN, FACTS)], ())
    assert "## On a GPU" in text and "cifar: K=2" in text and "4.00 ms (2.00 to 8.00)" in text
    assert "32,000 images/s" in text and "1,024 MiB" in text
    assert "## On a GPU" not in page([*memory_rows()], ())


def test_loaders_latency_and_training_have_sections_where_they_were_measured():
    config = {"of": "nasbench201", "channels": 16, "layers": 3, "image": 32, "cells": 8, "threads": 1}
    errors = {"relative_error_fitted": [0.02], "relative_error_lookup": [0.06], "relative_error_macs": [0.05]}
    text = page(
        [*memory_rows(), row("latency", "predictor", config, {**errors, "latency_ms": [1.0, 3.0]}, GREEN, FACTS)], ()
    )
    assert "## Latency" in text and "1.000 to 3.000 ms" in text and "  2.0%" in text
    assert "## Training" not in text and "## Input" not in text


def test_the_front_holds_what_nothing_beats_in_both():
    points = {"a": (1.0, 5.0), "b": (2.0, 3.0), "c": (3.0, 3.0), "d": (2.5, 4.0), "e": (4.0, 1.0), "f": (2.0, 3.0)}
    assert pareto(points) == ["a", "b", "f", "e"]


def test_a_folder_without_results(tmp_path):
    with pytest.raises(DataError, match="holds no results"):
        results(tmp_path)
    append(tmp_path / "memory.jsonl", memory_rows())
    append(tmp_path / "memory.jsonl", memory_rows())
    assert len(results(tmp_path)) == len(VARIANTS)
