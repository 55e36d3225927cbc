"""The README's tables of memory are what `msgdas plan` prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgdas.engine.cli import main

README = Path(__file__).parents[2] / "README.md"
COMMON = ["plan", "cifar10-darts", "--gpu", "rtx-4090", "--dtype", "float32", "--markdown"]
IMAGENET = ["--stem", "imagenet", "--image", "224", "--channels", "48", "--data", "imagefolder:DIR"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [[], IMAGENET], ids=["CIFAR", "ImageNet"])
def test_tables(capsys, tmp_path, size):
    assert main([*COMMON, *size, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed.count("\n") == 8 and printed in README.read_text()


def test_the_published_way(capsys, tmp_path):
    plain = ["--method", "darts", "--policy", "autograd", "--methods", "darts"]
    assert main([*COMMON, *plain, "--out", str(tmp_path)]) == 0
    (row,) = capsys.readouterr().out.strip().splitlines()[2:]
    assert f"{' '.join(plain)}`: {row.split('|')[2].strip()}." in README.read_text()
