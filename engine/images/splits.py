"""The images of a search on a folder as file lists in its run folder: all, those of the weights, those of alpha."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from .filelist import FileList

ALL = "data.list"


def keep_lists(run: Path, files: FileList, parts: Mapping[str, Tensor]) -> None:
    """Write RUN/data.list and RUN/PART.list for each part; or, where they are, hold the images against them.

    Args:
        run: the run folder.
        files: all images that the parts are drawn from.
        parts: by name, the numbers of their images, int64, in the order of the part.

    Raises:
        CheckpointError: the images are not those that the search began with; it names files.
        DataError: a list cannot be read or written.
    """
    lists = {ALL: files} | {f"{name}.list": files.at(numbers.tolist()) for name, numbers in parts.items()}
    for name, now in lists.items():
        path = run / name
        if not path.exists():
            now.write(path)
            continue
        before = FileList.read(path)
        if before.checksum != now.checksum:
            raise CheckpointError(
                f"the search began with other images, those of {path}",
                got=str(before.difference(now)) or "other classes or another order", allowed="the same files",
                next="put the data back, or search anew without --resume",
            )  # fmt: skip
