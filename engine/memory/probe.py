"""One real step of the dearest sample in a process of its own, held against its prediction before a search begins.

A process of its own, since memory that runs out there costs the search nothing, and since its peak is nobody else's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...profiles.errors import in_words
from ...profiles.meter import allocated_peak
from ...profiles.predictor import Recorder
from ...profiles.trace import CATEGORIES, TRANSIENT, Run
from ..learning.assembly import build_learner
from ..learning.steps import Learner, Moment
from ..settings.config import SearchConfig, from_json
from ..spaces.space import space_named
from .prediction import TOLERANCES, dearest

# Far above any Gumbel noise: between the alphas of the ranks of sub-graphs, and between chosen operations and others.
ALPHA_STEP = 1000.0
TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What was predicted and what was measured, as probe.json has it.

    Attributes:
        predicted_bytes, measured_bytes: of the allocator at its peak; measured is None where the probe failed.
        predicted_split_bytes, measured_split_bytes: by category, of requested bytes.
        tolerance: share of the measured peak by which the prediction may miss it.
        source: what measured.
        reason: why nothing was measured, else "".
    """

    predicted_bytes: int
    predicted_split_bytes: Mapping[str, int]
    measured_bytes: int | None
    measured_split_bytes: Mapping[str, int]
    tolerance: float
    source: str
    reason: str

    @property
    def ratio(self) -> float:
        """Measured over predicted; 1 where nothing was measured."""
        return 1.0 if self.measured_bytes is None else self.measured_bytes / self.predicted_bytes

    @property
    def missed(self) -> bool:
        """Whether the prediction is off by more than the tolerance, to either side."""
        return self.measured_bytes is not None and abs(self.predicted_bytes / self.measured_bytes - 1) > self.tolerance

    def line(self) -> str:
        """One line for people."""
        if self.measured_bytes is None:
            return f"the probe measured nothing: {self.reason}"
        return (
            f"dearest step: predicted {in_words(self.predicted_bytes)}, measured {in_words(self.measured_bytes)} "
            f"({self.source}), {'over' if self.missed else 'within'} the tolerance of {self.tolerance:.1%}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio, "missed": self.missed}


def probe(
    config: SearchConfig, device: torch.device, *, classes: int, predicted_bytes: int, split_bytes: Mapping[str, int]
) -> ProbeResult:
    """Measure the dearest step of a configuration in a new process.

    Args:
        config: its batch, K, policy and micro-batches are what is measured.
        device: where.
        classes: of the data set.
        predicted_bytes, split_bytes: what the step was predicted to take.
    """
    order = json.dumps({"config": config.to_json(), "device": str(device), "classes": classes})
    found: dict[str, Any] = {}
    try:
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name], input=order, capture_output=True, text=True, timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
        reason = "" if done.returncode == 0 else _last_line(done.stderr) or f"exit code {done.returncode}"
        found = json.loads(done.stdout) if not reason else {}
    except subprocess.TimeoutExpired:
        reason = f"took more than {TIMEOUT_S} s"
    except (OSError, ValueError) as error:
        reason = str(error)
    return ProbeResult(
        predicted_bytes, dict(split_bytes), found.get("bytes"), found.get("split_bytes", {}),
        TOLERANCES[device.type], found.get("source", ""), reason,
    )  # fmt: skip


def measure_dearest(config: SearchConfig, device: torch.device, classes: int) -> dict[str, Any]:
    """Peak of a W step, an alpha step and a W step of the dearest sample: `bytes`, `split_bytes`, `source`."""
    learner = dearest_learner(config, device, classes)
    images = torch.randn(config.batch, 3, config.image, config.image, dtype=getattr(torch, config.dtype))
    memory = torch.contiguous_format if config.layout == "nchw" else torch.channels_last
    images = images.to(device).contiguous(memory_format=memory)
    labels = torch.zeros(config.batch, dtype=torch.int64, device=device)
    moment = Moment(0, config.tau_max, 0.0, config.dbi_rate, guided=True)

    def steps() -> None:
        for phase in (learner.weight_step, learner.alpha_step, learner.weight_step):
            phase(images, labels, moment)

    state_bytes = learner.state_bytes() + images.nbytes + labels.nbytes
    peak_bytes, source = allocated_peak(steps, device, state_bytes)
    learner.drop_gradients()
    with Recorder() as recorder:
        weights = [*learner.net.parameters(), *learner.net.buffers(), *learner.sampler.parameters()]
        recorder.adopt("parameters", weights)
        recorder.adopt("optimizer", learner.optimizer_tensors())
        recorder.adopt("images", [images, labels])
        with recorder.section("weight"):
            learner.weight_step(images, labels, moment)
            recorder.adopt("gradients", [p.grad for p in weights if p.grad is not None])
        with recorder.section("alpha"):
            learner.alpha_step(images, labels, moment)
        trace = recorder.trace()
    recorded = trace.peak([Run("state"), Run("weight"), Run("alpha"), Run("weight")])
    split = {name: recorded.split_bytes[name] for name in CATEGORIES}
    if device.type == "cpu":
        # What kernels take and give back inside is seen by the allocator alone.
        split[TRANSIENT] += peak_bytes - recorded.bytes
    return {"bytes": peak_bytes, "split_bytes": split, "source": source}


def dearest_learner(config: SearchConfig, device: torch.device, classes: int) -> Learner:
    """A learner whose every draw is the K dearest operations of each edge, with all of its optimizers' state."""
    learner, _, _ = build_learner(config, device, classes)
    ranks = _by_rank(config)
    with torch.no_grad():
        for rank, paths in enumerate(ranks):
            for kind, rows in paths.items():
                for edge, operation in enumerate(rows):
                    # In a union all chosen ones share the gates.
                    height = 1 if config.mode == "union" else config.k - rank
                    learner.sampler.alpha[kind][edge, operation] = ALPHA_STEP * height
    learner.weight_optimizer.buffers = [torch.zeros_like(p) for p in learner.net.parameters()]
    if learner.guidance.kind != "none":
        learner.guidance.judge(0.0, 1.0)
    return learner


def _by_rank(config: SearchConfig) -> list[dict[str, list[int]]]:
    """The operation of each edge by cell type, for each of the K ranks, the dearest first."""
    choice = dearest(space_named(config.space), config)
    if config.mode == "union":
        ranks = range(len(next(iter(choice[0].values()))[0]))
        return [{kind: [row[rank] for row in rows] for kind, rows in choice[0].items()} for rank in ranks]
    return [{kind: [row[0] for row in rows] for kind, rows in paths.items()} for paths in choice]


def _last_line(text: str) -> str:
    return next((line.strip()[:200] for line in reversed(text.splitlines()) if line.strip()), "")


def main() -> None:
    """The new process: an order on standard input, a measurement on standard output."""
    order = json.load(sys.stdin)
    config = from_json(order["config"])
    torch.set_num_threads(config.threads or torch.get_num_threads())
    with redirect_stdout(sys.stderr):
        found = measure_dearest(config, torch.device(order["device"]), order["classes"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
