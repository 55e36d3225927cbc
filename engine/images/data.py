"""Data sets by name: what `--data` takes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..settings.config import SearchConfig
from ..settings.train_config import TrainConfig
from .archives import load_archives
from .filelist import FileList, drawn_classes, training_root
from .images import (
    UNREADABLE,
    DataSet,
    FolderImages,
    Images,
    Statistics,
    channel_statistics,
    channels_first,
    decode_jpeg,
)
from .records import READERS

MINI = Path(__file__).parent.parent / "assets" / "fashion_mnist_mini.npz"
FOLDER = "imagefolder:"
JPEGS = "jpeg-npz:"
TORCHVISION = {"fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
NAMES = ("fashion-mnist-mini", *TORCHVISION, f"{FOLDER}DIR", f"{JPEGS}FILE", *(f"{prefix}PATH" for prefix in READERS))

# As in DARTS' cnn/utils.py (quark0/darts f276dd3).
CIFAR10_STATISTICS = Statistics((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768))

Part = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Arrays:
    """A part of a data set as its files hold it: uint8 [N, H, W] or [N, H, W, 3], labels [N], class names."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


def load(config: SearchConfig | TrainConfig, part: Part = "train") -> DataSet:
    """The images that `config.data` names, fitted to `config.image`.

    The statistics are those of the training images for both parts: DARTS' figures for cifar10, computed for
    the others. Where DIR/train exists, a folder's parts are DIR/train and DIR/val; else DIR is the training
    part. `config.data_list` says which images of the training part; `config.num_classes` draws classes of both.

    Raises:
        DataError: for an unknown name, missing or damaged files, a folder tree without classes or images, a list of
            another tree, or fewer classes than are asked for.
    """
    name = config.data
    if name.startswith(FOLDER):
        return _folder(config, part)
    if name.startswith(tuple(READERS)):
        test = part == "test"
        return load_archives(name, test=test, image=config.image, num_classes=config.num_classes, seed=config.seed)
    if name != "fashion-mnist-mini" and name not in TORCHVISION and not name.startswith(JPEGS):
        raise _unknown(name)
    train = _arrays(config, "train")
    statistics = CIFAR10_STATISTICS if name == "cifar10" else channel_statistics(channels_first(train.pixels))
    wanted = train if part == "train" else _arrays(config, part)
    return Images.of(name, wanted.pixels, wanted.labels, wanted.classes, image=config.image, statistics=statistics)


def _unknown(name: str) -> DataError:
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.4)
    if Path(name).is_dir():
        near = [f"{FOLDER}{name}"]
    return DataError(
        "unknown data set",
        got=repr(name),
        allowed=", ".join(NAMES),
        next=f"--data {near[0] if near else NAMES[0]}",
    )


def _folder(config: SearchConfig | TrainConfig, part: Part) -> FolderImages:
    name, image = config.data, config.image
    root = Path(name.removeprefix(FOLDER)).expanduser()
    if name == FOLDER:
        raise DataError(
            "imagefolder names no folder",
            got=repr(name),
            allowed=f"{FOLDER}DIR",
            next=f"--data {FOLDER}photos",
        )
    train_root = training_root(root)
    listed = _listed(Path(config.data_list).expanduser(), train_root) if config.data_list else FileList.scan(train_root)
    chosen = drawn_classes(listed.classes, config.num_classes, seed=config.seed)
    train = FolderImages(name, listed.of_classes(chosen), image=image)
    if part == "train":
        return train
    if train_root == root:
        raise DataError(
            f"{root} has no test part",
            got="class folders only",
            allowed="DIR/train and DIR/val",
            next=f"move some images of each class to {root / 'val'}, the others to {root / 'train'}",
        )
    held = FileList.scan(root / "val")
    same = _same_folder(train_root, root / "val", held.classes)
    if same is not None:
        raise DataError(
            f"images of {root} are in both parts", got=f"{same} is the same folder in train and in val",
            allowed="test images that are not trained on", next=f"put other images into {root / 'val'}",
        )  # fmt: skip
    if config.data_list:
        # A list may leave out a class whose training images are all bad.
        held = held.of_classes(listed.classes)
    if held.classes != listed.classes:
        odd = sorted(set(held.classes) ^ set(listed.classes))
        raise DataError(
            f"{root} has other classes in train than in val",
            got=f"{', '.join(odd[:3])} in one of them",
            allowed="the same class folders",
            next="mend the folder tree",
        )
    return FolderImages(name, held.of_classes(chosen), image=image, statistics=train.statistics)


def _same_folder(train: Path, held: Path, classes: Sequence[str]) -> str | None:
    """The whole or a class that both parts reach by links, as a name; copies are what `data check` finds."""
    for name in (".", *classes):
        if (train / name).is_dir() and (train / name).samefile(held / name):
            return held.name if name == "." else name
    return None


def _listed(path: Path, root: Path) -> FileList:
    """The file list of that folder."""
    found = FileList.read(path)
    if not root.is_dir() or os.path.realpath(found.root) != os.path.realpath(root):
        raise DataError(
            f"{path} lists another tree", got=f"root {found.root}", allowed=f"root {root}",
            next=f"msgdas data check {root} --out {path}, or change its second line if the tree has moved",
        )  # fmt: skip
    found.check_present()
    return found


def _arrays(config: SearchConfig | TrainConfig, part: Part) -> Arrays:
    """Of the classes that `config.num_classes` draws."""
    found = _all_arrays(config, part)
    chosen = drawn_classes(found.classes, config.num_classes, seed=config.seed)
    if chosen == found.classes:
        return found
    old = np.array([found.classes.index(name) for name in chosen])
    kept = np.isin(found.labels, old)
    return Arrays(found.pixels[kept], np.searchsorted(old, found.labels[kept]), chosen)


def _all_arrays(config: SearchConfig | TrainConfig, part: Part) -> Arrays:
    if config.data in TORCHVISION:
        return _torchvision(config, part)
    if config.data.startswith(JPEGS):
        return _jpegs(Path(config.data.removeprefix(JPEGS)).expanduser(), part)
    with np.load(MINI, allow_pickle=False) as file:
        return Arrays(file[f"{part}_images"], file[f"{part}_labels"].astype(np.int64), tuple(file["classes"].tolist()))


def _jpegs(path: Path, part: Part) -> Arrays:
    """JPEG images of one size in an npz file.

    Keys: `train_jpeg` uint8, all files' bytes one after the other; `train_offset` int64 [N + 1], where each begins;
    `train_label` [N]; the same for `test_`; `classes`, the names.
    """
    try:
        # Opened here: numpy leaves a file open that is cut off.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            content, offsets = file[f"{part}_jpeg"].tobytes(), file[f"{part}_offset"].tolist()
            pixels = [decode_jpeg(content[begin:end]) for begin, end in pairwise(offsets)]
            return Arrays(np.stack(pixels), file[f"{part}_label"].astype(np.int64), tuple(file["classes"].tolist()))
    # All that numpy and Pillow raise for files that are missing, cut off or of another kind.
    except (*UNREADABLE, KeyError, EOFError, BadZipFile) as error:
        keys = ", ".join(f"{part}_{name}" for name in ("jpeg", "offset", "label"))
        raise DataError(
            f"cannot read {path}", got=str(error)[:120] or type(error).__name__,
            allowed=f"an npz file of JPEG images of one size with {keys} and classes", next=f"--data {JPEGS}FILE",
        ) from None  # fmt: skip


def _torchvision(config: SearchConfig | TrainConfig, part: Part) -> Arrays:
    # Importing torchvision costs about a second, which the embedded data should not pay.
    from torchvision import datasets

    kind = getattr(datasets, TORCHVISION[config.data])
    root = Path(config.data_root).expanduser()
    try:
        return from_torchvision(kind(root, train=part == "train", download=config.download))
    # All that torchvision 0.29 raises for files that are missing, cut off or of another kind.
    except (RuntimeError, OSError, EOFError, ValueError, TypeError, KeyError, AssertionError) as error:
        missing = "not found" in str(error)
        if config.download:
            advice = f"check the network, or put torchvision's files into {root} by hand"
        elif missing:
            advice = f"--download, or set data_root to the folder that holds torchvision's {kind.__name__}"
        else:
            advice = f"remove {root / kind.__name__} and use --download"
        raise DataError(
            f"cannot read {config.data} in {root}",
            got=str(error) or type(error).__name__,
            allowed="the files as torchvision lays them out",
            next=advice,
        ) from None


def from_torchvision(source: Any) -> Arrays:
    """The whole content of one of torchvision's in-memory data sets (attributes data, targets, classes)."""
    return Arrays(np.asarray(source.data), np.asarray(source.targets, dtype=np.int64), tuple(source.classes))
