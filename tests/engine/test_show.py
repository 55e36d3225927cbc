"""`msgdas show` on genotype files and run folders."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgdas.engine.cli import main
from msgdas.engine.errors import ConfigError, GenotypeError, RunFolderError
from msgdas.engine.report.show import show
from msgdas.engine.spaces.derive import derive, probabilities
from msgdas.engine.spaces.genotype import Genotype, from_arch
from msgdas.engine.spaces.space import DARTS

sys.path.insert(0, str(Path(__file__).parent))
from runs import small_demo, write_run

ARCH = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|skip_connect~2|"


def epoch_row(epoch: int, operation: int) -> tuple[dict[str, Any], Genotype]:
    """An epoch's row of metrics.jsonl in which every edge prefers one operation."""
    logits = {
        spec.kind: [[2.0 * (index == operation) for index in range(8)] for _ in spec.edges] for spec in DARTS.cells
    }
    genotype = derive(DARTS, logits)
    row = {"kind": "epoch", "epoch": epoch, "step": 10 * epoch, "alpha": probabilities(DARTS, logits)}
    return {**row, "genotype": genotype.to_json_dict()}, genotype


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of two epochs, cut off in the middle of a line."""
    lines = [
        json.dumps(epoch_row(0, 4)[0]),
        json.dumps({"kind": "step", "step": 1}),
        json.dumps(epoch_row(1, 3)[0]),
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "epoch", "epo')
    return tmp_path


def test_a_run_without_a_genotype_shows_its_last_epoch(run: Path) -> None:
    shown = json.loads(show(str(run), as_json=True))
    row, genotype = epoch_row(1, 3)
    assert shown["genotype"] == genotype.to_json_dict()
    assert shown["alpha"] == row["alpha"]
    assert shown["epoch"] == 1
    assert shown["skips"] == {"normal": 8, "reduce": 8}
    assert (run / "cells.svg").stat().st_size > 1000
    assert (run / "cells.png").read_bytes().startswith(b"\x89PNG")


def test_a_runs_genotype_comes_first_and_text_has_alpha_per_edge(run: Path) -> None:
    genotype = epoch_row(0, 4)[1]
    genotype.save(run / "genotype.json")
    text = show(str(run))
    assert "2 = sep_conv_3x3(0) + sep_conv_3x3(1)" in text
    assert "alpha of normal after epoch 1" in text
    assert sum(" -> " in line for line in text.splitlines()) == 28
    assert str(run / "cells.svg") in text


def test_damaged_alpha_is_left_out(run: Path) -> None:
    row = epoch_row(2, 3)[0]
    for alpha in (
        {"normal": [[1]]},
        [1],
        {**row["alpha"], "reduce": [["x"] * 8] * 14},
        {**row["alpha"], "reduce": [[float("nan")] * 8] * 14},
    ):
        (run / "metrics.jsonl").write_text(json.dumps({**row, "alpha": alpha}) + "\n")
        assert json.loads(show(str(run), as_json=True))["alpha"] is None


def test_published_cell_at_imagenets_size(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "genotypes.json"
    measured = json.loads(path.read_text())["genotypes"]["DARTS_V2"]["measured"]["imagenet_C48_L14_1000"]
    size = {"channels": 48, "layers": 14, "image": 224, "classes": 1000}
    shown = json.loads(show(f"{path}:DARTS_V2", **size, out=tmp_path / "new" / "folder", as_json=True))
    assert shown["network"] == {**size, "stem": "imagenet"}
    assert {key: shown[key] for key in measured} == measured
    assert shown["flops"] == 2 * measured["macs"]
    assert (tmp_path / "new" / "folder" / "cells.svg").exists()


def test_defaults_and_units(tmp_path: Path) -> None:
    epoch_row(0, 4)[1].save(tmp_path / "darts.json")
    text = show(str(tmp_path / "darts.json"))
    assert "C=36, 20 layers, 32 px, 10 classes, cifar stem" in text
    assert "(= 2 x MACs)" in text
    from_arch(ARCH).save(tmp_path / "tabular.json")
    text = show(str(tmp_path / "tabular.json"))
    assert text.startswith(ARCH)
    assert "C=16, 15 layers, 32 px, 10 classes, cifar stem" in text


def test_bad_targets(tmp_path: Path) -> None:
    with pytest.raises(GenotypeError, match="Next: msgdas search"):
        show(str(tmp_path / "missing"))
    with pytest.raises(RunFolderError, match="Next: msgdas search"):
        show(str(tmp_path))
    epoch_row(0, 4)[1].save(tmp_path / "genotype.json")
    with pytest.raises(RunFolderError, match="another --out"):
        show(str(tmp_path), out=tmp_path / "genotype.json")
    with pytest.raises(ConfigError, match="multiple of"):
        show(str(tmp_path), image=30)


def test_pictures_that_cannot_be_written_beside_the_file(tmp_path: Path) -> None:
    epoch_row(0, 4)[1].save(tmp_path / "genotype.json")
    (tmp_path / "cells.svg").mkdir()
    assert "no pictures: cannot write" in show(str(tmp_path))
    assert json.loads(show(str(tmp_path), as_json=True))["pictures"] is None


def test_show_does_not_import_torch(tmp_path: Path) -> None:
    from_arch(ARCH).save(tmp_path / "cell.json")
    code = (
        "import sys; from msgdas.engine.report.show import show; show(sys.argv[1]); "
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path / "cell.json")], check=True)


def test_without_a_measurement_show_says_how_to_take_one(tmp_path: Path) -> None:
    from_arch(ARCH).save(tmp_path / "cell.json")
    assert "the same command with --measure" in show(str(tmp_path / "cell.json"))
    assert json.loads(show(str(tmp_path / "cell.json"), as_json=True))["measured"] is None


def test_a_measurement_names_what_it_was_taken_with(tmp_path, capsys):
    from_arch(ARCH).save(tmp_path / "cell.json")
    words = ["show", str(tmp_path / "cell.json"), "--channels", "4", "--layers", "3", "--image", "16", "--measure"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert re.search(r"measured on .*, \d+ threads?, float32, channels_last\n", text)
    assert re.search(r"latency \d+\.\d\d ms \(\d.* to \d.*; inference, one image, median of \d+ warm runs", text)
    assert "peak of inference" in text and "peak of a training step" in text and "(batch 8: weights" in text
    assert main([*words, "--batch", "4", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    found = shown["measured"]
    assert all(found[key] == shown[key] for key in ("params", "macs", "flops"))
    assert (found["network"], found["batch"], found["inference_batch"]) == (shown["network"], 4, 1)
    assert 0 < found["latency_ms"]["min"] <= found["latency_ms"]["median"] <= found["latency_ms"]["max"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--image", "2"], 2, "got image 2; allowed a multiple of 4 up to 8192. Next: --image 4"),
        (["--image", "100000000"], 2, "Next: --image 8192"),
        (["--classes", "0"], 2, "got 0; allowed 1 to"),
        (["--classes", "10000000"], 2, "got 10000000; allowed 1 to"),
        (["--channels", "1000000"], 2, "allowed 2, 4, 6, ... 65536"),
        (["--layers", "100000000"], 2, "allowed 1 to 1000"),
        (["--batch", "4"], 2, "Next: add --measure"),
        (["--measure", "--batch", "1"], 2, "allowed 2 or more"),
        (["--measure", "--channels", "4096"], 10, "does not fit this machine"),
        (["--measure", "--channels", "4", "--layers", "3", "--batch", "100000000"], 10, "Next: a smaller --batch"),
    ],
)
def test_a_size_that_cannot_be_is_one_line(tmp_path, capsys, words, code, message):
    assert main(["show", "DARTS_V2", "--out", str(tmp_path), *words]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Next: " in error


def test_a_run_is_derived_again_within_limits(tmp_path, capsys):
    run = write_run(tmp_path / "run", small_demo())
    assert main(["show", str(run), "--json"]) == 0
    free = json.loads(capsys.readouterr().out)
    assert main(["show", str(run), "--json", "--max-macs", str(free["macs"])]) == 0
    assert json.loads(capsys.readouterr().out)["genotype"] == free["genotype"]
    words = ["--max-macs", f"{free['macs'] * 0.9:.0f}", "--max-params", f"{free['params'] * 0.95:.0f}"]
    assert main(["show", str(run), "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["macs"] <= 0.9 * free["macs"] and found["params"] <= 0.95 * free["params"]
    for words, message in (
        ([str(run), "--max-macs", "1k"], "max_macs of 1 k MACs"),
        ([str(run), "--target-latency", "5ms"], "cannot read the device table"),
        (["DARTS_V2", "--max-macs", "500M", "--out", str(tmp_path)], "only a run tells"),
    ):
        assert main(["show", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
