"""`msgdas eval`: a trained network on the test images, from the checkpoint of its run folder."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch

from ..errors import ConfigError
from ..supernet.implementation import device_of
from .scoring import judge_of, score
from .student import Student
from .trained import data_for, trained


def judge(
    run: Path, *, data: str | None = None, limit: int = 0, device: str | None = None, as_json: bool = False
) -> str:
    """What `msgdas eval` prints: top-1, top-5 and each class's accuracy of the newest good checkpoint.

    Args:
        run: a training's run folder.
        data: the data set whose test images are used; that of the training by default.
        limit: images that are used, 0 for all.
        device: auto, cpu or cuda; that of the training by default.
        as_json: whether to return JSON.

    Raises:
        RunFolderError, ConfigError: no run folder of a training; a data set with another number of classes; float16
            without a GPU.
        CheckpointError: no checkpoint, or none that is whole and of this genotype and configuration.
        DataError: as `data.load`.
    """
    config, found = trained(run)
    # Only training steps are compiled.
    wanted = dataclasses.replace(
        config, data=data or config.data, device=device or config.device, data_list="" if data else config.data_list,
        compile=False,
    )  # fmt: skip
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    classes, place = found.state["classes"], device_of(wanted)
    if wanted.precision == "float16" and place.type != "cuda":
        raise ConfigError(
            "a network that was trained in float16 is judged on a GPU", got=f"device {place.type}",
            allowed="a CUDA device", next=f"msgdas eval {run} --device cuda, where there is one",
        )  # fmt: skip
    instead = f"msgdas eval {run}" if data else f"put the data of the training back, or msgdas eval {run} --data STR"
    with data_for(classes, options=("--data",), next=instead):
        images = judge_of(wanted, limit)
    if len(images.classes) != classes:
        raise ConfigError(
            "the network was trained for another number of classes", got=f"{len(images.classes)} in {wanted.data}",
            allowed=f"{classes}", next=f"msgdas eval {run} --data {config.data}",
        )  # fmt: skip
    student = Student(wanted, classes, place)
    student.load_state_dict(found.state["student"])
    scores = score(student.judged_logits, images, place, lambda: False)
    assert scores is not None
    by_class = {
        name: hits / count if count else None
        for name, hits, count in zip(images.classes, scores.hits, scores.images, strict=True)
    }
    facts = {
        "run": str(run), "step": found.step, "data": wanted.data, "images": sum(scores.images), "loss": scores.loss,
        "top1": scores.top1, "top5": scores.top5, "classes": by_class,
    }  # fmt: skip
    if as_json:
        return json.dumps(facts, indent=2)
    width = max(map(len, by_class))
    top5 = "" if scores.top5 is None else f", top-5 {scores.top5:.2%}"
    lines = [
        f"{run} after step {found.step}, on {sum(scores.images)} test images of {wanted.data}",
        f"top-1 {scores.top1:.2%}{top5}, cross-entropy {scores.loss:.4f}",
    ]
    for (name, share), count in zip(by_class.items(), scores.images, strict=True):
        lines.append(f"  {name:<{width}}  {'no images' if share is None else f'{share:.2%} of {count}'}")
    return "\n".join(lines)
