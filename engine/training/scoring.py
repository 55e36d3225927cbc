"""How well a derived network classifies: top-1, top-5 and each class.

Shape suffixes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.batches import ALONE, Batch, Batches, Shard
from ..images.data import load
from ..run.dist import Ranks
from ..settings.config import SearchConfig
from ..settings.train_config import TrainConfig

# Images of a batch that is judged; results do not depend on it, since BatchNorm uses its running statistics.
JUDGED_BATCH = 256
# The fewest that a memory budget makes of them (ours): a judged image takes a fraction of a trained one.
LEAST_JUDGED = 16


@dataclass(frozen=True, slots=True)
class Scores:
    """What a network got right.

    Attributes:
        loss: mean cross-entropy.
        top1, top5: shares of the images; top5 is None for fewer than six classes.
        hits, images: of each class.
    """

    loss: float
    top1: float
    top5: float | None
    hits: tuple[int, ...]
    images: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Judge:
    """The test images of a data set.

    Attributes:
        batches: as they are, one image each, in order; those of this process.
        limit: images that are used, 0 for all.
        classes: class names.
    """

    batches: Batches
    limit: int
    classes: tuple[str, ...]

    def images(self, most: int = JUDGED_BATCH) -> Iterable[Batch]:
        """Batches of `most` images, or of some more than that where it is very few."""
        # `sequential` leaves out a last batch of one image.
        count = min(self.limit or len(self.batches.indices), len(self.batches.indices))
        size = next(size for size in range(max(most, LEAST_JUDGED), 2, -1) if count % size != 1)
        return self.batches.sequential(self.limit, size)


def judge_of(config: SearchConfig | TrainConfig, limit: int = 0, shard: Shard = ALONE) -> Judge:
    """The test part of a configuration's data set, of which a process takes its turns. Raises DataError as `load`."""
    dataset = load(config, "test")
    indices = torch.arange(len(dataset.labels))
    whole = max(1, min(len(indices), JUDGED_BATCH) // shard.world) * shard.world
    batches = Batches(dataset, indices, batch=whole, seed=config.seed, stream="test", augment=False, shard=shard)
    return Judge(batches, limit, dataset.classes)


@torch.no_grad()
def score(
    logits_of: Callable[[Tensor], Tensor], judge: Judge, device: torch.device, stop: Callable[[], bool],
    ranks: Ranks | None = None, *, most: int = JUDGED_BATCH,
) -> Scores | None:  # fmt: skip
    """Judge a network on the test images of all processes; None where one's `stop` said so before a batch.

    Args:
        logits_of: logits [B, C] of images [B, 3, S, S] on the device.
        judge: the images.
        device: where the network is.
        stop: asked before each batch.
        ranks: the processes that judge together.
        most: images of a batch, see `Judge.images`.
    """
    ranks, classes = Ranks() if ranks is None else ranks, len(judge.classes)
    loss_sum, top5, stopped = 0.0, 0, False
    hits, images = torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64)
    with ranks.together("the evaluation"):
        for batch in judge.images(most):
            stopped = stop()
            if stopped:
                break
            logits_BC = logits_of(batch.images_BCHW.to(device)).float().cpu()
            labels_B = batch.labels_B
            loss_sum += F.cross_entropy(logits_BC, labels_B, reduction="sum").item()
            hits += torch.bincount(labels_B[logits_BC.argmax(-1) == labels_B], minlength=classes)
            images += torch.bincount(labels_B, minlength=classes)
            top5 += int((logits_BC.topk(min(5, classes)).indices == labels_B[:, None]).any(-1).sum())
    mine = (loss_sum, float(stopped), *map(float, (top5, *hits.tolist(), *images.tolist())))
    loss_sum, stops, *counts = ranks.total("the evaluation", mine)
    if stops:
        return None
    all_top5, *by_class = map(int, counts)
    all_hits, all_images = by_class[:classes], by_class[classes:]
    total = sum(all_images)
    return Scores(
        loss_sum / total, sum(all_hits) / total, all_top5 / total if classes > 5 else None,
        tuple(all_hits), tuple(all_images),
    )  # fmt: skip
