"""`msgdas report` and `msgdas compare` on what real searches and trainings leave, tiny."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from msgdas.engine.cli import main
from msgdas.engine.run.rundir import read_metrics

SEARCH = {
    "channels": 4, "layers": 3, "image": 28, "batch": 8, "epochs": 2, "warmup": 1, "limit": 16, "eval_images": 16,
    "threads": 1,
}  # fmt: skip
TRAIN = {
    "channels": 4, "layers": 3, "image": 28, "batch": 16, "epochs": 2, "limit": 32, "eval_images": 32, "threads": 1,
}  # fmt: skip


def options(values: dict[str, int]) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two searches that differ in their seed, the first with a training of its cell inside."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        assert main(["search", "demo", *options(SEARCH), "--seed", str(seed), "--out", str(folder / f"s{seed}")]) == 0
    assert main(["train", str(folder / "s0"), "demo", *options(TRAIN), "--out", str(folder / "s0" / "trained")]) == 0
    return folder


def section(page: Path, name: str) -> str:
    text = page.read_text(encoding="utf-8")
    assert text.count(f'<section id="{name}">') == 1
    return text.split(f'<section id="{name}">')[1].split("</section>")[0]


def last_epoch(run: Path) -> dict:
    return [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "epoch"][-1]


def test_a_training_leaves_its_page(runs: Path) -> None:
    page = runs / "s0" / "trained" / "report.html"
    text, epoch = page.read_text(encoding="utf-8"), last_epoch(page.parent)
    assert "http" not in text and "<script" not in text and "reconstructs MSG-DAS" in text
    assert f"test top-1 after epoch 2</dt><dd><strong>{epoch['val_accuracy']:.1%}</strong>" in text
    assert f"<strong>{epoch['val_top5']:.1%}</strong>" in text and f"best epoch {epoch['best']:.1%}" in text
    assert section(page, "curves").count("<svg") == 2 and section(page, "schedules").count("<svg") == 2
    assert "C=4, 3 layers, 28 px, 10 classes" in section(page, "cost") and "2 x MACs" in section(page, "cost")
    assert "msgdas train trained/genotype.json demo --channels=4" in section(page, "reproduce")
    assert "recipe: 8" in section(page, "config") and "<svg" in section(page, "cells")


def test_the_searchs_page_tells_of_the_training_in_its_folder(runs: Path) -> None:
    page = runs / "s0" / "report.html"
    told = section(page, "training")
    assert "trained</th>" in told and "this search" in told and told.count("<svg") == 3
    assert f"{last_epoch(runs / 's0' / 'trained')['val_accuracy']:.1%}" in told
    assert "C=36, 20 layers, 32 px, 10 classes, cifar stem" in section(page, "cost")
    assert "No training in this run" in section(runs / "s1" / "report.html", "training")
    assert "No budget was given" in section(page, "plan")


@pytest.mark.parametrize("name", ["s0", "s0/trained"])
def test_report_writes_the_page_anew(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    page = runs / name / "report.html"
    text = page.read_text(encoding="utf-8")
    page.unlink()
    assert main(["report", str(runs / name)]) == 0
    assert capsys.readouterr().out == f"{page}\n" and page.read_text(encoding="utf-8") == text
    assert main(["report", str(runs / name), "--out", str(tmp_path / "mail.html")]) == 0
    assert (tmp_path / "mail.html").read_text(encoding="utf-8") == text


def test_compare_puts_runs_side_by_side(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(runs / name) for name in ("s0", "s1", "s0/trained")]
    page = tmp_path / "page.html"
    assert main(["compare", *paths, "--out", str(page)]) == 0
    printed = capsys.readouterr().out
    accuracies = [last_epoch(runs / name)["val_accuracy"] for name in ("s0", "s1")]
    mean, sd = statistics.fmean(accuracies), statistics.stdev(accuracies)
    assert "search seed: s0 0, s1 1" in printed and printed.endswith(f"page: {page}\n")
    (averaged,) = [line for line in printed.splitlines() if line.startswith("s0, s1")]
    assert f"mean ± sd (2)  {mean:.2%} ± {sd:.2%}" in averaged
    assert f"{mean:.2%} ± {sd:.2%}" in section(page, "runs")
    assert section(page, "curves").count("<svg") == 6 and "<svg" in section(page, "cells")
    assert main(["compare", *paths, "--out", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["command"] for run in found["runs"]] == ["search", "search", "train"]
    assert found["groups"][0]["accuracy"] == {"mean": pytest.approx(mean), "sd": pytest.approx(sd), "n": 2}
    assert found["groups"][0]["seeds"] == [0, 1]
    assert found["runs"][2]["accuracy"] == last_epoch(runs / "s0" / "trained")["val_accuracy"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["report", "{nowhere}"], 4, "is no run folder"),
        (["report", "{file}"], 4, "is no run folder"),
        (["report", "{run}", "--out", "{runs}"], 4, "cannot write the page"),
        (["report", "{run}", "--out", "{nowhere}/page.html"], 4, "cannot write the page"),
        (["report", "{damaged}"], 4, "is damaged"),
        (["report", "{listed}"], 4, "is damaged"),
        (["report", "{binary}"], 4, "is damaged"),
        (["report", "{foreign}"], 2, "unknown configuration key"),
        (["compare", "{run}"], 2, "two runs or more"),
        (["compare", "{run}", "{run}/"], 2, "given twice"),
        (["compare", "{run}", "{nowhere}"], 4, "is no run folder"),
        (["compare", "{run}", "{file}"], 4, "is no run folder"),
        (["compare", "{run}", "{runs}/s1", "--out", "{nowhere}/page.html"], 4, "cannot write the page"),
    ],
)
def test_bad_inputs_are_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    (tmp_path / "file").write_text("")
    for name, text in (("damaged", '{"recipe": '), ("listed", "[]"), ("foreign", '{"speed": 3}'), ("binary", "\udcff")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    places = {name: tmp_path / name for name in ("nowhere", "file", "damaged", "listed", "foreign", "binary")}
    filled = [word.format(run=runs / "s0", runs=runs, **places) for word in words]
    assert main(filled) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "Next: " in error


@pytest.mark.parametrize("trouble", ["a damaged parent", "a page that cannot be written"])
def test_a_parents_page_that_cannot_be_written_is_a_warning(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], trouble: str
) -> None:
    run = tmp_path / "s0"
    shutil.copytree(runs / "s0", run)
    if trouble == "a damaged parent":
        (run / "config.json").write_text("{")
    else:
        (run / "report.html").unlink()
        (run / "report.html").mkdir()
    assert main(["train", "--resume", str(run / "trained")]) == 0
    printed = capsys.readouterr().out
    assert f"warning: the report of the search in {run} is as it was" in printed
    assert (run / "trained" / "report.html").is_file()


def test_neither_command_imports_torch(runs: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom msgdas.engine.cli import main\n"
        "runs, page = sys.argv[1:]\n"
        "assert main(['report', f'{runs}/s0', '--out', page]) == 0\n"
        "assert main(['compare', f'{runs}/s0', f'{runs}/s0/trained', '--out', page]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(runs), str(tmp_path / "page.html")], check=True, cwd=tmp_path)
