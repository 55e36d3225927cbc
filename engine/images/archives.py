"""Data sets in archives, by name: webdataset:, tfrecord: and recordio: and a path."""

from __future__ import annotations

import glob
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .filelist import drawn_classes
from .images import Statistics, gathered, statistics_of
from .records import READERS, Records

# What a folder's files of the two parts begin with, where it has no folders `train` and `val`.
BEGINNINGS = {"train": "train", "test": "val"}
# Files that tools write beside archives.
BESIDE = (".idx", ".lst")


class ArchiveImages:
    """The images of archives, decoded when asked for; see `FolderImages` for what is done to them.

    Args:
        name: of the data set.
        records: where they are.
        image: side S.
        classes: the labels to take, in order.
        statistics: of the training images; None takes them from up to 512 images spread evenly.
    """

    def __init__(
        self, name: str, records: Records, *, image: int, classes: tuple[str, ...], statistics: Statistics | None = None
    ) -> None:  # fmt: skip
        self.name, self.image, self.classes, self._records = name, image, classes, records
        places = np.array([classes.index(label) if label in classes else -1 for label in records.classes])
        labels_N = places[records.labels_N]
        self._numbers = np.flatnonzero(labels_N >= 0)
        self.labels = torch.from_numpy(labels_N[self._numbers])
        self.statistics = statistics or statistics_of(self)

    def read(self, number: int) -> bytes:
        return self._records.read(int(self._numbers[number]))

    def name_of(self, number: int) -> str:
        return self._records.name_of(int(self._numbers[number]))

    def gather(self, indices: Tensor) -> Tensor:
        return gathered(self, indices)


def load_archives(
    name: str, *, test: bool, image: int, num_classes: int = 0, seed: int = 0
) -> ArchiveImages:  # fmt: skip
    """The images of one part.

    Args:
        name: a prefix of `records.READERS` and a folder, a file or a pattern of files. Of a folder the parts are the
            files in its folders `train` and `val`, or those whose names begin so; else all are the training part.
        test: the part.
        image: side S.
        num_classes, seed: see `drawn_classes`.

    Raises:
        DataError: no such files, damaged ones, labels of the test part that the training part has not.
    """
    prefix = next(known for known in READERS if name.startswith(known))
    reader, ending = READERS[prefix]
    path = name.removeprefix(prefix)
    train = reader(_files(prefix, path, ending, "train"))
    classes = drawn_classes(train.classes, num_classes, seed=seed)
    images = ArchiveImages(name, train, image=image, classes=classes)
    if not test:
        return images
    held = reader(_files(prefix, path, ending, "test"))
    odd = sorted(set(held.classes) - set(train.classes))
    if odd:
        raise DataError(
            f"{path} has other classes in its test part than in train", got=", ".join(odd[:3]),
            allowed="labels of the training part", next="check the labels of the archives",
        )  # fmt: skip
    return ArchiveImages(name, held, image=image, classes=classes, statistics=images.statistics)


def _files(prefix: str, path: str, ending: str, part: str) -> list[Path]:
    """Files of one part, sorted."""
    root = Path(path).expanduser()
    whole, exists = not root.is_dir(), root.exists()
    folders = {"train": root / "train", "test": root / "val"}
    if whole:
        found = [Path(file) for file in glob.glob(str(root))]
    elif folders["train"].is_dir():
        found, whole = list(folders[part].glob(ending)), False
    else:
        found = list(root.glob(ending))
        begun = [file for file in found if file.name.startswith(BEGINNINGS[part])]
        whole = not any(file.name.startswith(BEGINNINGS["train"]) for file in found)
        found = found if whole else begun
    if whole and part == "test":
        found = []
    files = sorted(
        file for file in found if file.is_file() and not file.name.startswith(".") and file.suffix not in BESIDE
    )
    if not files:
        raise DataError(
            f"{prefix}{path} names no files of the {'training' if part == 'train' else 'test'} part",
            got=f"no {ending} of it there" if exists else "no such file or folder",
            allowed=f"a file, a pattern, or a folder with {ending} or with such files in train and val",
            next=f"--data {prefix}DIR",
        )  # fmt: skip
    return files
