"""A derived network while it is trained: the step, and everything that a checkpoint must hold.

Shape suffixes: B batch of this process, D paths that drop-path may drop.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, FollowedError, NumericsError
from ..images.batches import generator
from ..network.network import Network, drop_path_factors
from ..run.dist import Ranks, images_of
from ..settings.train_config import TrainConfig, drop_path_rate, learning_rate


@dataclass(frozen=True, slots=True)
class StepResult:
    """Of one step: mean cross-entropy without the auxiliary head's, accuracy, norm of the gradient before clipping."""

    loss: float
    accuracy: float
    grad_norm: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the passes of a step found.

    Attributes:
        loss: mean cross-entropy of all processes' images, [].
        hits: of this process's images those classified right, int64 [].
        running: where BatchNorm's running statistics go.
    """

    loss: Tensor
    hits: Tensor
    running: Running


class Student:
    """A network, its optimizer and its average.

    Every micro-batch of a step, of whatever process, is normalised by its own statistics, and the running statistics
    of BatchNorm move once in a step, by the mean of all micro-batches' (ours: so neither a budget nor the number of
    processes changes how far back they look).

    Args:
        config: of the training.
        classes: of the classifier.
        device: where it is trained.
        ranks: the processes that train it together, each on its share of every batch.

    Attributes:
        network: what is trained.
        average: what is judged where `config.ema` is above 0, else None.
        micro_batches: parts that this process's share of a batch is cut into.

    Raises:
        ConfigError: for what the device cannot do, and for a batch that cannot be shared out.
    """

    def __init__(self, config: TrainConfig, classes: int, device: torch.device, ranks: Ranks | None = None) -> None:
        _check_device(config, device)
        self.ranks = Ranks() if ranks is None else ranks
        self.config, self.device = config, device
        self.images = images_of(config.batch, self.ranks.world)
        self.micro_batches = parts_of(self.images, -(-config.accumulate // self.ranks.world))
        network = Network(
            config.cells, channels=config.channels, layers=config.layers, classes=classes, stem=config.stem,
            auxiliary=config.auxiliary > 0, seed=config.seed,
        )  # fmt: skip
        self.memory = torch.channels_last if config.layout == "channels_last" else torch.contiguous_format
        self.network = network.to(device).to(memory_format=self.memory)
        self.average = copy.deepcopy(self.network).requires_grad_(False) if config.ema else None
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )  # fmt: skip
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        run: Callable[..., Any] = self.network.training_logits
        self._logits = torch.compile(run) if config.compile else run

    def autocast(self) -> AbstractContextManager[Any]:
        wanted = getattr(torch, self.config.precision)
        return torch.autocast(self.device.type, dtype=wanted, enabled=wanted is not torch.float32)

    def judged_logits(self, images_BCHW: Tensor) -> Tensor:
        """Logits of the average where there is one, else of the network, with running statistics."""
        network = self.network if self.average is None else self.average
        network.eval()
        with self.autocast():
            return network(images_BCHW.contiguous(memory_format=self.memory))

    def step(self, images_BCHW: Tensor, labels_B: Tensor, step: int, epoch: int) -> StepResult:
        """One update: `update` with what `passes` finds, see there."""
        return self.update(self.passes(images_BCHW, labels_B, step, epoch), step, epoch)

    def passes(self, images_BCHW: Tensor, labels_B: Tensor, step: int, epoch: int) -> Outcome:
        """Forward and backward: leaves the gradients of all processes' images, and nothing else that a step changes.

        Args:
            images_BCHW, labels_B: this process's share of the batch.
            step: counts from 0 and decides what drop-path drops.
            epoch: counts from 0.

        Raises:
            PeerMemoryError: another process's memory ran out; as after this one's own, the passes can be made again.
        """
        with self.ranks.together("a step"):
            self.network.train()
            self.optimizer.zero_grad(set_to_none=True)
            factors_DB = self._factors(step, epoch)
            running = Running(self.network)
            loss, hits = torch.zeros((), device=self.device), torch.zeros((), dtype=torch.int64, device=self.device)
            parts = zip(
                images_BCHW.chunk(self.micro_batches), labels_B.chunk(self.micro_batches),
                [None] * self.micro_batches if factors_DB is None else factors_DB.chunk(self.micro_batches, 1),
                strict=True,
            )  # fmt: skip
            try:
                for images, labels, factors in parts:
                    part_loss, logits = self._backward(images, labels, factors, len(labels_B))
                    loss += part_loss
                    hits += (logits.argmax(-1) == labels).sum()
                    running.count()
            finally:
                running.close()
            gradients = self.ranks.exchange(
                [*(weight.grad for weight in self.network.parameters()), *running.means, loss]
            )
        with self.ranks.committed("a step"):
            gradients.average()
        return Outcome(loss, hits, running)

    def update(self, outcome: Outcome, step: int, epoch: int) -> StepResult:
        """The optimizer's step with the gradients of `passes`.

        Raises:
            NumericsError: the loss or the gradient is NaN or infinite; nothing has been updated then.
            FollowedError: the same in a process that is not the first.
        """
        self._scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip or float("inf"))
        mean = outcome.loss.item()
        # An infinite gradient under a loss scale is the scaler's to deal with.
        if not math.isfinite(mean) or not (self._scaler.is_enabled() or torch.isfinite(norm)):
            error = NumericsError(
                f"loss {mean} or its gradient's norm {norm.item()} is not finite", got=f"step {step + 1}",
                allowed="finite numbers", next="a lower --lr, or --precision float32",
            )  # fmt: skip
            raise error if self.ranks.first else FollowedError(str(error), of=NumericsError)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, epoch)
        with self.ranks.committed("a step"):
            self._scaler.step(self.optimizer)
        self._scaler.update()
        outcome.running.take()
        self._follow()
        # Nothing reads them between steps, when the network is judged.
        self.optimizer.zero_grad(set_to_none=True)
        (hits,) = self.ranks.total("the accuracy", (outcome.hits.item(),))
        return StepResult(mean, hits / self.config.batch, norm.item())

    def _backward(
        self, images_BCHW: Tensor, labels_B: Tensor, factors_DB: Tensor | None, batch: int
    ) -> tuple[Tensor, Tensor]:
        """Add a part's gradients; its share of the mean cross-entropy, and its logits."""
        config, share = self.config, len(labels_B) / batch
        with self.autocast():
            logits, auxiliary = self._logits(images_BCHW.contiguous(memory_format=self.memory), factors_DB)
            loss = F.cross_entropy(logits, labels_B, label_smoothing=config.label_smoothing)
            total = loss
            if auxiliary is not None:
                total = loss + config.auxiliary * F.cross_entropy(
                    auxiliary, labels_B, label_smoothing=config.label_smoothing
                )
        self._scaler.scale(total * share).backward()
        return loss.detach() * share, logits.detach()

    def _factors(self, step: int, epoch: int) -> Tensor | None:
        """Drawn for the whole batch, so that an image's do not depend on the number of processes; this one's part."""
        rate = drop_path_rate(self.config, epoch)
        if not rate:
            return None
        random = generator(self.config.seed, "drop-path", step)
        whole = drop_path_factors(self.network.num_paths, self.config.batch, rate, random)
        return whole[:, self.ranks.shard().rows(self.config.batch)].to(self.device)

    @torch.no_grad()
    def _follow(self) -> None:
        if self.average is None:
            return
        for mine, theirs in zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - self.config.ema)
            else:
                mine.copy_(theirs)

    def fixed_bytes(self) -> int:
        """What lives between steps: weights, statistics, momentum and the average."""
        weights = sum(weight.nbytes for weight in self.network.parameters())
        state = sum(tensor.nbytes for tensor in self.network.state_dict().values())
        return state * (1 if self.average is None else 2) + weights * (self.config.momentum > 0)

    def running_bytes(self) -> int:
        """Of the two copies of BatchNorm's running statistics that a step keeps."""
        return 2 * sum(buffer.nbytes for buffer in self.network.buffers())

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(), "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict(),
            "micro_batches": self.micro_batches * self.ranks.world,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        self.micro_batches = parts_of(self.images, -(-state["micro_batches"] // self.ranks.world))


class Running:
    """BatchNorm's running statistics in a step: each micro-batch moves them from where they were before it."""

    def __init__(self, network: nn.Module) -> None:
        self._live = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._counters = [buffer for buffer in network.buffers() if not buffer.is_floating_point()]
        self._before = [buffer.clone() for buffer in self._live]
        self._counts = [buffer.clone() for buffer in self._counters]
        self._parts = 0
        self.means: list[Tensor] = []

    @torch.no_grad()
    def count(self) -> None:
        """A micro-batch has moved them."""
        self._parts += 1
        if self._parts == 1:
            self.means = [buffer.clone() for buffer in self._live]
        elif self._live:
            torch._foreach_add_(self.means, self._live)
        self._put_back()

    @torch.no_grad()
    def close(self) -> None:
        """The last micro-batch has been; `means` are those of this process."""
        self._put_back()
        for mean in self.means:
            mean.div_(self._parts)

    def _put_back(self) -> None:
        for live, before in zip((*self._live, *self._counters), (*self._before, *self._counts), strict=True):
            live.copy_(before)

    @torch.no_grad()
    def take(self) -> None:
        """Let the network have the means, as of one batch more."""
        for live, mean in zip(self._live, self.means, strict=True):
            live.copy_(mean)
        for counter in self._counters:
            counter.add_(1)


def parts_of(images: int, wanted: int) -> int:
    """The fewest equal parts of two images or more that are as many as wanted, or else the most that there are."""
    possible = [parts for parts in range(1, images // 2 + 1) if images % parts == 0]
    return next((parts for parts in possible if parts >= wanted), possible[-1])


def _check_device(config: TrainConfig, device: torch.device) -> None:
    if device.type == "cuda":
        return
    for wrong, key, instead in (
        (config.precision == "float16", "precision float16", "--precision bfloat16"),
        (config.compile, "compile", "--set compile=false"),
    ):
        if wrong:
            raise ConfigError(f"{key} needs CUDA", got=f"device {device.type}", allowed="a CUDA device", next=instead)
