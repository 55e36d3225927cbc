"""How well a derived network classifies: top-1, top-5 and each class.

Shape suffixes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import Batch, Batches
from .config import SearchConfig
from .data import load
from .train_config import TrainConfig

# Images of a batch that is judged; results do not depend on it, since BatchNorm uses its running statistics.
JUDGED_BATCH = 256


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
        batches: as they are, one image each, in order.
        limit: images that are used, 0 for all.
        classes: class names.
    """

    batches: Batches
    limit: int
    classes: tuple[str, ...]

    def images(self) -> Iterable[Batch]:
        # `sequential` leaves out a last batch of one image.
        count = min(self.limit or len(self.batches.indices), len(self.batches.indices))
        size = next(size for size in range(JUDGED_BATCH, 2, -1) if count % size != 1)
        return self.batches.sequential(self.limit, size)


def judge_of(config: SearchConfig | TrainConfig, limit: int = 0) -> Judge:
    """The test part of a configuration's data set. Raises DataError as `data.load`."""
    dataset = load(config, "test")
    indices = torch.arange(len(dataset.labels))
    batches = Batches(
        dataset, indices, batch=min(len(indices), JUDGED_BATCH), seed=config.seed, stream="test", augment=False
    )
    return Judge(batches, limit, dataset.classes)


@torch.no_grad()
def score(
    logits_of: Callable[[Tensor], Tensor], judge: Judge, device: torch.device, stop: Callable[[], bool]
) -> Scores | None:
    """Judge a network on the test images; None where `stop` said so before a batch.

    Args:
        logits_of: logits [B, C] of images [B, 3, S, S] on the device.
        judge: the images.
        device: where the network is.
        stop: asked before each batch.
    """
    classes = len(judge.classes)
    loss_sum, top5 = 0.0, 0
    hits, images = torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64)
    for batch in judge.images():
        if stop():
            return None
        logits_BC = logits_of(batch.images_BCHW.to(device)).float().cpu()
        labels_B = batch.labels_B
        loss_sum += F.cross_entropy(logits_BC, labels_B, reduction="sum").item()
        hits += torch.bincount(labels_B[logits_BC.argmax(-1) == labels_B], minlength=classes)
        images += torch.bincount(labels_B, minlength=classes)
        top5 += int((logits_BC.topk(min(5, classes)).indices == labels_B[:, None]).any(-1).sum())
    total = int(images.sum())
    return Scores(
        loss_sum / total, int(hits.sum()) / total, top5 / total if classes > 5 else None,
        tuple(hits.tolist()), tuple(images.tolist()),
    )  # fmt: skip
