"""The two parts of a search's images (halves, where nothing else is asked), as the batches of one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import torch
from torch import Tensor

from ..images.batches import ALONE, Batches, Shard, dataset_fingerprint, split_halves
from ..images.data import load
from ..images.feeding import Feed, Watch
from ..images.images import Encoded, FolderImages
from ..images.splits import keep_lists
from ..run.dist import Ranks, digest
from ..settings.config import SearchConfig
from ..settings.inputs import encoded, resized
from ..supernet.implementation import device_of


@dataclass(frozen=True, slots=True)
class Halves:
    """What a search learns from.

    Attributes:
        w, alpha: batches for the steps on the weights and on alpha.
        classes: number of classes.
        fingerprint: what a resumed search must find again.
        feed: decodes them, None where that is Pillow's or numpy's work.
    """

    w: Batches
    alpha: Batches
    classes: int
    fingerprint: str
    feed: Feed | None = None

    @property
    def feeder(self) -> str:
        """The loader that makes batches, as key `loader` names it."""
        return "memory" if self.feed is None else self.feed.name

    @property
    def waited_s(self) -> float:
        """How long steps have waited for batches."""
        return self.w.waited_s + self.alpha.waited_s

    def watch(self) -> Watch:
        """Of the steps to come."""
        return Watch(self.feeder, None if self.feed is None else self.feed.meter, self.w.per_epoch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.w.close()
        self.alpha.close()
        if self.feed is not None:
            self.feed.close()


def open_halves(
    config: SearchConfig, shard: Shard = ALONE, run: Path | None = None, *, beside: int = 1
) -> Halves:  # fmt: skip
    """The halves that `config` names, cut as its seed says.

    Args:
        config: of the search.
        shard: the part of each batch that this process takes.
        run: the run folder, which keeps the halves of a folder of images as file lists, see `keep_lists`.
        beside: processes of this machine that share its cores.

    Raises:
        DataError: see `data.load` and `Batches`.
        CheckpointError: the run folder's lists are of other images.
    """
    dataset = load(config)
    w_indices, alpha_indices = split_halves(
        dataset.labels, seed=config.seed, limit=config.limit, w_fraction=config.w_fraction,
        alpha_fraction=config.alpha_fraction,
    )  # fmt: skip
    if run is not None and isinstance(dataset, FolderImages) and not shard.rank:
        keep_lists(run, dataset.files, {"w": w_indices, "alpha": alpha_indices})
    ahead = config.prefetch if encoded(config) else 0
    feed: Feed | None = None
    if resized(config):
        feed = Feed(cast("Encoded", dataset), config, shard, device_of(config), beside=beside)

    def batches(indices: Tensor, stream: str) -> Batches:
        return Batches(
            dataset, indices, batch=config.batch, seed=config.seed, stream=stream, augment=config.augment,
            cutout=config.cutout, dtype=getattr(torch, config.dtype), prefetch=ahead, shard=shard,
            source=feed.source(stream) if feed is not None else None,
        )  # fmt: skip

    fingerprint = dataset_fingerprint(dataset.labels, w_indices, alpha_indices)
    return Halves(batches(w_indices, "w"), batches(alpha_indices, "alpha"), len(dataset.classes), fingerprint, feed)


def shared_halves(config: SearchConfig, ranks: Ranks, run: Path | None = None) -> Halves:
    """The halves as this process takes its part of them; where they are to be downloaded, one per machine does.

    Raises:
        DataError, CheckpointError: see `open_halves`.
        FollowedError: another process cannot open them.
        RanksError: the processes see different images.
    """
    found: Halves | None = None
    beside = ranks.place.local_world
    early = config.download and ranks.place.local_rank == 0
    if config.download:
        with ranks.together("the download"):
            found = open_halves(config, ranks.shard(), run, beside=beside) if early else None
    with ranks.together("the data") as meeting:
        if found is None:
            found = open_halves(config, ranks.shard(), run, beside=beside)
        meeting.equal = digest(found.fingerprint.encode())
    return found
