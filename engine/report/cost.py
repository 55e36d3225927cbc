"""What a network costs on the machine that it was measured on: a row of facts, and its lines. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any, get_args

from ...profiles.errors import in_words
from ..run.history import LARGEST
from ..spaces.costs import NetworkSize
from ..spaces.space import StemKind


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

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> MeasuredCost | None:
        """What a file tells that may be missing ({}), cut, old or edited; None unless all of it can be shown."""
        try:
            made = cls.from_json_dict(values)
        except (KeyError, TypeError):
            return None
        *whole, stem = astuple(made.network)
        whole += [
            made.params, made.macs, made.inference_batch, made.inference_peak_bytes, made.batch, made.micro_batches,
            made.training_peak_bytes, made.threads, made.latency_ms.runs,
        ]  # fmt: skip
        times = astuple(made.latency_ms)[:3]
        words = [made.device, made.dtype, made.layout, made.clock, made.peak_source]
        fits = (
            all(type(value) is int and 0 <= value < LARGEST for value in whole)
            and all(type(value) in (int, float) and 0 <= value < LARGEST for value in times)
            and all(isinstance(word, str) and word.isprintable() for word in words)
            and stem in get_args(StemKind)
            and isinstance(made.auxiliary, bool)
        )
        return made if fits else None

    @property
    def place(self) -> str:
        """What it was measured on and with: `AMD EPYC, 1 thread, float32, channels_last`."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.device}, {threads}, {self.dtype}, {self.layout}"

    def facts(self) -> list[tuple[str, str, str]]:
        """For people: what was measured, its value, and all that is counted in it."""
        time, images = self.latency_ms, "one image" if self.inference_batch == 1 else f"{self.inference_batch} images"
        parts = f" in {self.micro_batches} parts" if self.micro_batches > 1 else ""
        head = ", auxiliary head" if self.auxiliary else ""
        return [
            (
                "latency", f"{time.median:.2f} ms",
                f"{time.min:.2f} to {time.max:.2f}; inference, {images}, median of {time.runs} warm runs, {self.clock}",
            ),
            ("peak of inference", in_words(self.inference_peak_bytes), f"{images}: weights, statistics, maps"),
            (
                "peak of a training step", in_words(self.training_peak_bytes),
                f"batch {self.batch}{parts}: weights, statistics, gradients, momentum, images, maps{head}",
            ),
        ]  # fmt: skip

    def lines(self) -> list[str]:
        """`facts` for the terminal."""
        return [f"measured on {self.place}", *(f"  {name} {value} ({what})" for name, value, what in self.facts())]
