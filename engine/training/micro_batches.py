"""The fewest micro-batches with which a training's step fits a memory budget."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from ...profiles.budget import parse
from ...profiles.errors import BudgetError, in_words
from ...profiles.meter import measure
from ...profiles.room import ReadRoom
from ..errors import FollowedError
from .student import Student, parts_of

# Of labels, int64.
LABEL_BYTES = 8


@dataclass(frozen=True, slots=True)
class Need:
    """What a training's step takes, as a line over the images of a micro-batch.

    Attributes:
        fixed_bytes: what lives all the time, a step's images among it.
        rest_bytes, each_bytes: of the passes: beside the maps, and of each image.
        update_bytes: of the gradients and of their copies while they are brought together and used.
    """

    fixed_bytes: int
    rest_bytes: int
    each_bytes: int
    update_bytes: int

    def bytes(self, images: int) -> int:
        return self.fixed_bytes + max(self.rest_bytes + images * self.each_bytes, self.update_bytes)


def fit_budget(
    student: Student, image: int, classes: int, read_room: ReadRoom, context_bytes: int = 0
) -> str | None:  # fmt: skip
    """Set `student.micro_batches` so that a step fits `config.budget`; what was found in a line, None without a budget.

    Each process holds the budget against its own device; all take the parts that the tightest needs.

    Args:
        student: what is trained.
        image: side of its images in pixels.
        classes: of its data set.
        read_room: tells the device's memory.
        context_bytes: what the driver took for this process, outside the allocator.

    Raises:
        BudgetError: the budget is above what is free, or two images do not fit it.
        FollowedError: the same in another process.
    """
    config, ranks = student.config, student.ranks
    if not config.budget:
        return None
    with ranks.together("the budget"):
        room = read_room()
        free_bytes = room.free_bytes + context_bytes
        asked_bytes = parse(config.budget).bytes_on(total_bytes=room.total_bytes, free_bytes=free_bytes)
        limit_bytes, need = asked_bytes - context_bytes, need_of(student, image, classes)
    parts, most = student.micro_batches, parts_of(student.images, student.images)
    while need.bytes(student.images // parts) > limit_bytes and parts < most:
        parts = parts_of(student.images, parts + 1)
    fits = need.bytes(student.images // parts) <= limit_bytes
    every = ranks.every("the budget", (parts if fits else most + 1,))
    if max(every) > most:
        if fits or (not ranks.first and every[0] > most):
            raise FollowedError("nothing fits another process's budget", of=BudgetError)
        needed_bytes = need.bytes(student.images // most) + context_bytes
        raise BudgetError(
            "not even micro-batches of two images fit" if student.images == 2 * most else "no micro-batch fits",
            asked_bytes=asked_bytes, free_bytes=free_bytes, needed_bytes=needed_bytes,
            next=f"--budget {needed_bytes // (1 << 20) + 1}MiB",
        )  # fmt: skip
    student.micro_batches = max(every)
    images = student.images // student.micro_batches
    return (
        f"{student.micro_batches * ranks.world} micro-batches of {images} images: "
        f"{in_words(need.bytes(images) + context_bytes)} of {in_words(asked_bytes)}"
    )


def need_of(student: Student, image: int, classes: int) -> Need:
    """Found by two real passes of a copy, of two and of four images: a step's peak is linear in the images.

    Ours: the search's planner predicts cells that hold only their nodes, which this network's are not.
    """
    two, four = (_pass_bytes(student, images, image, classes) for images in (2, 4))
    each_bytes = max(1, (four - two) // 2)
    weights_bytes = sum(weight.nbytes for weight in student.network.parameters())
    batch_bytes = student.images * (3 * image**2 * torch.float32.itemsize + LABEL_BYTES)
    # Gradients, the optimizer's copy of them, and the buffer in which they travel.
    copies = 2 if student.ranks.alone else 3
    return Need(
        student.fixed_bytes() + batch_bytes, max(0, two - 2 * each_bytes) + student.running_bytes(), each_bytes,
        copies * weights_bytes + student.running_bytes(),
    )  # fmt: skip


def _pass_bytes(student: Student, images: int, image: int, classes: int) -> int:
    """Peak of a forward and backward pass, gradients included, with nothing of the student changed."""
    network = copy.deepcopy(student.network).train()
    x = torch.zeros(images, 3, image, image, device=student.device).contiguous(memory_format=student.memory)
    labels = torch.arange(images, device=student.device) % classes

    def run() -> None:
        with student.autocast():
            logits, auxiliary = network.training_logits(x, torch.ones(network.num_paths, images, device=x.device))
            loss = torch.nn.functional.cross_entropy(logits, labels)
            if auxiliary is not None:
                loss = loss + torch.nn.functional.cross_entropy(auxiliary, labels)
        loss.backward()

    return measure(run, student.device)[1].bytes
