"""What a network costs on this machine: latency and peak of inference, peak of a training step, all measured."""

from __future__ import annotations

import json
import statistics

import torch

from ...profiles.errors import BudgetError
from ...profiles.meter import measure
from ...profiles.timing import clock_of, device_name, warm_runs_ms
from ..errors import ConfigError
from ..memory.guard import room_of
from ..report.cost import MeasuredCost, Spread
from ..settings.train_config import demo
from ..spaces.costs import NetworkSize
from ..spaces.counting import count
from ..spaces.genotype import Genotype
from ..supernet.implementation import device_of
from .micro_batches import need_of
from .student import Student

# Images of an inference pass, as published latencies have it.
INFERENCE_BATCH = 1
# Copies of the weights in a training step: themselves, their gradients and the momentum.
WEIGHT_COPIES = 3
LEAST_BATCH = 2


@torch.no_grad()
def cost_of(student: Student, classes: int, training_peak_bytes: int) -> MeasuredCost:
    """A student's network counted, and its inference measured in 18 passes of one image, or fewer where these take more
    than two seconds; the student stays as it is.

    Args:
        student: whose judged network is measured, in the precision of its configuration.
        classes: of its classifier.
        training_peak_bytes: the measured peak of its steps.
    """
    config, device, threads = student.config, student.device, torch.get_num_threads()
    size = NetworkSize(config.channels, config.layers, config.image, classes, config.stem)
    counted = count(
        config.cells, channels=size.channels, layers=size.layers, image=size.image, classes=classes, stem=size.stem
    )
    shape = (INFERENCE_BATCH, 3, config.image, config.image)
    _, peak = measure(lambda: student.judged_logits(torch.zeros(shape, device=device)), device)
    state_bytes = sum(tensor.nbytes for tensor in student.network.state_dict().values())
    images_BCHW = torch.randn(shape, device=device)
    clock_name, clock = clock_of(device, threads)
    taken_ms = warm_runs_ms(lambda: student.judged_logits(images_BCHW), clock)
    return MeasuredCost(
        network=size, params=counted.params, macs=counted.macs,
        latency_ms=Spread(statistics.median(taken_ms), min(taken_ms), max(taken_ms), len(taken_ms)),
        inference_batch=INFERENCE_BATCH, inference_peak_bytes=state_bytes + peak.bytes, batch=student.images,
        micro_batches=student.micro_batches, training_peak_bytes=training_peak_bytes,
        auxiliary=student.network.auxiliary is not None, device=device_name(device), threads=threads,
        dtype=config.precision, layout=config.layout, clock=clock_name, peak_source=peak.source,
    )  # fmt: skip


def measure_network(genotype: Genotype, size: NetworkSize, batch: int) -> MeasuredCost:
    """The same of a new network of that genotype and size, with the peak of its second training step (SGD with
    momentum, no auxiliary head, fp32), on a GPU where there is one.

    Args:
        genotype: of any space.
        size: of the network.
        batch: images of the step, 2 or more.

    Raises:
        ConfigError: for a size that the network cannot have, or a smaller batch.
        BudgetError: the step needs more memory than the device has free; nothing large was taken then.
    """
    if batch < LEAST_BATCH:
        raise ConfigError(
            "batch is too small for BatchNorm", got=batch, allowed=f"{LEAST_BATCH} or more", next="--batch 8"
        )
    config = demo(
        genotype=json.dumps(genotype.to_json_dict()), channels=size.channels, layers=size.layers, image=size.image,
        stem=size.stem, batch=batch,
    )  # fmt: skip
    device = device_of(config)
    counted = count(
        genotype, channels=size.channels, layers=size.layers, image=size.image, classes=size.classes, stem=size.stem
    )
    with room_of(device) as read_room:
        free_bytes = read_room().free_bytes
    _require(WEIGHT_COPIES * torch.float32.itemsize * counted.params, free_bytes, "fewer --channels or --layers")
    student = Student(config, size.classes, device)
    _require(need_of(student, size.image, size.classes).bytes(batch), free_bytes, "a smaller --batch, or --image")
    return cost_of(student, size.classes, _step_peak_bytes(student, size))


def _require(needed_bytes: int, free_bytes: int, instead: str) -> None:
    if needed_bytes > free_bytes:
        raise BudgetError(
            "a training step does not fit this machine", asked_bytes=needed_bytes, free_bytes=free_bytes,
            needed_bytes=None, next=instead,
        )  # fmt: skip


def _step_peak_bytes(student: Student, size: NetworkSize) -> int:
    """Peak of a step of random images; the first one, which makes the momentum, is not measured."""

    def step() -> None:
        images = torch.randn(student.images, 3, size.image, size.image, device=student.device)
        labels = torch.arange(student.images, device=student.device) % size.classes
        student.step(images, labels, 0, 0)

    step()
    return measure(step, student.device)[1].bytes + student.fixed_bytes()
