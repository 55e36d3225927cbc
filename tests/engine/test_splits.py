"""Shares of each class, classes drawn by seed, clean lists, and the lists that a run folder keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgdas.engine.cli import main
from msgdas.engine.errors import ConfigError, DataError
from msgdas.engine.images.batches import split_halves
from msgdas.engine.images.data import load
from msgdas.engine.images.filelist import FileList, drawn_classes
from msgdas.engine.images.images import FolderImages
from msgdas.engine.memory.planning import classes_of
from msgdas.engine.settings.config import SearchConfig
from msgdas.engine.settings.recipes import imagenet_darts
from PIL import Image

FLAGS = [
    "search", "demo", "--channels", "4", "--layers", "3", "--image", "8", "--batch", "4", "--epochs", "1",
    "--warmup", "0", "--set", "threads=1",
]  # fmt: skip


def plant(root: Path, classes: str = "abc", count: int = 12) -> Path:
    """A tree of small PNG files."""
    for shade, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 9), (number * 20, shade * 80, 60)).save(root / name / f"{number}.png")
    return root


@given(
    counts=st.lists(st.integers(2, 60), min_size=2, max_size=6),
    w=st.floats(0, 1), alpha=st.floats(0, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_parts_are_disjoint_and_hold_their_share_of_each_class(
    counts: list[int], w: float, alpha: float, seed: int
) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    total = max(1.0, (w or 0.5) + (alpha or 0.5))
    w, alpha = (w or 0.5) / total, (alpha or 0.5) / total
    parts = split_halves(labels, seed=seed, w_fraction=w, alpha_fraction=alpha)
    assert not set(parts[0].tolist()) & set(parts[1].tolist())
    for part, fraction in zip(parts, (w, alpha), strict=True):
        found = labels[part].bincount(minlength=len(counts))
        for got, count in zip(found.tolist(), counts, strict=True):
            assert got >= 1
            assert abs(got - fraction * count) <= 1
    again = split_halves(labels, seed=seed, w_fraction=w, alpha_fraction=alpha)
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


def test_imagenets_shares() -> None:
    """1300 images a class: 130 and, of 32.5, 33."""
    labels = torch.arange(4).repeat(1300)
    config = imagenet_darts()
    parts = split_halves(labels, seed=0, w_fraction=config.w_fraction, alpha_fraction=config.alpha_fraction)
    assert [labels[part].bincount().tolist() for part in parts] == [[130] * 4, [33] * 4]
    assert all(labels[part[:40]].bincount().tolist() == [10] * 4 for part in parts)
    assert not torch.equal(parts[0], split_halves(labels, seed=1, w_fraction=0.1, alpha_fraction=0.025)[0])


def test_half_of_each_class_without_fractions() -> None:
    labels = torch.arange(3).repeat(7)
    assert [len(part) for part in split_halves(labels, seed=0)] == [9, 9]
    assert [len(part) for part in split_halves(labels, seed=0, w_fraction=0.5, alpha_fraction=0.5)] == [9, 12]


def test_classes_are_drawn_by_seed_and_nest() -> None:
    names = [f"n{number:04}" for number in range(1000)]
    hundred = drawn_classes(names, 100, seed=3)
    assert len(hundred) == 100 and list(hundred) == sorted(hundred)
    assert hundred == drawn_classes(names[::-1], 100, seed=3)[::-1]
    assert set(hundred) < set(drawn_classes(names, 200, seed=3))
    assert 0 < len(set(hundred) & set(drawn_classes(names, 100, seed=4))) < 40
    assert drawn_classes(names, 0, seed=3) == tuple(names)
    with pytest.raises(DataError, match="1000 classes, num_classes 1001"):
        drawn_classes(names, 1001, seed=3)


def test_a_subset_of_classes_in_memory_and_in_folders(tmp_path: Path) -> None:
    whole = load(SearchConfig(image=28))
    some = load(SearchConfig(image=28, num_classes=3))
    assert some.labels.bincount().tolist() == [500] * 3
    old = torch.tensor([whole.classes.index(name) for name in some.classes])
    kept = torch.isin(whole.labels, old).nonzero().flatten()
    assert torch.equal(old[some.labels], whole.labels[kept])
    assert torch.equal(some.gather(torch.arange(9)), whole.gather(kept[:9]))
    assert load(SearchConfig(image=28, num_classes=3), "test").classes == some.classes
    for part in ("train", "val"):
        plant(tmp_path / part, "abcdef")
    config = SearchConfig(data=f"imagefolder:{tmp_path}", image=8, num_classes=4, seed=1)
    train, test = load(config), load(config, "test")
    assert train.classes == test.classes == drawn_classes("abcdef", 4, seed=1)
    assert isinstance(train, FolderImages)
    assert all(Path(path).parent.name == train.classes[label] for path, label in zip(train.paths, train.labels))
    assert (classes_of(config), classes_of(SearchConfig(data=config.data))) == (4, 6)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"w_fraction": 0.6}, "0.6 and 0.5 of each class"),
        ({"w_fraction": 0.9, "alpha_fraction": 0.2}, "1 or less together"),
        ({"alpha_fraction": -0.1}, "alpha_fraction is out of range"),
        ({"num_classes": 1}, "2 or more, 0 for all"),
        ({"data_list": "x"}, "data imagefolder:DIR"),
    ],
)
def test_shares_that_cannot_be(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SearchConfig(**values)


def test_a_list_says_which_images_a_search_sees(tmp_path: Path) -> None:
    root = plant(tmp_path / "photos", "ab")
    (root / "a" / "bad.jpg").write_bytes(b"no image")
    clean = tmp_path / "clean.list"
    FileList.scan(root).without({"a/bad.jpg"}).write(clean)
    data = f"imagefolder:{root}"
    with pytest.raises(DataError, match=r"bad.jpg"):
        load(SearchConfig(data=data, image=8))
    found = load(SearchConfig(data=data, image=8, data_list=str(clean)))
    assert found.labels.tolist() == [0] * 12 + [1] * 12
    assert len(found.gather(torch.arange(24))) == 24


def test_lists_of_other_files_are_refused(tmp_path: Path) -> None:
    root, other = plant(tmp_path / "photos", "ab"), plant(tmp_path / "others", "ab")
    clean = tmp_path / "clean.list"
    FileList.scan(root).write(clean)
    with pytest.raises(DataError, match=f"lists another tree; got root {root}; allowed root {other}"):
        load(SearchConfig(data=f"imagefolder:{other}", data_list=str(clean)))
    (root / "a" / "3.png").unlink()
    with pytest.raises(DataError, match=r"1 missing: a/3.png"):
        load(SearchConfig(data=f"imagefolder:{root}", data_list=str(clean)))
    with pytest.raises(DataError, match="cannot read the file list"):
        load(SearchConfig(data=f"imagefolder:{root}", data_list=str(tmp_path / "none")))


def test_fault_36_a_run_keeps_its_parts_as_lists_and_refuses_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = plant(tmp_path / "photos"), tmp_path / "run"
    words = [*FLAGS, "--data", f"imagefolder:{root}", "--set", "w_fraction=0.5", "--set", "alpha_fraction=0.25"]
    assert main([*words, "--out", str(run)]) == 0
    kept = {name: FileList.read(run / f"{name}.list") for name in ("data", "w", "alpha")}
    assert {name: files.counts() for name, files in kept.items()} == {"data": [12] * 3, "w": [6] * 3, "alpha": [3] * 3}
    assert main(["search", "--resume", str(run)]) == 0
    (root / "b" / "5.png").rename(root / "b" / "x5.png")
    capsys.readouterr()
    assert main(["search", "--resume", str(run)]) == 5
    said = capsys.readouterr().err
    assert "got 1 missing (b/5.png), 1 new (b/x5.png)" in said and said.count("\n") == 1
    (root / "b" / "x5.png").rename(root / "b" / "5.png")
    kept["data"].at(range(30)).write(run / "w.list")
    assert main(["search", "--resume", str(run)]) == 5
    assert "missing" in capsys.readouterr().err
