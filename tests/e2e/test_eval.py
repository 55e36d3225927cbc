"""`msgdas eval` and `msgdas export` where data do not fit the network: the next step is one that they have."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from msgdas.engine.cli import main
from msgdas.engine.errors import ConfigError, DataError
from msgdas.engine.settings.train_config import demo
from msgdas.engine.spaces.genotype_text import published
from msgdas.engine.training import judging
from msgdas.engine.training.judging import judge
from msgdas.engine.training.trained import data_for, trained
from msgdas.engine.training.trainer import train
from PIL import Image


@pytest.fixture(scope="module", params=[0, 5], ids=["all classes", "five drawn"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of one step."""
    config = demo(
        genotype=json.dumps(published()["DARTS_V2"]), channels=4, layers=3, image=28, batch=16, limit=16, epochs=1,
        eval_images=8, threads=1, num_classes=request.param,
    )  # fmt: skip
    return train(config, out=tmp_path_factory.mktemp("train") / "run").path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes."""
    for part in ("train", "val"):
        for number in range(2):
            folder = tmp_path / "photos" / part / f"class{number}"
            folder.mkdir(parents=True)
            Image.new("RGB", (28, 28), (90 * number, 50, 50)).save(folder / "image.png")
    return tmp_path / "photos"


def advice(text: str) -> str:
    """The next step of an error, which is one line."""
    assert text.count("\n") == 1
    found = re.search(r"Next: (.+)$", text)
    assert found is not None, text
    return found[1].strip()


def test_other_classes_are_refused_with_a_command_that_works(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = trained(run)[0].num_classes or 10
    with pytest.raises(ConfigError, match="another number of classes"):
        judge(run, data=f"imagefolder:{photos}")
    assert main(["eval", str(run), "--data", f"imagefolder:{photos}"]) == 2
    text = capsys.readouterr().err
    assert "got 2" in text and f"allowed {classes}" in text and "--set" not in text
    words = shlex.split(advice(text))
    assert words[:2] == ["msgdas", "eval"] and main([*words[1:], "--limit", "8"]) == 0
    assert "on 8 test images" in capsys.readouterr().out


def test_data_that_are_not_there_name_no_option_of_trainings(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training's own data are gone, or others that are asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["eval", str(run), "--data", "cifar10"]) == 3
    assert advice(capsys.readouterr().err) == f"msgdas eval {run}"
    config, found = trained(run)
    gone = dataclasses.replace(config, data="cifar10", num_classes=0)
    for module in ("msgdas.engine.training.judging", "msgdas.engine.export.exported"):
        monkeypatch.setattr(f"{module}.trained", lambda path: (gone, found))
    assert main(["eval", str(run)]) == 3
    assert advice(capsys.readouterr().err) == f"put the data of the training back, or msgdas eval {run} --data STR"
    assert main(["export", str(run)]) == 3
    assert advice(capsys.readouterr().err) == "put the data of the training back"
    assert main(["eval", str(run), "--data", "cifar"]) == 3
    assert advice(capsys.readouterr().err).startswith("--data cifar10")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("--download, or set data_root", False), ("remove it and use --download", False), ("--batch 4", False),
        ("--data cifar10", True), ("msgdas data check DIR --out LIST", True), ("mend the folder tree", True),
    ],
)  # fmt: skip
def test_advice_that_the_command_has_is_kept(said: str, kept: bool) -> None:
    with (
        pytest.raises(DataError, match=r"^what; got 1; allowed 2\. Next: ") as caught,
        data_for(10, options=("--data",), next="msgdas eval RUN"),
    ):
        raise DataError("what", got=1, allowed="2", next=said)
    assert caught.value.next == (said if kept else "msgdas eval RUN")


@pytest.mark.parametrize(("changes", "code"), [({"precision": "float16"}, 2), ({"compile": True}, 0)])
def test_a_network_of_a_gpu_on_a_processor(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], code: int
) -> None:
    config, found = trained(run)
    monkeypatch.setattr(judging, "trained", lambda path: (dataclasses.replace(config, **changes), found))
    assert main(["eval", str(run), "--limit", "8", "--device", "cpu"]) == code
    if code:
        assert advice(capsys.readouterr().err).startswith(f"msgdas eval {run} --device cuda")
