"""Batches of random-resized crops, decoded while the search runs.

Shape suffixes: B images, H rows, W columns, C channels, S side in pixels.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .crops import Strengths, Views, centre_views, random_views
from .decoding import Decoder, Picture, open_picture
from .images import Encoded
from .workers import Workers

# Values that are worked on at a time: they stay in the cache, and neither PyTorch nor OpenBLAS shares so few among
# threads of its own, which would be a team for each worker.
BLOCK = 32768


class Meter:
    """Images made and the time in which any were being made, by all threads together."""

    def __init__(self) -> None:
        self.images, self._busy_s, self._active, self._since = 0, 0.0, 0, 0.0
        self._lock = threading.Lock()

    @property
    def images_per_s(self) -> float:
        """0 before the first batch is done."""
        return self.images / self._busy_s if self._busy_s else 0.0

    @contextmanager
    def making(self, images: int) -> Iterator[None]:
        """Around the making of so many."""
        with self._lock:
            if not self._active:
                self._since = time.perf_counter()
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1
                self.images += images
                if not self._active:
                    self._busy_s += time.perf_counter() - self._since


class ResizedCrops:
    """Images of any size as batches: read and decoded in threads, a window of each resized, colours and normalisation.

    With an epoch: torchvision's RandomResizedCrop, flip and `jitter`; without one the central 7/8.

    Args:
        dataset: where the images are; its side is the decoder's.
        seed, stream: see `random_views`.
        jitter: of the colours, None for none.
        dtype: of the images.
        decoder: makes the pixels; it and `workers` are the caller's to close.
        workers: read the files.
        meter: counts what is made.
    """

    def __init__(
        self, dataset: Encoded, *, seed: int, stream: str, jitter: Strengths | None, dtype: torch.dtype,
        decoder: Decoder, workers: Workers, meter: Meter | None = None,
    ) -> None:  # fmt: skip
        self.dataset, self.seed, self.stream, self.jitter, self.dtype = dataset, seed, stream, jitter, dtype
        self.decoder, self.workers, self.meter = decoder, workers, meter or Meter()
        mean_C, std_C = (np.array(part, dtype=np.float64) for part in
                         (dataset.statistics.mean, dataset.statistics.std))  # fmt: skip
        self._scale_C = (1 / (255 * std_C)).astype(np.float32)
        self._shift_C = (-mean_C / std_C).astype(np.float32)

    def images(self, indices_B: Tensor, epoch: int | None) -> Tensor:
        with self.meter.making(len(indices_B)):
            return self._images(indices_B, epoch)

    def _images(self, indices_B: Tensor, epoch: int | None) -> Tensor:
        pictures = self.workers.map(self._open, indices_B.tolist(), self.dataset.name_of)
        views = self._views(pictures, indices_B.numpy(), epoch)
        pixels_BHWC = self.decoder.decode(pictures, views)
        if pixels_BHWC.is_cuda:
            return self._on_device(pixels_BHWC, views.colours_B34).permute(0, 3, 1, 2)
        images_BHWC = empty_images(len(pictures), self.decoder.image, self.dtype)

        def finish(number: int) -> None:
            colours_34 = None if views.colours_B34 is None else views.colours_B34[number]
            self._finish(pixels_BHWC[number], colours_34, images_BHWC[number])

        self.workers.map(finish, range(len(pictures)), lambda number: pictures[number].name)
        return images_BHWC.permute(0, 3, 1, 2)

    def _open(self, number: int) -> Picture:
        return open_picture(self.dataset.read(number), self.dataset.name_of(number))

    def _views(self, pictures: list[Picture], indices_B: NDArray[np.int64], epoch: int | None) -> Views:
        sizes_B2 = np.array([(picture.height, picture.width) for picture in pictures], dtype=np.int64)
        if epoch is None:
            return centre_views(sizes_B2)
        return random_views(
            sizes_B2, indices_B, seed=self.seed, stream=self.stream, epoch=epoch, jitter=self.jitter
        )  # fmt: skip

    def _finish(self, pixels_HWC: Tensor, colours_34: NDArray[np.float32] | None, out_HWC: Tensor) -> None:
        """Colours and normalisation of one image, in float32, block by block."""
        side = pixels_HWC.shape[1]
        pixels, rows = pixels_HWC.numpy(), max(1, BLOCK // (3 * side))
        scale, shift = np.tile(self._scale_C, side), np.tile(self._shift_C, side)
        for start in range(0, len(pixels), rows):
            block = pixels[start : start + rows].reshape(-1, 3 * side).astype(np.float32)
            if colours_34 is not None:
                turned = block.reshape(-1, 3) @ colours_34[:, :3].T + colours_34[:, 3]
                block = turned.clip(0, 255).reshape(-1, 3 * side)
            block *= scale
            block += shift
            out_HWC[start : start + rows].copy_(torch.from_numpy(block).view(-1, side, 3))

    def _on_device(self, pixels_BHWC: Tensor, colours_B34: NDArray[np.float32] | None) -> Tensor:
        """The same for a batch that was decoded on a device."""
        value_BPC = pixels_BHWC.flatten(1, 2).float()
        if colours_B34 is not None:
            maps_B34 = torch.from_numpy(colours_B34).to(pixels_BHWC.device)
            value_BPC = torch.baddbmm(maps_B34[:, None, :, 3], value_BPC, maps_B34[:, :, :3].mT).clamp_(0, 255)
        scale_C, shift_C = (torch.from_numpy(part).to(value_BPC) for part in (self._scale_C, self._shift_C))
        return torch.addcmul(shift_C, value_BPC, scale_C).view_as(pixels_BHWC).to(self.dtype)


def empty_images(count: int, side: int, dtype: torch.dtype) -> Tensor:
    """[count, S, S, 3] without values, in memory of numpy's: it asks for large pages, whose first touch is cheaper.

    A batch of 64 at 224 px: 0.12 ms of CPU time per image for normalisation into it, 0.31 into PyTorch's own (x86-64).
    """
    size_bytes = torch.empty(0, dtype=dtype).element_size()
    return torch.from_numpy(np.empty((count, side, side, 3 * size_bytes), dtype=np.uint8)).view(dtype)
