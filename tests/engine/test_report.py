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

import matplotlib.colors
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgdas.engine import report_figures as figures
from msgdas.engine.cli import config_of, parser
from msgdas.engine.config import SearchConfig
from msgdas.engine.errors import RunFolderError
from msgdas.engine.history import History
from msgdas.engine.recipes import RECIPES, cifar10_nasbench201
from msgdas.engine.recipes import demo as demo_recipe
from msgdas.engine.report import RECONSTRUCTION, page, write_report
from msgdas.engine.report_text import config_table, search_command

sys.path.insert(0, str(Path(__file__).parent))
from runs import ENVIRONMENT, rows, write_run

SIZES = {"batch": 32, "epochs": 6, "warmup": 2, "limit": 512, "lr": 0.05, "alpha_lr": 6e-3}


def demo(**overrides):
    """A configuration of this test's own: it does not change with the recipe's values."""
    mode = {} if "method" in overrides else {"mode": "subgraphs"}
    return demo_recipe(**{**SIZES, **mode, **overrides})


VOID = {"meta", "br", "hr", "img", "link", "input", "col", "base", "area", "embed", "source", "track", "wbr"}
SECTIONS = [
    "cells", "curves", "alpha", "skips", "memory", "schedules", "teacher", "genotype", "epochs", "config",
    "environment", "reproduce",
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
        RECIPES["cifar10-darts"](k=4, mode="union", policy="all", tau_max=5.5, noise=False, download=True),
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


@pytest.fixture(scope="module")
def history():
    config = demo(epochs=8, warmup=3)
    return History.of(config, list(rows(config)))


def lines_of(figure, index=0):
    return {line.get_label(): line for line in figure.axes[index].get_lines()}


def test_curves_show_the_rows(history):
    written = list(rows(history.config))
    steps = [row for row in written if row["kind"] == "step"]
    lines = lines_of(figures.loss_figure(history))
    x, y = lines["W steps"].get_data()
    assert len(steps) <= figures.MAX_BINS
    np.testing.assert_allclose(x, [row["step"] for row in steps])
    np.testing.assert_allclose(y, [row["loss"] for row in steps])
    trained = [row for row in steps if row["alpha_loss"] is not None]
    np.testing.assert_allclose(
        lines["alpha steps"].get_data(), np.transpose([(r["step"], r["alpha_loss"]) for r in trained])
    )
    assert lines["alpha steps"].get_xdata()[0] == 3 * 16 + 1
    accuracy = lines_of(figures.accuracy_figure(history, 0.1))
    epochs = [row for row in written if row["kind"] == "epoch"]
    np.testing.assert_allclose(
        accuracy["derived cell, validation"].get_ydata(), [100 * row["val_accuracy"] for row in epochs]
    )
    assert set(accuracy["chance"].get_ydata()) == {10.0}
    assert "chance" not in lines_of(figures.accuracy_figure(history, math.nan))


def test_axes_have_units_and_warmup_is_shaded(history):
    figure = figures.loss_figure(history)
    axes = figure.axes[0]
    assert axes.get_ylabel() == "cross-entropy (nats)" and axes.get_xlabel() == "step"
    shades = [patch for patch in axes.patches if patch.get_label() == "warm-up"]
    assert [(patch.get_x(), patch.get_width()) for patch in shades] == [(0, 3 * 16)]
    above = axes.child_axes[0]
    assert [label.get_text() for label in above.get_xticklabels()] == [str(number) for number in range(1, 9)]
    np.testing.assert_allclose(above.get_xticks(), [16 * number for number in range(1, 9)])


def test_bins_keep_means_and_extremes():
    x, y = np.arange(10_000.0), np.sin(np.arange(10_000.0))
    y[::7] = math.nan
    known = np.isfinite(y)
    centre, mean, low, high = figures.binned(x, y)
    assert len(mean) == figures.MAX_BINS
    assert low.min() == y[known].min() and high.max() == y[known].max()
    assert (low <= mean).all() and (mean <= high).all() and (np.diff(centre) > 0).all()
    sizes = np.diff(np.linspace(0, known.sum(), figures.MAX_BINS + 1).astype(int))
    np.testing.assert_allclose((mean * sizes).sum(), y[known].sum())
    assert all(len(column) == 0 for column in figures.binned(x, np.full(10_000, math.nan)))


def test_skip_connects_and_their_alarm(history):
    lines = lines_of(figures.skip_figure(history))
    for kind in ("normal", "reduce"):
        assert list(lines[f"{kind} cell"].get_ydata()) == [epoch.skips[kind] for epoch in history.epochs]
    assert set(lines["alarm: 2 or more"].get_ydata()) == {2}


@pytest.mark.parametrize(("skips", "alarmed"), [({"normal": 1, "reduce": 4}, 0), ({"normal": 2, "reduce": 0}, 1)])
def test_alarm_is_for_normal_cells(tmp_path, skips, alarmed):
    path = write_run(tmp_path / "run", demo(epochs=2), epochs=0)
    row = {"kind": "epoch", "epoch": 0, "step": 4, "skips": skips}
    (path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert page(path).count('<p class="alarm">') == alarmed


def test_memory_in_mib_and_per_sample(history):
    figure = figures.peak_figure(history)
    lines = lines_of(figure)
    for phase in ("weight", "alpha"):
        np.testing.assert_allclose(lines[f"{phase} step"].get_ydata(), history.peaks[phase].bytes / 2**20)
    assert list(lines["alpha step"].get_xdata()) == [4, 5, 6, 7, 8]
    figure.canvas.draw()
    left, right = figure.axes[0], figure.axes[0].child_axes[0]
    np.testing.assert_allclose(right.get_ylim(), np.array(left.get_ylim()) / history.config.batch)
    assert "MiB per sample (batch 32)" in right.get_ylabel() and "(MiB)" in left.get_ylabel()
    rss = lines_of(figures.rss_figure(history))["resident set of the process (RSS)"]
    np.testing.assert_allclose(rss.get_ydata(), history.values["rss_bytes"] / 2**20)


def test_schedules_and_teacher(history):
    (line,) = figures.schedule_figure(history, "tau", "temperature tau").axes[0].get_lines()
    np.testing.assert_allclose(line.get_xdata(), range(1, 9))
    np.testing.assert_allclose(line.get_ydata(), np.linspace(10, 0.1, 8))
    figure = figures.teacher_figure(history)
    lines = lines_of(figure)
    np.testing.assert_allclose(lines["teacher"].get_ydata(), [epoch.teacher_loss for epoch in history.epochs])
    (bar,) = figure.axes[0].collections
    used = [epoch.number for epoch in history.epochs if epoch.teacher_used]
    spans = [path.get_extents() for path in bar.get_paths()]
    assert [(span.x0, span.x1) for span in spans] == [(min(used) - 0.5, max(used) + 0.5)]


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_alpha_has_a_chart_per_edge(space):
    config = demo(space=space, layers=3, image=32, epochs=5, warmup=1)
    history = History.of(config, list(rows(config, 2)))
    for spec in history.space.cells:
        figure = figures.alpha_figure(history, spec)
        shown = [axes for axes in figure.axes if axes.get_visible()]
        assert len(shown) == len(spec.edges)
        chosen = figures.chosen_operations(history, spec.kind)
        for index, (axes, edge) in enumerate(zip(shown, spec.edges, strict=True)):
            title = axes.get_title("left")
            assert title.split(":")[0] == f"{edge.source} → {edge.target}"
            assert (":" in title) == ((edge.source, edge.target) in chosen)
            drawn = np.transpose([line.get_ydata() for line in axes.get_lines()])
            np.testing.assert_allclose(drawn, [epoch.alpha[spec.kind][index] for epoch in history.epochs])
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        assert len(legend) == history.space.num_operations
        lines = shown[0].get_lines()
        looks = {(matplotlib.colors.to_hex(line.get_color()), line.get_linestyle()) for line in lines}
        assert len(looks) == history.space.num_operations


def test_long_runs_stay_small():
    config = demo(epochs=300, warmup=10)
    history = History.of(config, list(rows(config, 40)))
    figure = figures.loss_figure(history)
    assert all(len(line.get_xdata()) <= max(figures.MAX_BINS, 300) for line in figure.axes[0].get_lines())
    figure = figures.alpha_figure(history, history.space.cells[0])
    assert len(figure.axes[0].get_lines()[0].get_xdata()) <= figures.MAX_EPOCH_POINTS
    assert len(figures.inline_svg(figure, "alpha", "alpha")) < 500_000


def test_reading_a_run_takes_no_torch():
    names = ("report", "report_figures", "report_text", "history", "progress")
    code = "import sys; " + "; ".join(f"import msgdas.engine.{name}" for name in names)
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path("/")).returncode == 0
