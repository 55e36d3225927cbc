"""The images that a network is trained and judged on, as the batches of one process."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

import torch

from ..images.batches import Batches, dataset_fingerprint, generator
from ..images.data import load
from ..images.feeding import Feed
from ..images.images import Encoded
from ..run.dist import Ranks, digest
from ..settings.inputs import encoded, resized
from ..settings.train_config import TrainConfig
from .scoring import Judge, judge_of


@dataclass(frozen=True, slots=True)
class TrainImages:
    """What a network learns from.

    Attributes:
        batches: for its steps.
        judge: the test images.
        classes: class names in the order of the logits.
        mean, std: of the channels in units of the pixel range 0 to 1, which images are normalised with.
        fingerprint: what a resumed training must find again.
        feed: decodes them, None where that is Pillow's or numpy's work.
    """

    batches: Batches
    judge: Judge
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    feed: Feed | None

    @property
    def feeder(self) -> str:
        """The loader that makes batches, as key `loader` names it."""
        return "memory" if self.feed is None else self.feed.name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.batches.close()
        self.judge.batches.close()
        if self.feed is not None:
            self.feed.close()


def shared_images(config: TrainConfig, ranks: Ranks, device: torch.device) -> TrainImages:
    """The images as this process takes its part of them; where they are to be downloaded, one per machine does.

    Raises:
        DataError: see `data.load` and `Batches`.
        FollowedError: another process cannot open them.
        RanksError: the processes see different images.
    """
    found: TrainImages | None = None
    early = config.download and ranks.place.local_rank == 0
    if config.download:
        with ranks.together("the download"):
            found = _open(config, ranks, device) if early else None
    with ranks.together("the data") as meeting:
        if found is None:
            found = _open(config, ranks, device)
        meeting.equal = digest(found.fingerprint.encode())
    return found


def _open(config: TrainConfig, ranks: Ranks, device: torch.device) -> TrainImages:
    dataset, shard = load(config), ranks.shard()
    indices = torch.randperm(len(dataset.labels), generator=generator(config.seed, "subset"))
    indices = indices[: config.limit] if config.limit else indices
    feed: Feed | None = None
    if resized(config):
        feed = Feed(cast("Encoded", dataset), config, shard, device, beside=ranks.place.local_world)
    batches = Batches(
        dataset, indices, batch=config.batch, seed=config.seed, stream="train", augment=config.augment,
        cutout=config.cutout, prefetch=config.prefetch if encoded(config) else 0, shard=shard,
        source=None if feed is None else feed.source("train"),
    )  # fmt: skip
    return TrainImages(
        batches, judge_of(config, config.eval_images, shard), tuple(dataset.classes), dataset.statistics.mean,
        dataset.statistics.std, dataset_fingerprint(dataset.labels, indices), feed,
    )  # fmt: skip
