"""Data sets by name, and folders of photographs."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from msgdas.engine.errors import DataError
from msgdas.engine.images.batches import Batches, generator, split_halves
from msgdas.engine.images.data import CIFAR10_STATISTICS, MINI, from_torchvision, load
from msgdas.engine.images.images import FolderImages, Images, Statistics, channel_statistics, fit
from msgdas.engine.settings.config import SearchConfig
from PIL import Image
from torchvision.datasets import CIFAR10

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def photograph(path: Path, colour: tuple[int, int, int] = (200, 30, 60), **keywords: object) -> Path:
    """A photograph-like file: left half of that colour, right half black, 60 x 40."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :30] = colour
    Image.fromarray(pixels).save(path, **keywords)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("dog", "cat"):
        for number in range(3):
            photograph(tmp_path / "pets" / name / f"{number}.jpg")
    return tmp_path / "pets"


def test_embedded_subset_is_balanced_and_normalised() -> None:
    config = SearchConfig(image=28)
    train, test = load(config), load(config, "test")
    assert len(train.labels) == 5000
    assert len(test.labels) == 1000
    for part in (train, test):
        assert part.labels.bincount().tolist() == [len(part.labels) // 10] * 10
        assert sorted(part.labels[:10].tolist()) == list(range(10))
    assert train.classes[0] == "T-shirt/top"
    assert test.statistics == train.statistics
    images = next(
        Batches(train, torch.arange(5000), batch=5000, seed=0, stream="w", augment=False).sequential()
    ).images_BCHW
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-4)
    assert torch.equal(images[:, 0], images[:, 2])


def test_small_images_get_a_border_and_others_are_resized() -> None:
    pixels = load(SearchConfig(image=28)).gather(torch.arange(5))
    bordered = load(SearchConfig(image=32)).gather(torch.arange(5))
    assert torch.equal(bordered[:, :, 2:30, 2:30], pixels)
    assert bordered.sum() == pixels.sum()
    assert load(SearchConfig(image=36)).gather(torch.arange(5)).sum() == pixels.sum()
    resized = load(SearchConfig(image=56)).gather(torch.arange(5))
    assert resized.shape == (5, 3, 56, 56)
    assert abs(resized.double().mean() - pixels.double().mean()) < 1
    assert fit(torch.full((1, 1, 40, 30), 9, dtype=torch.uint8), 32).unique().tolist() == [9]


def test_statistics_are_those_of_the_pixels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (50, 3, 9, 9), dtype=np.uint8)
    got = channel_statistics(torch.from_numpy(pixels))
    np.testing.assert_allclose(got.mean, (pixels / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(got.std, (pixels / 255).std((0, 2, 3)), rtol=1e-12)
    flat = channel_statistics(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    assert flat == Statistics((0.0,) * 3, (1 / 255,) * 3)


def test_photographs_from_a_tree(shared_data: Path) -> None:
    """Real JPEG files, some of them gray."""
    name = f"imagefolder:{shared_data / 'caltech101_20'}"
    train, test = (load(SearchConfig(data=name), part) for part in ("train", "test"))
    assert isinstance(train, FolderImages)
    assert len(train.labels) == 1000
    assert len(test.labels) == 300
    assert train.classes == test.classes == tuple(sorted(train.classes))
    assert len(train.classes) == 20
    assert train.statistics == test.statistics
    assert all(0.3 < mean < 0.7 for mean in train.statistics.mean)
    weights, _ = split_halves(train.labels, seed=0, limit=40)
    with Batches(train, weights, batch=20, seed=0, stream="w", augment=True, prefetch=1) as loader:
        batch = loader.at(0)
    assert batch.images_BCHW.shape == (20, 3, 32, 32)
    assert [Path(train.paths[i]).parent.name for i in batch.indices_B] == [
        train.classes[label] for label in batch.labels_B
    ]


def test_a_photograph_is_resized_and_cropped_in_the_centre(tree: Path) -> None:
    data = FolderImages("pets", tree, image=32)
    assert data.classes == ("cat", "dog")
    image = data.gather(torch.tensor([0]))[0].double()
    assert image[0, :, :14].mean() > 195
    assert image[0, :, 18:].mean() < 5
    assert torch.allclose(image[0].mean(), torch.tensor(100.0).double(), atol=4)


def test_a_sixteenth_is_lost_at_each_border(tmp_path: Path) -> None:
    """A ramp of 4 levels per pixel over 40 pixels: 32 pixels look at the middle 35."""
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8) * 4, (40, 40))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(ramp.copy()).save(tmp_path / name / "1.png")
    row = FolderImages("ramps", tmp_path, image=32).gather(torch.tensor([0]))[0, 0, 16].numpy()
    centres = 2.5 + (np.arange(32) + 0.5) * 35 / 32 - 0.5
    np.testing.assert_allclose(row, 4 * centres, atol=1)


def test_exif_orientation_gray_and_16_bit_files(tmp_path: Path) -> None:
    upright = Image.Exif()
    upright[274] = 6
    photograph(tmp_path / "a" / "1.jpg", (90, 90, 90), exif=upright)
    Image.fromarray(np.full((40, 40), 77, dtype=np.uint8)).save(tmp_path / "a" / "2.jpg")
    Image.fromarray(np.full((40, 40), 77 * 257, dtype=np.uint16)).save(tmp_path / "a" / "3.png")
    photograph(tmp_path / "b" / "1.png")
    turned, gray, deep = FolderImages("odd", tmp_path, image=32).gather(torch.arange(3))
    assert turned[0, :12].double().mean() > 85
    assert turned[0, 20:].double().mean() < 5
    for image in (gray, deep):
        assert torch.equal(image, torch.full((3, 32, 32), 77, dtype=torch.uint8))


def test_files_of_other_kinds_and_hidden_folders_are_passed_over(tree: Path) -> None:
    (tree / "cat" / "notes.txt").write_text("no image")
    (tree / ".thumbnails").mkdir()
    photograph(tree / "dog" / "deep" / "er.JPG")
    data = FolderImages("pets", tree, image=32)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("not an image at all")


def floats(path: Path) -> None:
    Image.fromarray(np.ones((9, 9), dtype=np.float32)).save(path, "TIFF")


@pytest.mark.parametrize("damage", [cut, empty, text, floats, Path.unlink])
def test_fault_34_a_damaged_image_is_named_in_the_call_that_needs_it(
    tree: Path, damage: Callable[[Path], None]
) -> None:
    data = FolderImages("pets", tree, image=32)
    bad = data.paths.index(str(tree / "dog" / "1.jpg"))
    damage(Path(data.paths[bad]))
    errors = {}
    order = torch.randperm(6, generator=generator(0, "w", 0, "order")).tolist()
    with Batches(data, torch.arange(6), batch=2, seed=0, stream="w", augment=True, prefetch=1) as loader:
        for step in range(3):
            try:
                loader.at(step)
            except DataError as error:
                errors[step] = str(error)
    (message,) = errors.values()
    assert list(errors) == [order.index(bad) // 2]
    assert re.match(rf"cannot read the image {re.escape(data.paths[bad])}; got .+\. Next: ", message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("cifar-10", r"unknown data set; got 'cifar-10'; allowed fashion-mnist-mini, .*--data cifar10$"),
        ("imagefolder:", r"imagefolder names no folder"),
        ("imagefolder:/no/such/folder", r"cannot read the image folder /no/such/folder; got No such file"),
        ("cifar10", r"cannot read cifar10 in .*Next: --download"),
        ("cifar100", r"cannot read cifar100 in .*Next: --download"),
        ("fashion-mnist", r"cannot read fashion-mnist in .*Next: --download"),
    ],
)
def test_bad_names_and_missing_files(tmp_path: Path, data: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(SearchConfig(data=data, data_root=str(tmp_path)))


def test_a_folder_given_without_its_prefix_gets_the_right_advice(tree: Path) -> None:
    with pytest.raises(DataError, match=f"--data imagefolder:{re.escape(str(tree))}$"):
        load(SearchConfig(data=str(tree)))


def test_fault_35_trees_that_are_no_trees_of_classes(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"too few class folders in .*cat; got none"):
        FolderImages("pets", tree / "cat", image=32)
    (tree / "emu").mkdir()
    with pytest.raises(DataError, match=r"class folder .*emu has no images; got 0 images"):
        load(SearchConfig(data=f"imagefolder:{tree}"))
    (tree / "emu").rmdir()
    with pytest.raises(DataError, match="has no test part"):
        load(SearchConfig(data=f"imagefolder:{tree}"), "test")
    split = tmp_path / "split"
    split.mkdir()
    tree.rename(split / "train")
    photograph(split / "val" / "cat" / "1.jpg")
    photograph(split / "val" / "cow" / "1.jpg")
    with pytest.raises(DataError, match="other classes in train than in val; got cow, dog"):
        load(SearchConfig(data=f"imagefolder:{split}"), "test")


@pytest.mark.parametrize("shared", [".", "cat"])
def test_fault_35_a_folder_that_both_parts_reach(tree: Path, tmp_path: Path, shared: str) -> None:
    split = tmp_path / "split"
    split.mkdir()
    tree.rename(split / "train")
    photograph(split / "val" / "dog" / "1.jpg")
    photograph(split / "val" / "cat" / "1.jpg")
    config = SearchConfig(data=f"imagefolder:{split}")
    assert len(load(config, "test").labels) == 2
    shutil.rmtree(split / "val" / shared)
    (split / "val" / shared).symlink_to(split / "train" / shared)
    name = "val" if shared == "." else shared
    with pytest.raises(DataError, match=f"are in both parts; got {name} is the same folder"):
        load(config, "test")


def test_fault_35_labels_must_match_images_and_classes() -> None:
    statistics = Statistics((0.5,) * 3, (0.5,) * 3)
    pixels = np.zeros((3, 8, 8), dtype=np.uint8)
    with pytest.raises(DataError, match="got 3 images and 2 labels"):
        Images.of("few", pixels, [0, 1], ["a", "b"], image=8, statistics=statistics)
    with pytest.raises(DataError, match="a label of high has no class; got labels 0 to 2; allowed 0 to 1"):
        Images.of("high", pixels, [0, 1, 2], ["a", "b"], image=8, statistics=statistics)


def write_idx(folder: Path, part: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">iiii", 2051, *pixels.shape)
    (folder / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, len(labels)) + labels.tobytes())


def test_fashion_mnist_in_torchvisions_layout(tmp_path: Path) -> None:
    with np.load(MINI) as mini:
        raw = tmp_path / "FashionMNIST" / "raw"
        write_idx(raw, "train", mini["train_images"][:50], mini["train_labels"][:50])
        write_idx(raw, "t10k", mini["test_images"][:20], mini["test_labels"][:20])
    config = SearchConfig(data="fashion-mnist", data_root=str(tmp_path))
    train, embedded = load(config), load(SearchConfig())
    assert torch.equal(train.gather(torch.arange(50)), embedded.gather(torch.arange(50)))
    assert torch.equal(train.labels, embedded.labels[:50])
    assert train.classes == embedded.classes
    assert len(load(config, "test").labels) == 20
    cut(raw / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match=r"cannot read fashion-mnist .*Next: remove .*FashionMNIST and use"):
        load(config)


def test_cifar_in_torchvisions_layout(tmp_path: Path) -> None:
    """torchvision checks the files' hashes, so the tiny tree brings a class with its own."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    files = {
        "batch": {"data": rows, "labels": [3, 0, 1, 2]},
        "meta": {"label_names": ["cat", "dog", "emu", "fox"]},
    }
    hashes = {}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
        hashes[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    class Tiny(CIFAR10):
        base_folder = "tiny"
        train_list = [["batch", hashes["batch"]]]  # noqa: RUF012
        test_list = train_list
        meta = {"filename": "meta", "key": "label_names", "md5": hashes["meta"]}  # noqa: RUF012

    arrays = from_torchvision(Tiny(tmp_path))
    data = Images.of("tiny", arrays.pixels, arrays.labels, arrays.classes, image=32, statistics=CIFAR10_STATISTICS)
    assert data.labels.tolist() == [3, 0, 1, 2]
    assert data.classes == ("cat", "dog", "emu", "fox")
    assert torch.equal(data.gather(torch.arange(4)).reshape(4, -1), torch.from_numpy(rows))


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason=f"needs {DEBIAN_FASHION_MNIST}")
def test_the_documented_snippet_makes_the_embedded_subset(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, check=True)
    with np.load(tmp_path / MINI.name) as made, np.load(MINI) as kept:
        assert sorted(made) == sorted(kept)
        assert all(np.array_equal(made[name], kept[name]) for name in kept)


def _jpeg_npz(path: Path, **changes: object) -> Path:
    """Four 8 x 8 images of one gray level each, in two classes."""
    files = []
    for level in (0, 80, 160, 240):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    arrays = {"jpeg": np.frombuffer(b"".join(files), np.uint8), "offset": offsets, "label": np.array([0, 1, 0, 1])}
    named = {f"{part}_{name}": value for part in ("train", "test") for name, value in arrays.items()}
    np.savez(path, **{**named, "classes": np.array(["dark", "light"]), **changes})
    return path


def test_jpegs_in_one_file(tmp_path: Path) -> None:
    path = _jpeg_npz(tmp_path / "images.npz")
    data = load(SearchConfig(data=f"jpeg-npz:{path}", image=8))
    assert data.classes == ("dark", "light") and data.labels.tolist() == [0, 1, 0, 1]
    assert data.gather(torch.arange(4))[:, 0, 3, 3].tolist() == [0, 80, 160, 240]
    assert data.statistics.mean[0] == pytest.approx(120 / 255, abs=0.01)
    assert load(SearchConfig(data=f"jpeg-npz:{path}", image=16), "test").image == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_jpeg": np.zeros(4000, np.uint8)}, "cannot identify image file"),
        ({"train_offset": np.array([0, 5])}, "cannot identify image file"),
        ({"train_offset": np.array([0])}, "need at least one array"),
        ({"classes": np.array([{}], dtype=object)}, "allow_pickle"),
    ],
)
def test_a_file_without_such_jpegs_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = _jpeg_npz(tmp_path / "images.npz", **changes)
    with pytest.raises(DataError, match=f"images.npz; got .*{message}"):
        load(SearchConfig(data=f"jpeg-npz:{path}", image=8))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "images.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*images\.npz"):
        load(SearchConfig(data=f"jpeg-npz:{path}", image=8))
