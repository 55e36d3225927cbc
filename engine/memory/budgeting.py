"""A search's plan, its guard and its probe, made from its configuration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...profiles.budget import parse
from ...profiles.errors import ProfileError
from ...profiles.room import ReadRoom
from ..learning.rung import fewest_images
from ..learning.steps import Learner
from ..run.dist import Ranks, share_of
from ..settings.config import SearchConfig, from_json
from ..supernet.implementation import Impl
from . import probe
from .guard import Descent, Forecast, Guard
from .measured import keep, key_of, known_ratio

# From a process's part of a search to the configuration that fits its device, and what is told of it.
MakePlan = Callable[[SearchConfig], tuple[SearchConfig, Mapping[str, Any]]]


def shared_plan(config: SearchConfig, ranks: Ranks, make: MakePlan) -> tuple[SearchConfig, Mapping[str, Any]]:
    """The configuration that fits, and what is told of the plan: the first process makes both for all.

    The plan is of one process's share of a batch; the configuration is of the whole search. Where another process has
    less memory, its guard takes all of them down.

    Raises:
        ProfileError, BudgetError, ConfigError: as `make`, in the first process; the others follow.
    """

    def planned() -> list[str]:
        made, facts = make(share_of(config, ranks.world))
        whole = dataclasses.replace(
            made, batch=made.batch * ranks.world, accumulate=made.accumulate * ranks.world
        )  # fmt: skip
        return [whole.to_json(), json.dumps(facts)]

    text, facts = ranks.share("the plan", planned)
    return from_json(text), json.loads(facts)


def guard_of(
    config: SearchConfig, learner: Learner, device: torch.device, *, classes: int, impl: Impl, read_room: ReadRoom,
    context_bytes: int, resumed: bool, say: Callable[[Descent], None],
) -> Guard:  # fmt: skip
    """The guard of a search; where there is a budget, its forecast is corrected by what this device showed before.

    Args:
        config, learner, device: of the search.
        classes: of its data set.
        impl: what computes its cells.
        read_room, context_bytes, resumed, say: see `Guard`.

    Raises:
        BudgetError: as `Guard`.
    """
    graph = learner.graphs is not None
    forecast = Forecast(config, classes=classes, impl=impl, cuda=device.type == "cuda", graph=graph)
    if config.budget:
        forecast.correction = max(1.0, known_ratio(key_of(config, device, impl)))
    return Guard(
        learner, forecast, parse(config.budget) if config.budget else None, read_room,
        fewest=fewest_images(config, learner.net.skeleton.stride), say=say, context_bytes=context_bytes,
        resumed=resumed,
    )  # fmt: skip


def probed(
    config: SearchConfig, guard: Guard, device: torch.device, *, classes: int, impl: Impl
) -> tuple[probe.ProbeResult, str | None]:
    """One real step of the dearest sample against its prediction; corrects the guard's forecast and is kept.

    Returns:
        What came out, and why it could not be kept, if so.
    """
    forecast, rung = guard.forecast, guard.learner.rung
    predicted_bytes, peak = forecast.plain(rung)
    result = probe.probe(
        forecast.config_on(rung), device, classes=classes,
        predicted_bytes=predicted_bytes - forecast.rest_bytes(rung), split_bytes=peak.split_bytes,
    )  # fmt: skip
    forecast.correction = max(forecast.correction, result.ratio)
    if result.measured_bytes is None:
        return result, None
    try:
        keep(key_of(config, device, impl), predicted_bytes=result.predicted_bytes, measured_bytes=result.measured_bytes)
    except ProfileError as error:
        return result, str(error)
    return result, None
