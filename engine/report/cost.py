"""What a network costs on the machine that it was measured on: a row of facts, and its lines. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...profiles.errors import in_words
from ..spaces.costs import NetworkSize


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a time that was taken several times, in milliseconds."""

    median: float
    min: float
    max: float
    runs: int


@dataclass(frozen=True, slots=True)
class MeasuredCost:
    """Counted and measured costs of one network.

    Attributes:
        network: its size.
        params, macs: as `counting.count`, without the auxiliary head.
        latency_ms: of inference (running statistics, no autograd) with `inference_batch` images.
        inference_peak_bytes: live tensors at the peak of such a pass: weights, statistics, images, maps.
        batch, micro_batches: images of a training step in one process, and the equal parts that it is cut into.
        training_peak_bytes: live tensors at the peak of a step, forward, backward and update: weights, statistics,
            gradients, momentum, an average where there is one, images, maps; with the auxiliary head if `auxiliary`.
        device, threads: the processor's or GPU's name, and torch's threads.
        dtype: of products.
        layout: memory format of maps.
        clock, peak_source: what the times and the peaks were taken with.
    """

    network: NetworkSize
    params: int
    macs: int
    latency_ms: Spread
    inference_batch: int
    inference_peak_bytes: int
    batch: int
    micro_batches: int
    training_peak_bytes: int
    auxiliary: bool
    device: str
    threads: int
    dtype: str
    layout: str
    clock: str
    peak_source: str

    def to_json_dict(self) -> dict[str, Any]:
        """All of it as plain values, with `flops`, two per multiply-accumulate."""
        return {**asdict(self), "flops": 2 * self.macs}

    @classmethod
    def from_json_dict(cls, values: Mapping[str, Any]) -> MeasuredCost:
        """What `to_json_dict` made. Raises KeyError, TypeError for anything else."""
        own = {name: values[name] for name in cls.__slots__}
        return cls(**own | {"network": NetworkSize(**own["network"]), "latency_ms": Spread(**own["latency_ms"])})

    def lines(self) -> list[str]:
        """For people, with everything counted named."""
        time, images = self.latency_ms, "one image" if self.inference_batch == 1 else f"{self.inference_batch} images"
        parts = f" in {self.micro_batches} parts" if self.micro_batches > 1 else ""
        head = ", auxiliary head" if self.auxiliary else ""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return [
            f"measured on {self.device}, {threads}, {self.dtype}, {self.layout}",
            f"  latency {time.median:.2f} ms ({time.min:.2f} to {time.max:.2f}; inference, {images}, median of "
            f"{time.runs} warm runs, {self.clock})",
            f"  peak of inference {in_words(self.inference_peak_bytes)} ({images}: weights, statistics, maps)",
            f"  peak of a training step {in_words(self.training_peak_bytes)} (batch {self.batch}{parts}: weights, "
            f"statistics, gradients, momentum, images, maps{head})",
        ]
