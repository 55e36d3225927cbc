"""The report: one page that stands alone, shows what the rows say, and survives any run folder."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgdas.engine.cli import parser
from msgdas.engine.commands.configuration import config_of
from msgdas.engine.errors import RunFolderError
from msgdas.engine.report.page import RECONSTRUCTION
from msgdas.engine.report.report import page, write_report
from msgdas.engine.report.text import config_table, search_command
from msgdas.engine.run.history import History
from msgdas.engine.settings.config import SearchConfig
from msgdas.engine.settings.recipes import RECIPES, cifar10_nasbench201
from msgdas.engine.settings.recipes import demo as demo_recipe

sys.path.insert(0, str(Path(__file__).parent))
from runs import ENVIRONMENT, rows, write_run
from runs import small_demo as demo

VOID = {"meta", "br", "hr", "img", "link", "input", "col", "base", "area", "embed", "source", "track", "wbr"}
SECTIONS = [
    "cells", "curves", "alpha", "skips", "plan", "memory", "cost", "training", "schedules", "teacher", "genotype",
    "epochs", "config", "environment", "reproduce",
]  # fmt: skip
CONFIGS = {
    "finished": (demo(epochs=6, warmup=2), None),
    "under way": (demo(epochs=6, warmup=2), 1),
    "just begun": (demo(), 0),
    "tabular": (cifar10_nasbench201(epochs=4, warmup=1, mode="union", teacher="none"), None),
}


class Page(HTMLParser):
    """The page's elements; raises where a tag is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute comes twice in {tag}"
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.setdefault(self._open[-1] if self._open else "", []).append(data)

    def values(self, name):
        return [attributes[name] for _, attributes in self.tags if name in attributes]

    def text_of(self, tag):
        return "\n".join(self.words.get(tag, []))


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, (config, epochs) in CONFIGS.items():
        write_run(folder / name, config, epochs=epochs)
    return folder


@pytest.fixture(scope="module")
def pages(runs_folder):
    return {name: write_report(runs_folder / name).read_text(encoding="utf-8") for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_page_stands_alone(pages, name):
    text = pages[name]
    found = Page(text)
    assert "http" not in text and "@import" not in text
    assert not {"script", "link", "iframe", "object", "img"} & {tag for tag, _ in found.tags}
    assert [tag for tag, _ in found.tags].count("style") == 1
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    for reference in found.values("href") + found.values("src"):
        assert reference.startswith("data:") or reference.removeprefix("#") in ids
    for clip in found.values("clip-path"):
        assert clip.removeprefix("url(#").removesuffix(")") in ids
    assert [attributes["id"] for tag, attributes in found.tags if tag == "section"] == SECTIONS
    assert len(text.encode()) < 2e6
    assert RECONSTRUCTION in found.text_of("p")
    assert found.text_of("h1") == " · ".join(
        (CONFIGS[name][0].recipe, "msg", f"K={CONFIGS[name][0].k}", CONFIGS[name][0].mode)
    )


def test_outcome_is_what_the_rows_say(pages):
    config = CONFIGS["finished"][0]
    written = list(rows(config))
    steps = [row["time"] for row in written if row["kind"] == "step"]
    epochs = [row for row in written if row["kind"] == "epoch"]
    peak_bytes = max(row["peak_bytes"] for row in written if row["kind"] == "memory")
    speed = float(np.median([time["samples_per_s"] for time in steps[1:]]))
    elapsed_s = sum(time["step_s"] for time in steps) + sum(row["time"]["eval_s"] for row in epochs)
    strong = Page(pages["finished"]).words["strong"]
    assert strong == [
        f"{epochs[-1]['val_accuracy']:.1%}",
        f"{peak_bytes / 2**20:.1f} MiB",
        f"{speed:.0f} samples/s",
        f"{elapsed_s:.1f} s",
    ]
    notes = Page(pages["finished"]).text_of("span")
    assert "chance 10.0%" in notes and f"{peak_bytes / 2**20 / config.batch:.2f} MiB per sample" in notes


def test_genotype_can_be_copied(pages, runs_folder):
    for name in ("finished", "tabular"):
        answer = json.loads((runs_folder / name / "genotype.json").read_text())
        assert json.loads(Page(pages[name]).words["pre"][0]) == answer
    assert Page(pages["finished"]).words["pre"][1].startswith("Genotype(normal=[(")


def test_unfinished_runs_say_so(pages):
    assert "unfinished" not in pages["finished"] and "unfinished" not in pages["tabular"]
    assert (
        "unfinished: 1 of 6 epochs" in pages["under way"] and "Not final: the cell after epoch 1." in pages["under way"]
    )
    assert "unfinished: 0 of 6 epochs" in pages["just begun"] and "<svg" not in pages["just begun"]
    assert Page(pages["just begun"]).words["strong"][0] == "not measured"


def test_equal_runs_give_equal_pages(pages, runs_folder):
    assert page(runs_folder / "tabular") == pages["tabular"]


def test_mailed_page_tells_nothing_of_the_disk(pages, runs_folder):
    assert str(runs_folder) not in pages["finished"]
    assert "msgdas show finished" in pages["finished"]


def test_teacher_is_told(pages):
    assert "This search has no teacher." in pages["tabular"]
    assert "Teacher: ensemble, from epoch 3 on" in pages["finished"]
    assert "at the end of 4 of 6 epochs" in pages["finished"]


def test_hostile_strings_stay_text(tmp_path):
    hostile = "<script>alert(1)</script>\"'&</style></section>\udcff"
    config = demo(epochs=2, warmup=0, data=f"imagefolder:{hostile}", recipe=hostile)
    path = write_run(tmp_path / "run", config, epochs=1)
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT | {hostile: hostile, "commit": hostile}))
    with open(path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "event", "step": hostile, "what": hostile, "detail": hostile}) + "\n")
        file.write(json.dumps({"kind": "memory", "epoch": 0, "step": 1, "phase": "weight", "peak_bytes": 5,
                               "source": hostile}) + "\n")  # fmt: skip
    (path / "genotype.json").write_text(json.dumps({"arch": hostile}))
    text = write_report(path).read_text(encoding="utf-8")
    found = Page(text)
    assert "script" not in {tag for tag, _ in found.tags}
    assert len([tag for tag, _ in found.tags if tag == "section"]) == len(SECTIONS)
    shown = hostile.replace("\udcff", "?")
    assert found.text_of("h1").startswith(shown) and found.text_of("td").count(shown) >= 4
    assert found.text_of("li").count(shown) == 3
    assert "chance not known" in text


def test_classes_that_a_row_tells_give_chance(tmp_path):
    config = demo(epochs=1, warmup=0, data="imagefolder:somewhere")
    path = write_run(tmp_path / "run", config, epochs=0)
    (path / "metrics.jsonl").write_text('{"kind": "event", "step": 0, "what": "data", "classes": 20}\n')
    assert "chance 5.0%" in page(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
NAMES = (
    "epoch", "step", "loss", "phase", "peak_bytes", "source", "time", "skips", "alpha", "genotype", "classes",
    "val_accuracy", "teacher_used",
)  # fmt: skip
ROWS = st.lists(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["step", "memory", "epoch", "event"]) | JSON},
        optional=dict.fromkeys(NAMES, JSON),
    ),
    max_size=5,
)


@given(ROWS, st.data())
@settings(max_examples=200, deadline=None)
def test_no_row_can_break_the_history(hostile, data):
    """Whatever stands in metrics.jsonl, what is read is finite or missing, and good rows are still found."""
    config = demo(epochs=1, warmup=0)
    good = list(rows(config, steps_per_epoch=2))
    at = data.draw(st.integers(0, len(good)))
    history = History.of(config, [*good[:at], *hostile, *good[at:]])
    assert (np.diff(history.step) > 0).all()
    for column in history.values.values():
        assert column.shape == history.step.shape and not np.isinf(column).any()
    assert {1.0, 2.0} <= set(history.step)
    assert all(number > 0 for peaks in history.peaks.values() for number in peaks.epochs)


def test_rows_of_the_wrong_kind_still_give_a_page(tmp_path):
    path = write_run(tmp_path / "run", demo(epochs=2), epochs=0)
    junk = [
        {"kind": "step", "epoch": 0, "step": 1},
        {"kind": "step", "epoch": "x", "step": 2, "loss": "NaN", "time": []},
        {"kind": "memory", "epoch": 0, "step": 1, "phase": "weight", "peak_bytes": None},
        {"kind": "epoch", "epoch": 0, "step": None, "alpha": {"normal": [[1]]}, "genotype": {"normal": 3}, "skips": 4},
        {"kind": "epoch", "epoch": 1, "step": 2, "val_loss": math.nan, "val_accuracy": "high"},
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in junk) + '{"kind": "st')
    (path / "environment.json").write_bytes(b"\xff{")
    found = Page(page(path))
    assert "environment.json is missing or cannot be read." in found.text_of("p")


def test_damaged_genotype_file_is_named(tmp_path):
    path = write_run(tmp_path / "run", demo(epochs=1, warmup=0))
    (path / "genotype.json").write_text('{"normal": ')
    text = page(path)
    assert "is not JSON" in text and "unfinished" in text and "Not final" in text


def test_no_run_folder(tmp_path):
    with pytest.raises(RunFolderError, match="no run folder"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        demo(),
        demo(method="gdas", seed=7, epochs=9),
        demo(method="darts", space="nasbench201", layers=6, image=32),
        RECIPES["cifar10-darts"](k=4, mode="union", policy="all", tau_max=5.5, noise="off", download=True),
        RECIPES["cifar10-nasbench201"](data="imagefolder:/a b/'c'", space="darts", layers=8, dbi="off"),
        SearchConfig(),
        SearchConfig(recipe="my own", method="gdas", k=1, dbi="off", teacher="none", relaxation="shared"),
        demo(execution="co-resident", weight_decay=1e-5, augment=False, policy="min,all,bn,nodes,min"),
    ],
    ids=range(8),
)
def test_command_gives_the_same_configuration(config):
    words = shlex.split(search_command(config))
    assert words[0] == "msgdas"
    assert dataclasses.asdict(config_of(parser().parse_args(words[1:]))) == dataclasses.asdict(config)


def test_command_is_short_and_says_what_differs():
    assert search_command(demo_recipe()) == "msgdas search demo"
    assert search_command(demo_recipe(method="gdas", k=1)) == "msgdas search demo --method=gdas"
    config = demo_recipe(download=True, k=3, tau_max=5.5)
    assert search_command(config) == "msgdas search demo --download=true --k=3 --set tau_max=5.5"


def test_config_table_says_what_differs_from_the_recipe():
    table = Page(config_table(demo_recipe(seed=7)))
    assert len([tag for tag, _ in table.tags if tag == "tr"]) == 1 + len(dataclasses.fields(SearchConfig))
    assert table.words["span"] == ["recipe: 0"]


def test_speed_leaves_out_the_first_step():
    steps = [
        {"kind": "step", "step": n, "time": {"samples_per_s": speed}} for n, speed in ((1, 1.0), (2, 50.0), (3, 60.0))
    ]
    assert History.of(demo(), steps).samples_per_s == 55.0
    assert math.isnan(History.of(demo(), steps[:1]).samples_per_s)


def test_cell_of_another_space_is_no_cell():
    row = next(row for row in rows(demo(epochs=1, warmup=0)) if row["kind"] == "epoch")
    other = next(row for row in rows(cifar10_nasbench201(epochs=1)) if row["kind"] == "epoch")
    (epoch,) = History.of(demo(), [row]).epochs
    assert epoch.genotype is not None and epoch.alpha is not None
    (epoch,) = History.of(demo(), [row | {"genotype": other["genotype"], "alpha": other["alpha"]}]).epochs
    assert epoch.genotype is None and epoch.alpha is None


@pytest.mark.parametrize(("skips", "alarmed"), [({"normal": 1, "reduce": 4}, 0), ({"normal": 2, "reduce": 0}, 1)])
def test_fault_51_alarm_is_for_normal_cells(tmp_path, skips, alarmed):
    path = write_run(tmp_path / "run", demo(epochs=2), epochs=0)
    row = {"kind": "epoch", "epoch": 0, "step": 4, "skips": skips}
    (path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert page(path).count('<p class="alarm">') == alarmed


def test_reading_a_run_takes_no_torch():
    names = ("report.report", "report.compare", "report.timeline", "run.history", "run.progress")
    code = "import sys; " + "; ".join(f"import msgdas.engine.{name}" for name in names)
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path("/")).returncode == 0
