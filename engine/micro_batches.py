"""The fewest micro-batches with which a training's step fits a memory budget."""

from __future__ import annotations

import copy

import torch

from ..profiles.budget import parse
from ..profiles.errors import BudgetError, in_words
from ..profiles.meter import measure
from ..profiles.room import ReadRoom
from .student import Student


def fit_budget(student: Student, image: int, classes: int, read_room: ReadRoom) -> str | None:
    """Set `student.micro_batches` so that a step fits `config.budget`; what was found in a line, None without a budget.

    Two real passes of a copy, of two and of four images, tell what a step takes beside the maps and what each image
    adds; a step's peak is linear in the images (ours: the search's planner predicts cells that hold only their
    nodes, which this network's are not).

    Raises:
        BudgetError: the budget is above what is free, or two images do not fit it.
    """
    config = student.config
    if not config.budget:
        return None
    room = read_room()
    limit_bytes = parse(config.budget).bytes_on(total_bytes=room.total_bytes, free_bytes=room.free_bytes)
    two, four = (_pass_bytes(student, images, image, classes) for images in (2, 4))
    each_bytes = max(1, (four - two) // 2)
    rest_bytes = student.fixed_bytes() + max(0, two - 2 * each_bytes)
    for parts in range(1, config.batch // 2 + 1):
        images = config.batch // parts
        if config.batch % parts or parts < config.accumulate:
            continue
        needed_bytes = rest_bytes + images * each_bytes
        if needed_bytes <= limit_bytes:
            student.micro_batches = parts
            return f"{parts} micro-batches of {images} images: {in_words(needed_bytes)} of {in_words(limit_bytes)}"
    raise BudgetError(
        "not even micro-batches of two images fit", asked_bytes=limit_bytes, free_bytes=room.free_bytes,
        needed_bytes=rest_bytes + 2 * each_bytes, next=f"--budget {(rest_bytes + 2 * each_bytes) // (1 << 20) + 1}MiB",
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
