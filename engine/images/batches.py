"""From a data set to the batch of step number n.

Shape suffixes: N images of the data set, B of one batch, H rows, W columns, C channels, S side in pixels.

Nothing here has a state that a checkpoint would have to hold: a batch is a function of (seed, stream, step).
So a search resumes in mid-epoch, and no loader can hand out its first batch again and again.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from .crops import seed_of
from .images import DataSet

# Black pixels around the image before the random crop (DARTS).
PADDING = 4


def generator(seed: int, *words: str | int) -> torch.Generator:
    """A CPU generator for one purpose, seeded with `seed_of(seed, *words)`.

    torch's CPU generator reads the lower 32 bits of a seed.
    """
    return torch.Generator().manual_seed(seed_of(seed, *words))


def split_halves(
    labels: Tensor, *, seed: int, limit: int = 0, w_fraction: float = 0.0, alpha_fraction: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Two disjoint parts of the images for the weights and for alpha, each with its share of every class.

    Of a class with n images a part takes fraction * n, rounded to the nearest whole number (halves up) and at least
    one, the W part what alpha's leaves where both together are more than n; half takes n / 2 rounded down. PC-DARTS'
    search on ImageNet takes 0.1 and 0.025. A part is listed so that every prefix holds the same share of each class,
    rounded to whole images (Sainte-Lague's rule); `limit` takes such a prefix of both.

    Args:
        labels: int64 [N].
        seed: decides which images and their order.
        limit: images per part, 0 for all.
        w_fraction, alpha_fraction: of each class, 0 for half of it; at most 1 together.

    Returns:
        The numbers of the images of the W part and of the alpha part, int64.

    Raises:
        DataError: for a class with a single image.
    """
    random = generator(seed, "split")
    present, counts = labels.unique(return_counts=True)
    by_class = labels.argsort(stable=True).split(counts.tolist())
    parts: tuple[list[Tensor], list[Tensor]] = [], []
    for label, members in zip(present.tolist(), by_class, strict=True):
        count = len(members)
        if count < 2:
            raise DataError(
                f"class number {label} cannot be split between the W and alpha halves",
                got="1 image",
                allowed="2 or more per class",
                next="add images to this class, or remove it",
            )
        shuffled = members[torch.randperm(count, generator=random)]
        of_alpha = min(_share(alpha_fraction, count), count - 1)
        of_w = min(_share(w_fraction, count), count - of_alpha)
        parts[0].append(shuffled[:of_w])
        parts[1].append(shuffled[of_w : of_w + of_alpha])
    return _interleaved(parts[0], limit), _interleaved(parts[1], limit)


def _share(fraction: float, count: int) -> int:
    return max(1, int(fraction * count + 0.5)) if fraction else count // 2


def _interleaved(classes: list[Tensor], limit: int) -> Tensor:
    """The classes' images in one list whose every prefix holds the same share of each; `limit` of them, 0 for all."""
    places = [(torch.arange(len(part), dtype=torch.float64) + 0.5) / len(part) for part in classes]
    order = torch.cat(places).argsort(stable=True)
    return torch.cat(classes)[order[:limit] if limit else order]


def dataset_fingerprint(labels: Tensor, *halves: Tensor) -> str:
    """What a resumed search must find again: number of images and classes, and a checksum of labels and halves."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in (labels, *halves):
        digest.update(tensor.to(torch.int64).numpy().tobytes())
    return f"{len(labels)} images, checksum {digest.hexdigest()}"


@dataclass(frozen=True, slots=True)
class Batch:
    """Images as a network takes them.

    Attributes:
        images_BCHW: normalised, channels_last, [B, 3, S, S]; on the CPU, or where they were decoded.
        labels_B: int64 [B].
        indices_B: their numbers in the data set, int64 [B].
    """

    images_BCHW: Tensor
    labels_B: Tensor
    indices_B: Tensor


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows of each batch that one process takes: batch / world of them, from row rank * batch / world on."""

    rank: int = 0
    world: int = 1

    def rows(self, batch: int) -> slice:
        share = batch // self.world
        return slice(self.rank * share, (self.rank + 1) * share)


# One process takes whole batches.
ALONE = Shard()


class Source(Protocol):
    """Makes the pixels of a batch."""

    def images(self, indices_B: Tensor, epoch: int | None) -> Tensor:
        """The images with those numbers as a network takes them, [B, 3, S, S] in channels_last.

        Args:
            indices_B: int64; several threads may ask at once.
            epoch: whose augmentation they get, None for the images as they are.

        Raises:
            DataError: for an image that cannot be read; it names the path.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Augmentation:
    """Of every image of the data set in one epoch."""

    epoch: int
    shifts_N2: Tensor
    flips_N: Tensor
    centres_N2: Tensor


class PaddedCrops:
    """Images of the network's size, augmented as in DARTS.

    Four black pixels around the image and a random crop, flip left to right with probability 1/2, then a square of
    zeros after normalisation where cutout is on. They are a function of (seed, stream, epoch, number of the image).

    Args:
        dataset, seed, stream, cutout, dtype: see `Batches`.
    """

    def __init__(self, dataset: DataSet, *, seed: int, stream: str, cutout: int, dtype: torch.dtype) -> None:
        self.dataset, self.seed, self.stream, self.cutout, self.dtype = dataset, seed, stream, cutout, dtype
        self._mean_C = torch.tensor(dataset.statistics.mean, dtype=dtype)
        self._std_C = torch.tensor(dataset.statistics.std, dtype=dtype)
        self._latest: _Augmentation | None = None

    def images(self, indices_B: Tensor, epoch: int | None) -> Tensor:
        pixels_BHWC = self.dataset.gather(indices_B).permute(0, 2, 3, 1)
        drawn = None if epoch is None else self._draw(epoch)
        if drawn is not None:
            pixels_BHWC = _crop_and_flip(pixels_BHWC, drawn.shifts_N2[indices_B], drawn.flips_N[indices_B])
        images_BHWC = self._normalise(pixels_BHWC)
        if drawn is not None and self.cutout:
            images_BHWC *= _cutout_mask(drawn.centres_N2[indices_B], self.dataset.image, self.cutout)
        return images_BHWC.permute(0, 3, 1, 2)

    def _draw(self, epoch: int) -> _Augmentation:
        latest = self._latest
        if latest is None or latest.epoch != epoch:
            changes, count = generator(self.seed, self.stream, epoch, "augmentation"), len(self.dataset.labels)
            latest = self._latest = _Augmentation(
                epoch,
                torch.randint(2 * PADDING + 1, (count, 2), generator=changes, dtype=torch.int16),
                torch.randint(2, (count,), generator=changes, dtype=torch.uint8).bool(),
                torch.randint(self.dataset.image, (count, 2), generator=changes, dtype=torch.int16),
            )
        return latest

    def _normalise(self, pixels_BHWC: Tensor) -> Tensor:
        side = self.dataset.image
        # Rows of S * C values: a last axis of three alone takes four times as long.
        rows = pixels_BHWC.reshape(-1, side, side * 3).to(self.dtype)
        rows.div_(255).sub_(self._mean_C.repeat(side)).div_(self._std_C.repeat(side))
        return rows.view(-1, side, side, 3)


class Batches:
    """The batches of one half of a data set, by step number.

    Epoch e = step // per_epoch. Its order is a permutation drawn from (seed, stream, e). An image's augmentation is a
    function of (seed, stream, e, number of the image in the data set): its place in the order does not change it.

    Args:
        dataset: where the images are.
        indices: int64, numbers of the images to use.
        batch: images per step; what is left over at the end of an epoch is dropped.
        seed: of the search.
        stream: a name; two streams of one seed have unrelated orders and augmentations.
        augment: crop and flip, and cutout where `cutout` > 0.
        cutout: side of the square in pixels; it may reach over the border.
        dtype: of the images.
        prefetch: batches that are made ahead in threads; they are the same with any number.
        shard: the part of every batch that `at` makes; `world` divides the batch.
        source: makes the pixels; `PaddedCrops` where it is None.

    Attributes:
        waited_s: how long `at` has kept its callers waiting.

    Raises:
        DataError: for fewer images than a batch.
    """

    def __init__(
        self,
        dataset: DataSet,
        indices: Tensor,
        *,
        batch: int,
        seed: int,
        stream: str,
        augment: bool,
        cutout: int = 0,
        dtype: torch.dtype = torch.float32,
        prefetch: int = 0,
        shard: Shard = ALONE,
        source: Source | None = None,
    ) -> None:
        assert batch % shard.world == 0, (batch, shard)
        if len(indices) < batch:
            raise DataError(
                f"half {stream} of {dataset.name} is smaller than a batch",
                got=f"{len(indices)} images for batch {batch}",
                allowed=f"a batch of 2 to {len(indices)}",
                next=f"--batch {max(2, len(indices))}, or more images",
            )
        self.dataset, self.indices, self.batch = dataset, indices, batch
        self.seed, self.stream, self.augment = seed, stream, augment
        self.per_epoch = len(indices) // batch
        self.shard, self.prefetch = shard, prefetch
        self.source = source or PaddedCrops(dataset, seed=seed, stream=stream, cutout=cutout, dtype=dtype)
        self.waited_s = 0.0
        self._latest: tuple[int, Tensor] | None = None
        self._ahead: dict[int, Future[Batch]] = {}
        # Two, so that files are read while the batch before is decoded.
        self._pool = ThreadPoolExecutor(min(2, prefetch), "batches") if prefetch else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; `at` then works without them."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._ahead = None, {}

    def at(self, step: int) -> Batch:
        """This shard's part of the batch of that step, counted from 0. Calls may come in any order.

        Raises:
            DataError: for an image that cannot be read, in the call whose batch it belongs to.
        """
        begin = time.perf_counter()
        wanted = range(step, step + 1 + self.prefetch)
        for other in [other for other in self._ahead if other not in wanted]:
            self._ahead.pop(other).cancel()
        if self._pool is not None:
            for other in wanted:
                if other not in self._ahead:
                    self._ahead[other] = self._pool.submit(self._make, other)
        batch = self._ahead.pop(step).result() if self._pool is not None else self._make(step)
        self.waited_s += time.perf_counter() - begin
        return batch

    def sequential(self, limit: int = 0, size: int = 0) -> Iterator[Batch]:
        """The images as they are, each once and in the order of `indices`: for evaluation. Shards take turns.

        The last batch may be smaller; it is left out if it holds one image, of which BatchNorm cannot take
        statistics.

        Args:
            limit: images to use, 0 for all.
            size: images per batch, 2 or more; 0 for those of a step.
        """
        indices = self.indices[:limit] if limit else self.indices
        parts = [
            indices_B for number, indices_B in enumerate(indices.split(size or self.batch))
            if len(indices_B) >= 2 and number % self.shard.world == self.shard.rank
        ]  # fmt: skip
        ahead: deque[Future[Batch]] = deque()
        for number, indices_B in enumerate(parts):
            if self._pool is None:
                yield self._batch(indices_B, None)
                continue
            for later in parts[number + len(ahead) : number + 1 + self.prefetch]:
                ahead.append(self._pool.submit(self._batch, later, None))
            yield ahead.popleft().result()

    def _make(self, step: int) -> Batch:
        assert step >= 0
        epoch, place = divmod(step, self.per_epoch)
        latest = self._latest
        if latest is None or latest[0] != epoch:
            random = generator(self.seed, self.stream, epoch, "order")
            latest = self._latest = epoch, torch.randperm(len(self.indices), generator=random)
        chosen = latest[1][place * self.batch : (place + 1) * self.batch]
        return self._batch(self.indices[chosen[self.shard.rows(self.batch)]], epoch if self.augment else None)

    def _batch(self, indices_B: Tensor, epoch: int | None) -> Batch:
        return Batch(self.source.images(indices_B, epoch), self.dataset.labels[indices_B], indices_B)


def _crop_and_flip(pixels_BHWC: Tensor, shifts_B2: Tensor, flips_B: Tensor) -> Tensor:
    """A crop of the padded images from row and column `shifts_B2`, mirrored where `flips_B`; one gather."""
    batch, side = pixels_BHWC.shape[:2]
    padded = F.pad(pixels_BHWC, (0, 0, PADDING, PADDING, PADDING, PADDING))
    width = side + 2 * PADDING
    line = torch.arange(side)
    rows_BH = shifts_B2[:, :1] + line
    columns_BW = shifts_B2[:, 1:] + torch.where(flips_B[:, None], line.flip(0), line)
    images = torch.arange(batch)[:, None, None]
    source_BHW = (images * width + rows_BH[:, :, None]) * width + columns_BW[:, None, :]
    return padded.reshape(-1, 3).index_select(0, source_BHW.view(-1)).view(batch, side, side, 3)


def _cutout_mask(centres_B2: Tensor, side: int, cutout: int) -> Tensor:
    """False in a square of that side around each centre, bool [B, S, S, 1]."""
    offset_BL2 = torch.arange(side)[None, :, None] - centres_B2[:, None, :] + cutout // 2
    inside_BL2 = (offset_BL2 >= 0) & (offset_BL2 < cutout)
    return ~(inside_BL2[:, :, None, :1] & inside_BL2[:, None, :, 1:])
