"""Runs side by side: their groups, spreads, names and differences, from run folders made without a search."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import statistics
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from msgdas.engine.cli import parser
from msgdas.engine.commands.configuration import given
from msgdas.engine.errors import ConfigError
from msgdas.engine.report.compare import compare
from msgdas.engine.report.compare_page import comparison_page
from msgdas.engine.report.comparison import comparison, spread
from msgdas.engine.report.overlay import MAX_LABEL_LENGTH, Mark, overlay_figure
from msgdas.engine.report.report import page
from msgdas.engine.report.subject import TrainRun, read_run, trainings_in
from msgdas.engine.report.text import train_command
from msgdas.engine.run.history import CHOSEN
from msgdas.engine.run.rundir import METRICS
from msgdas.engine.settings.train_config import KEYS, RECIPES, TrainConfig, from_json, recipe_named, recipe_values
from msgdas.engine.spaces.counting import count
from msgdas.engine.spaces.genotype import from_layers

sys.path.insert(0, str(Path(__file__).parent))
from runs import CELL, rows, small_demo, training, write_run

ARCH = json.dumps({"arch": "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|skip_connect~2|"})


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two searches and three trainings that differ in their seeds, the last of each kind of an own width."""
    made = [write_run(tmp_path / f"s{seed}", small_demo(epochs=3, warmup=1, seed=seed)) for seed in (0, 1)]
    made += [training(tmp_path / f"t{seed}", 0.1 + 0.02 * seed, seed=seed) for seed in (0, 1)]
    return [*made, training(tmp_path / "wide", 0.2, channels=12)]


def test_runs_that_differ_in_their_seed_are_averaged(runs: list[Path]) -> None:
    made = comparison(runs)
    assert [group.names for group in made.groups] == [("s0", "s1"), ("t0", "t1"), ("wide",)]
    found = made.groups[1].spreads["accuracy"]
    values = [0.3, 3 * 0.12]
    assert (found.n, found.mean, found.sd) == (2, pytest.approx(0.33), pytest.approx(statistics.stdev(values)))
    assert math.isnan(made.groups[2].spreads["accuracy"].sd)
    last = [list(rows(small_demo(epochs=3, warmup=1, seed=seed)))[-1] for seed in (0, 1)]
    searched = made.groups[0].spreads["accuracy"]
    assert searched.mean == pytest.approx(statistics.fmean(row["val_accuracy"] for row in last))
    assert made.differing == {
        "search": {"seed": {"s0": 0, "s1": 1}},
        "train": {"channels": {"t0": 8, "t1": 8, "wide": 12}, "seed": {"t0": 0, "t1": 1, "wide": 0}},
    }


def test_an_unfinished_run_is_shown_and_not_averaged(tmp_path: Path, runs: list[Path]) -> None:
    cut = training(tmp_path / "t2", 0.3, epochs=1, seed=2)
    made = comparison([*runs[2:4], cut])
    assert len(made.groups) == 1 and made.groups[0].spreads["accuracy"].n == 2
    text = compare([*runs[2:4], cut], out=tmp_path / "page.html")
    assert "unfinished: 1 of 3 epochs" in text and "mean \u00b1 sd (2 of 3)" in text
    assert "unfinished: 1 of 3 runs" in (tmp_path / "page.html").read_text()
    alone = comparison([training(tmp_path / "t3", 0.3, epochs=0, seed=3), cut])
    assert "none finished" in compare([cut, tmp_path / "t3"], out=tmp_path / "page.html")
    assert alone.groups[0].spreads["accuracy"].n == 0


def test_json_says_what_the_rows_say(tmp_path: Path, runs: list[Path]) -> None:
    found = json.loads(compare(runs, out=tmp_path / "page.html", as_json=True))
    by_name = {run["name"]: run for run in found["runs"]}
    wide = by_name["wide"]
    assert wide["accuracy"] == pytest.approx(0.6) and wide["peak_bytes"] == 5 << 20 and wide["elapsed_s"] == 3 * 2.0
    config = from_json((runs[4] / "config.json").read_text())
    usual = count(config.cells, channels=36, layers=20, image=32, classes=10, stem="cifar")
    own = count(config.cells, channels=12, layers=3, image=28, classes=10, stem="cifar")
    assert (wide["params"], wide["macs"]) == (usual.params, usual.macs)
    assert (wide["trained"]["params"], wide["trained"]["macs"]) == (own.params, own.macs)
    assert by_name["s0"]["trained"] is None and "super-net" in by_name["s0"]["accuracy_is"]
    assert found["groups"][2]["accuracy"] == {"mean": pytest.approx(0.6), "sd": None, "n": 1}
    assert found["page"] == str(tmp_path / "page.html")


def test_names_tell_runs_apart_and_nothing_of_the_disk(tmp_path: Path) -> None:
    paths = [training(tmp_path / folder / "trained", 0.1) for folder in ("a", "b")]
    assert [name for name, _ in comparison(paths).named] == ["a/trained", "b/trained"]
    compare(paths, out=tmp_path / "page.html")
    assert str(tmp_path) not in (tmp_path / "page.html").read_text()


def test_a_run_is_given_once_and_two_are_needed(runs: list[Path]) -> None:
    with pytest.raises(ConfigError, match="two runs or more; got 1 run"):
        comparison(runs[:1])
    with pytest.raises(ConfigError, match="given twice"):
        comparison([runs[0], runs[1], runs[0].parent / "s1" / ".." / "s0"])


class Tags(HTMLParser):
    """Names of the elements, and all ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]


def test_the_page_stands_alone(runs: list[Path]) -> None:
    text = comparison_page(comparison(runs))
    found = Tags(text)
    assert "http" not in text and not {"script", "img", "link"} & set(found.names)
    assert len(found.ids) == len(set(found.ids))
    # Three charts of each kind, and three genotypes: two were found, one is trained three times.
    assert found.names.count("svg") == 2 * 3 + 3


HOSTILE = [
    b"\xff\xfe{", b'{"kind": "epoch", "epoch": 2, "step": 6, "val_accuracy": 1e999}', b"[" * 100_000,
    b'{"kind": "epoch", "epoch": 1, "step": "x", "val_accuracy": "high", "val_top5": [], "best": {}}',
    b'{"kind": "memory", "epoch": 0, "phase": "training", "peak_bytes": 1e308}', b'{"kind": ["step"]}',
    b'{"kind": "step", "step": 3, "loss": -1e308, "time": {"step_s": 1e308, "samples_per_s": 1e308}}', b"null",
    b'{"kind": "memory", "epoch": 1, "phase": "training", "peak_bytes": 1e308}', b'{"kind": "st',
]  # fmt: skip


def test_damaged_rows_never_raise(tmp_path: Path, runs: list[Path]) -> None:
    for path in (runs[0], runs[2], runs[3]):
        with open(path / METRICS, "ab") as file:
            file.write(b"\n".join(HOSTILE))
    found = json.loads(compare(runs, out=tmp_path / "page.html", as_json=True))
    assert found["runs"][2]["accuracy"] is None and found["runs"][2]["peak_bytes"] == 5 << 20
    assert found["groups"][1]["accuracy"]["n"] == 0 and found["runs"][4]["accuracy"] == pytest.approx(0.6)


def test_random_searchs_accuracy_is_that_of_the_chosen_cell(tmp_path: Path) -> None:
    """Its epochs judge other cells, drawn to see the course."""
    path = write_run(tmp_path / "run", small_demo(method="random", epochs=1, warmup=0))
    run = read_run(path)
    assert run.finished and math.isnan(run.accuracy)
    with open(path / METRICS, "a") as file:
        file.write(json.dumps({"kind": "event", "step": 16, "what": CHOSEN, "detail": "", "val_accuracy": 0.25}) + "\n")
    assert read_run(path).accuracy == 0.25
    (path / "genotype.json").unlink()
    assert read_run(path).accuracy == read_run(path).history.epochs[-1].val_accuracy


def test_spread_leaves_out_what_nobody_measured() -> None:
    assert dataclasses.astuple(spread([1.0, math.nan, 3.0, 1e300])) == (2.0, pytest.approx(math.sqrt(2)), 2)
    assert spread([math.inf]).n == 0


@pytest.mark.parametrize("label", ["$\\foo$", "_private", "\udcff\n\u4e2d", "x" * 500])
def test_any_name_can_stand_in_a_legend(label: str) -> None:
    figure = overlay_figure([(Mark(label, 0), np.array([1.0, 2.0]), np.array([3.0, 4.0]))], "epoch", "accuracy (%)")
    figure.canvas.draw()
    (text,) = figure.legends[0].get_texts()
    assert 0 < len(text.get_text()) <= MAX_LABEL_LENGTH


def test_trainings_are_found_beside_what_is_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", small_demo(epochs=1, warmup=0))
    training(run / "trained", 0.2)
    write_run(run / "another-search", small_demo(epochs=1, warmup=0))
    (run / "damaged").mkdir()
    (run / "damaged" / "config.json").write_text("[[[")
    (run / "empty").mkdir()
    found, troubles = trainings_in(run)
    assert [one.path.name for one in found] == ["trained"]
    (trouble,) = troubles
    assert trouble.startswith("damaged: ") and str(tmp_path) not in trouble


@pytest.mark.parametrize(
    "config",
    [
        RECIPES["demo"](genotype=CELL),
        RECIPES["cifar"](genotype=CELL, seed=3, ema=0.9, augment=False, data_root="a b"),
        RECIPES["nasbench201"](genotype=ARCH, layers=6, epochs=2),
        TrainConfig(genotype=CELL, recipe="my own"),
    ],
    ids=range(4),
)
def test_the_command_gives_the_same_training(config: TrainConfig) -> None:
    words = shlex.split(train_command(config, "cell.json"))
    assert words[:3] == ["msgdas", "train", "cell.json"]
    recipe, overrides = given(parser().parse_args(words[1:]), KEYS)
    assert recipe_named(recipe)(**overrides, genotype=config.genotype) == config


def test_a_recipes_values_are_all_keys() -> None:
    for name, recipe in RECIPES.items():
        genotype = ARCH if name == "nasbench201" else CELL
        assert dataclasses.asdict(recipe(genotype=genotype)) == recipe_values(name) | {"genotype": genotype}


def test_a_chain_has_a_page_too(tmp_path: Path) -> None:
    genotype = from_layers("mobile", ["mbconv3_3x3"] * 21)
    path = training(
        tmp_path / "chain", 0.1, genotype=json.dumps(genotype.to_json_dict()), channels=32, layers=21, image=32
    )
    run = read_run(path)
    assert isinstance(run, TrainRun) and run.cost.params_with_aux is None
    assert "Layers left out: chain 0." in page(path) and "<caption>" in page(path)
