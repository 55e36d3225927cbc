"""Who feeds a search with images: the decoder, its threads, and whether steps wait for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..settings.config import SearchConfig
from ..settings.inputs import jitter_of
from ..settings.train_config import TrainConfig
from . import dali
from .batches import Shard
from .crops import Strengths
from .decoding import Decoder, TurboDecoder
from .images import Encoded
from .sources import Meter, ResizedCrops
from .workers import Workers, processors

# Steps may wait this share of their time for images before the input pipeline is called the bottleneck (ours).
BOTTLENECK = 0.2
# Steps that are watched before anything is said of it; the first, which fills the pipeline, is left out (ours).
WATCHED = 20


class Feed:
    """A decoder and its threads, shared by the halves of a search.

    Args:
        dataset: where the images are.
        config: keys loader, workers, prefetch, jitter, seed, batch and dtype.
        shard: the part of each batch that is decoded here.
        device: of the search.
        beside: processes of this machine that share its cores.

    Attributes:
        name: `torch` or `dali`.
        note: what feeds the search, for people.
        meter: of all that is made.

    Raises:
        DataError: loader dali, and it cannot run.
    """

    def __init__(
        self, dataset: Encoded, config: SearchConfig | TrainConfig, shard: Shard, device: torch.device, *,
        beside: int = 1,
    ) -> None:  # fmt: skip
        self.dataset, self.config, self.meter = dataset, config, Meter()
        self.workers = Workers(config.workers or max(1, processors() // beside))
        reason = dali.why_not(device) if config.loader == "auto" else None
        self._decoder: Decoder
        if config.loader == "torch" or reason is not None:
            self._decoder = TurboDecoder(config.image, self.workers)
        else:
            self._decoder = dali.DaliDecoder(
                config.image, batch=config.batch // shard.world, workers=self.workers, device=device
            )
        self.name = self._decoder.name
        told = {"torch": "libjpeg-turbo and PyTorch on the CPU", "dali": f"DALI on {device.type}"}[self.name]
        why = f"; {reason}" if reason is not None else ""
        self.note = f"images: {told}, {self.workers.count} threads, {config.prefetch} batches ahead{why}"

    def source(self, stream: str) -> ResizedCrops:
        """The images of one half."""
        jitter: Strengths | None = jitter_of(self.config)
        return ResizedCrops(
            self.dataset, seed=self.config.seed, stream=stream, jitter=jitter,
            dtype=getattr(torch, self.config.dtype), decoder=self._decoder, workers=self.workers, meter=self.meter,
        )  # fmt: skip

    def close(self) -> None:
        self._decoder.close()
        self.workers.close()


class Watch:
    """Says once how fast images come, and whether steps wait for them.

    Args:
        feeder: the name of what makes them.
        meter: of what it makes, None where nothing is measured.
        steps: of an epoch; less than `WATCHED` are enough then.
    """

    def __init__(self, feeder: str, meter: Meter | None, steps: int) -> None:
        self.feeder, self.meter, self._left = feeder, meter, max(1, min(WATCHED, steps - 1)) + 1
        self._step_s = self._wait_s = 0.0
        self._first = True

    def step(self, step_s: float, wait_s: float) -> str | None:
        """Count a step of `step_s`, of which it waited `wait_s`; the line to show, once, where there is one."""
        self._left -= 1
        if not self._first:
            self._step_s, self._wait_s = self._step_s + step_s, self._wait_s + wait_s
        self._first = False
        if self._left or not self._step_s:
            return None
        share = self._wait_s / self._step_s
        rate = "" if self.meter is None else f" makes {self.meter.images_per_s:.0f} images/s while it works,"
        if share > BOTTLENECK:
            return (
                f"the input pipeline is the bottleneck: loader {self.feeder}{rate} steps wait {share:.0%} of their "
                "time for it; more cores, --set workers=N or --set prefetch=N, a faster disk, or smaller files"
            )
        return f"input pipeline: loader {self.feeder}{rate} steps wait {share:.0%} of their time" if rate else None


def changed_feeder(rows: Iterable[Mapping[str, Any]], feeder: str) -> str | None:
    """A warning where the rows of a run say that another loader fed it before: pixels differ by a level or two."""
    before = [row["loader"] for row in rows if row.get("loader")]
    if not before or before[-1] == feeder:
        return None
    return (
        f"warning: loader {feeder} feeds this search now, {before[-1]} did before; it goes on, but not bit for bit "
        f"(--set loader={before[-1]} where it can be had)"
    )
