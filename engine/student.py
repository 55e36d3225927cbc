"""A derived network while it is trained: the step, and everything that a checkpoint must hold.

Shape suffixes: B batch, D paths that drop-path may drop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import generator
from .errors import ConfigError, NumericsError
from .network import Network, drop_path_factors
from .train_config import TrainConfig, drop_path_rate, learning_rate


@dataclass(frozen=True, slots=True)
class StepResult:
    """Of one step: mean cross-entropy without the auxiliary head's, accuracy, norm of the gradient before clipping."""

    loss: float
    accuracy: float
    grad_norm: float


class Student:
    """A network, its optimizer and its average.

    Args:
        config: of the training.
        classes: of the classifier.
        device: where it is trained.

    Attributes:
        network: what is trained.
        average: what is judged where `config.ema` is above 0, else None.
        micro_batches: parts that a step's batch is cut into.

    Raises:
        ConfigError: for what the device cannot do.
    """

    def __init__(self, config: TrainConfig, classes: int, device: torch.device) -> None:
        _check_device(config, device)
        self.config, self.device, self.micro_batches = config, device, config.accumulate
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
        """One update. `step` counts from 0 and decides what drop-path drops.

        Raises:
            NumericsError: the loss or the gradient is NaN or infinite; nothing has been updated then.
        """
        config, batch = self.config, len(labels_B)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        factors_DB = self._factors(batch, step, epoch)
        loss_sum, hits = torch.zeros((), device=self.device), torch.zeros((), dtype=torch.int64, device=self.device)
        parts = zip(
            images_BCHW.chunk(self.micro_batches), labels_B.chunk(self.micro_batches),
            [None] * self.micro_batches if factors_DB is None else factors_DB.chunk(self.micro_batches, 1),
            strict=True,
        )  # fmt: skip
        for images, labels, factors in parts:
            loss, logits = self._backward(images, labels, factors, batch)
            loss_sum += loss
            hits += (logits.argmax(-1) == labels).sum()
        self._scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.clip or float("inf"))
        mean = loss_sum.item()
        # An infinite gradient under a loss scale is the scaler's to deal with.
        if not torch.isfinite(loss_sum) or not (self._scaler.is_enabled() or torch.isfinite(norm)):
            raise NumericsError(
                f"loss {mean} or its gradient's norm {norm.item()} is not finite", got=f"step {step + 1}",
                allowed="finite numbers", next="a lower --lr, or --precision float32",
            )  # fmt: skip
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, epoch)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self._follow()
        return StepResult(mean, hits.item() / batch, norm.item())

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

    def _factors(self, batch: int, step: int, epoch: int) -> Tensor | None:
        rate = drop_path_rate(self.config, epoch)
        if not rate:
            return None
        random = generator(self.config.seed, "drop-path", step)
        return drop_path_factors(self.network.num_paths, batch, rate, random).to(self.device)

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

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(), "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict(),
            "micro_batches": self.micro_batches,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        self.micro_batches = state["micro_batches"]


def _check_device(config: TrainConfig, device: torch.device) -> None:
    if device.type == "cuda":
        return
    for wrong, key, instead in (
        (config.precision == "float16", "precision float16", "--precision bfloat16"),
        (config.compile, "compile", "--set compile=false"),
    ):
        if wrong:
            raise ConfigError(f"{key} needs CUDA", got=f"device {device.type}", allowed="a CUDA device", next=instead)
