"""Where images come from: arrays in memory, or a tree of class folders.

Shape suffixes: N images, B images of one batch, H rows, W columns, C channels, S side in pixels. Both kinds
hand out uint8 [B, 3, S, S]; gray images have three equal channels.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import DataError
from .filelist import FileList

# Up to this many missing pixels per side pair an image gets a black border, beyond them it is resized (ours:
# 28 x 28 images keep their pixels in a 32 x 32 network).
LARGEST_BORDER = 8
# Images of a folder from which the channels' mean and standard deviation are taken.
STATISTICS_IMAGES = 512
# The shorter side is image * 8/7 before the central crop, as 256 for 224: 1/16 is lost at each border.
BLEED = 1 / 16
DECODERS = 8
# Everything Pillow 13 raised for 84,000 JPEG, PNG, WebP, TIFF, BMP and PPM files with random bytes changed.
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and standard deviation of each of the three channels, in units of the pixel range 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class DataSet(Protocol):
    """Labelled images of one size.

    Attributes:
        name: as the configuration spells it.
        classes: class names in the order of the labels.
        labels: int64 [N], from 0 to len(classes) - 1.
        statistics: of the training images; what batches are normalised with.
        image: side S of the images.
    """

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def statistics(self) -> Statistics: ...
    @property
    def image(self) -> int: ...

    def gather(self, indices: Tensor) -> Tensor:
        """The images with those numbers (int64 [B]) as uint8 [B, 3, S, S].

        Raises:
            DataError: for an image that cannot be read; it names the path.
        """
        ...


class Encoded(DataSet, Protocol):
    """Images that are decoded when they are asked for."""

    def read(self, number: int) -> bytes:
        """The file or record of that image, as it is; several threads may ask at once.

        Raises:
            DataError: for one that cannot be read; it names the path.
        """
        ...

    def name_of(self, number: int) -> str:
        """Where it is, for people."""
        ...


def channel_statistics(pixels_NCHW: Tensor) -> Statistics:
    """Statistics over all pixels of uint8 [N, 1 or 3, H, W].

    Sums of integers, so the result does not depend on the number of threads. A channel of one value gets the
    deviation 1/255, one gray level, instead of 0.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in pixels_NCHW.unbind(1):
        counts = torch.bincount(channel.reshape(-1), minlength=256).double()
        share = counts / counts.sum()
        mean = (share * levels).sum()
        means.append(mean.item())
        stds.append(max((share * (levels - mean) ** 2).sum().sqrt().item(), 1 / 255))
    if len(means) == 1:
        means, stds = means * 3, stds * 3
    return Statistics((means[0], means[1], means[2]), (stds[0], stds[1], stds[2]))


def fit(pixels_NCHW: Tensor, image: int) -> Tensor:
    """Images of side `image`: a black border for up to 8 missing pixels, else antialiased resize."""
    height, width = pixels_NCHW.shape[-2:]
    if height == width and 0 <= image - height <= LARGEST_BORDER:
        before = (image - height) // 2
        after = image - height - before
        return F.pad(pixels_NCHW, (before, after, before, after))
    return F.interpolate(pixels_NCHW, size=(image, image), mode="bilinear", antialias=True)


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """A data set in memory.

    Attributes:
        pixels_NCHW: uint8 [N, 3, S, S]; gray images are one channel seen three times, without a copy.
        others: see `DataSet`.

    Raises:
        DataError: when labels and images differ in number, or a label has no class.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    statistics: Statistics
    pixels_NCHW: Tensor

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.pixels_NCHW) or not len(self.labels):
            raise DataError(
                f"{self.name} needs one label for each image",
                got=f"{len(self.pixels_NCHW)} images and {len(self.labels)} labels",
                allowed="the same number, at least one",
                next="fetch the data set's files again",
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise DataError(
                f"a label of {self.name} has no class",
                got=f"labels {low} to {high}",
                allowed=f"0 to {len(self.classes) - 1}",
                next="fetch the data set's files again",
            )

    @classmethod
    def of(
        cls,
        name: str,
        pixels: NDArray[np.uint8],
        labels: Sequence[int] | NDArray[np.integer],
        classes: Sequence[str],
        *,
        image: int,
        statistics: Statistics,
    ) -> Images:
        """From uint8 [N, H, W] (gray) or [N, H, W, 3], fitted to side `image`."""
        pixels_NCHW = fit(channels_first(pixels), image).expand(-1, 3, -1, -1)
        labels_N = torch.as_tensor(np.asarray(labels, dtype=np.int64))
        return cls(name, tuple(str(part) for part in classes), labels_N, statistics, pixels_NCHW)

    @property
    def image(self) -> int:
        return self.pixels_NCHW.shape[-1]

    def gather(self, indices: Tensor) -> Tensor:
        return self.pixels_NCHW[indices]


def channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, H, W] or [N, H, W, 3] as [N, 1 or 3, H, W]."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels))
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)


class FolderImages:
    """The images of a file list, decoded when asked for.

    Each is turned upright by its EXIF orientation, resized so that the shorter side is image * 8/7 (bilinear,
    antialiased) and cropped in the centre.

    Args:
        name: of the data set.
        files: the images; or the folder of class folders that holds them, see `FileList.scan`.
        image: side S.
        statistics: of the training images; None takes them from up to 512 images spread evenly over the list.

    Raises:
        DataError: for a missing folder, fewer than two class folders, or a class without images.
    """

    def __init__(self, name: str, files: FileList | Path, *, image: int, statistics: Statistics | None = None) -> None:
        self.name, self.image = name, image
        self.files = files if isinstance(files, FileList) else FileList.scan(files)
        self.files.check_filled()
        self.classes, self.paths = self.files.classes, self.files.paths()
        self.labels = torch.tensor(self.files.labels())
        self.statistics = statistics or statistics_of(self)

    def read(self, number: int) -> bytes:
        try:
            return Path(self.paths[number]).read_bytes()
        except OSError as error:
            raise unreadable(self.paths[number], error) from None

    def name_of(self, number: int) -> str:
        return self.paths[number]

    def gather(self, indices: Tensor) -> Tensor:
        return gathered(self, indices)


def statistics_of(dataset: Encoded) -> Statistics:
    """Channel statistics of up to 512 images spread evenly over the data set."""
    count = min(len(dataset.labels), STATISTICS_IMAGES)
    return channel_statistics(dataset.gather(torch.arange(count) * len(dataset.labels) // count))


def gathered(dataset: Encoded, indices: Tensor) -> Tensor:
    """See `DataSet.gather`: by Pillow, in up to eight threads."""

    def one(number: int) -> NDArray[np.uint8]:
        return decode(dataset.read(number), dataset.image, name=dataset.name_of(number))

    with ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1)) as pool:
        return channels_first(np.stack(list(pool.map(one, indices.tolist()))))


def decode(content: bytes, image: int, *, name: str) -> NDArray[np.uint8]:
    """The image in a file's bytes as uint8 [S, S, 3]; `name` is what errors call it.

    Raises:
        DataError: for a file that is no image, is cut off, is too large, or has not 8 or 16 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            # JPEGs are decoded at a fraction of their size where twice the target is still left: 2.8 times
            # quicker for 300 x 260 photographs at S=32 (one thread, x86-64).
            opened.draft("RGB", (2 * image, 2 * image))
            size = (image, image)
            return np.asarray(ImageOps.fit(upright(opened), size, Image.Resampling.BILINEAR, bleed=BLEED))
    except UNREADABLE as error:
        raise unreadable(name, error) from None


def upright(picture: Image.Image) -> Image.Image:
    """As it is to be looked at, by its EXIF orientation, in RGB of 8 bits; raises one of UNREADABLE."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {picture.mode}")
    return picture.convert("RGB")


def unreadable(name: str, error: Exception) -> DataError:
    """What is said of an image for which Pillow or the system raised `error`."""
    return DataError(
        f"cannot read the image {name}",
        # Pillow would name the buffer.
        got="not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__,
        allowed="a whole image of 8 or 16 bits per channel",
        next="replace or remove this file; `msgdas data check DIR` finds all such and lists the others",
    )


def decode_jpeg(content: bytes) -> NDArray[np.uint8]:
    """A JPEG file's pixels, uint8 [H, W, 3]; raises one of UNREADABLE for bytes that are none."""
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as picture:
        return np.asarray(picture.convert("RGB"))
