"""From files to the pixels of a batch, on the CPU.

Shape suffixes: B images, H rows, W columns, S side in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .crops import Views
from .images import UNREADABLE, unreadable, upright
from .workers import Workers

JPEG_MAGIC = b"\xff\xd8\xff"
# Markers before and after a JPEG's compressed bytes, which hold neither of them.
JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"
EXIF_MAGIC = b"Exif\0\0"
# An Exif segment is one of the first, and no longer than this.
EXIF_REACH = 1 << 17
# A JPEG is decoded at a fraction of its size where the window then still has this many times the pixels that are
# wanted along each side (as in images.decode).
SPARE = 2


@dataclass(frozen=True, slots=True)
class Picture:
    """An image whose size is known.

    Attributes:
        name: of the file or record, for errors.
        height, width: upright, in pixels.
        jpeg: the bytes of an upright gray or RGB JPEG with its end, which are decoded later; None for every other
            image.
        pixels_HWC: uint8 [H, W, 3] of every other image.
    """

    name: str
    height: int
    width: int
    jpeg: bytes | None
    pixels_HWC: NDArray[np.uint8] | None


class Decoder(Protocol):
    """Makes pixels of pictures.

    Attributes:
        name: of the loader, as key `loader` has it.
        image: side S.
    """

    @property
    def name(self) -> str: ...
    @property
    def image(self) -> int: ...

    def decode(self, pictures: Sequence[Picture], views: Views) -> Tensor:
        """Window and flip of each picture at side S: uint8 [B, S, S, 3], resized with antialiasing (triangle filter).

        Raises:
            DataError: for a picture that cannot be decoded; it names the file.
        """
        ...

    def close(self) -> None: ...


def open_picture(content: bytes, name: str) -> Picture:
    """Read an image's size, and its pixels too where it is not an upright gray or RGB JPEG.

    Raises:
        DataError: for bytes that are no image, or one that is cut off; of a whole JPEG's body nothing is known yet.
    """
    # Of one that is cut off DALI writes a line to standard error for each batch before it says so.
    end = content.rfind(JPEG_END)
    whole = end >= 0 and content.find(JPEG_SCAN, end) < 0
    if whole and content.startswith(JPEG_MAGIC) and content.find(EXIF_MAGIC, 0, EXIF_REACH) < 0:
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        except ValueError:
            colours = ""
        if colours in ("YCbCr", "RGB", "Gray"):
            return Picture(name, height, width, content, None)
    pixels_HWC = pixels_of(content, name)
    height, width, _ = pixels_HWC.shape
    return Picture(name, height, width, None, pixels_HWC)


def pixels_of(content: bytes, name: str) -> NDArray[np.uint8]:
    """All pixels of an image by Pillow, upright: uint8 [H, W, 3].

    Raises:
        DataError: for a file that is no image, is cut off, is too large, or has not 8 or 16 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return np.array(upright(opened))
    except UNREADABLE as error:
        raise unreadable(name, error) from None


def fitted(part_HWC: Tensor, image: int, *, flip: bool) -> Tensor:
    """A uint8 window [H, W, 3] as [S, S, 3] with S = `image`, bilinear with antialiasing, mirrored where `flip`."""
    part_1CHW = part_HWC.permute(2, 0, 1)[None]
    shown_1CHW = F.interpolate(part_1CHW, size=(image, image), mode="bilinear", antialias=True, align_corners=False)
    shown_HWC = shown_1CHW[0].permute(1, 2, 0)
    return shown_HWC.flip(1) if flip else shown_HWC


class TurboDecoder:
    """libjpeg-turbo (simplejpeg) and PyTorch's uint8 resize, in threads; all that is no plain JPEG by Pillow.

    Args:
        image: side S.
        workers: the threads.
    """

    name = "torch"

    def __init__(self, image: int, workers: Workers) -> None:
        self.image, self.workers = image, workers

    def decode(self, pictures: Sequence[Picture], views: Views) -> Tensor:
        pixels_BHWC = torch.empty(len(pictures), self.image, self.image, 3, dtype=torch.uint8)
        windows, flips = views.windows_B4.tolist(), views.flips_B.tolist()

        def one(number: int) -> None:
            part_HWC = torch.from_numpy(self._cut(pictures[number], windows[number]))
            pixels_BHWC[number] = fitted(part_HWC, self.image, flip=flips[number])

        self.workers.map(one, range(len(pictures)), lambda number: pictures[number].name)
        return pixels_BHWC

    def close(self) -> None:
        """Nothing: the threads are the caller's."""

    def _cut(self, picture: Picture, window: Sequence[int]) -> NDArray[np.uint8]:
        top, left, height, width = window
        pixels_HWC = self._decoded(picture, height, width)
        scaled = pixels_HWC.shape[0] / picture.height, pixels_HWC.shape[1] / picture.width
        if scaled != (1, 1):
            top, height = (round(part * scaled[0]) for part in (top, height))
            left, width = (round(part * scaled[1]) for part in (left, width))
        return pixels_HWC[top : top + height, left : left + width]

    def _decoded(self, picture: Picture, height: int, width: int) -> NDArray[np.uint8]:
        """The whole picture, at a fraction of its size where the window is far larger than what is wanted."""
        if picture.jpeg is None:
            assert picture.pixels_HWC is not None
            return picture.pixels_HWC
        wanted = SPARE * self.image
        least = {}
        if height > 2 * wanted and width > 2 * wanted:
            least = {
                "min_height": -(-picture.height * wanted // height),
                "min_width": -(-picture.width * wanted // width),
            }
        try:
            return simplejpeg.decode_jpeg(picture.jpeg, colorspace="RGB", **least)
        except ValueError:
            # Pillow decides: it takes files with stray bytes, as torchvision's ImageFolder does.
            return pixels_of(picture.jpeg, picture.name)
