"""One step on the weights and one on alpha: the only place where anything is learned.

First-order alternation as in DARTS: alpha on a batch of one half of the images, then the weights on a batch
of the other, each with a fresh draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import SearchConfig
from .errors import NumericsError
from .guidance import Guidance
from .operation import Drop
from .sampler import Paths, Sample, Sampler
from .supernet import SuperNet

# Of the running mean that the score estimator compares losses with (ours).
BASELINE_DECAY = 0.9


@dataclass(frozen=True, slots=True)
class Moment:
    """What the schedules say for one step.

    Attributes:
        step: number of the step, 0 for the first.
        tau: temperature.
        lr: SGD's learning rate.
        drop_rate: of Dropblock-Identity.
        guided: whether the teacher may act.
    """

    step: int
    tau: float
    lr: float
    drop_rate: float
    guided: bool


@dataclass(frozen=True, slots=True)
class WeightResult:
    """Means over the networks of a W step; `distill` is None where no teacher acted."""

    loss: float
    distill: float | None
    accuracy: float
    grad_norm: float


@dataclass(frozen=True, slots=True)
class AlphaResult:
    """Mean cross-entropy of an alpha step and the norm of alpha's gradient."""

    loss: float
    grad_norm: float


class Learner:
    """Owns both optimizers and takes steps.

    Args:
        config: the search's configuration.
        net: weights are its parameters.
        sampler: alpha is its parameter.
        all_gradients: also compute what the step throws away, weight gradients in an alpha step and alpha
            gradients in a W step, as the published DARTS code does (for baselines).
    """

    def __init__(self, config: SearchConfig, net: SuperNet, sampler: Sampler, *, all_gradients: bool = False) -> None:
        self.config, self.net, self.sampler = config, net, sampler
        self.all_gradients = all_gradients
        self.guidance = Guidance(config, net, sampler)
        self.score_baseline: float | None = None
        self._weights = list(net.parameters())
        self._alphas = list(sampler.parameters())
        self.weight_optimizer = torch.optim.SGD(
            self._weights, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, foreach=True
        )
        self.alpha_optimizer = torch.optim.Adam(
            self._alphas,
            lr=config.alpha_lr,
            betas=(0.5, 0.999),
            weight_decay=config.alpha_weight_decay,
            foreach=True,
        )

    def _drop(self, draw: int, number: int, rate: float) -> Drop | None:
        if self.config.dbi == "off" or rate <= 0:
            return None
        seed = (self.config.seed * 1_000_003 + draw * 64 + number) % (1 << 62)
        return Drop(self.config.dbi, rate, seed)

    def weight_step(self, images_BCHW: Tensor, labels_B: Tensor, moment: Moment) -> WeightResult:
        """One SGD step on the weights of the sampled operations.

        Raises:
            NumericsError: for a loss or a gradient that is not finite, before the weights change.
        """
        draw = 2 * moment.step + 1
        sample = self.sampler.draw(draw, moment.tau, grad=self.all_gradients)
        self.weight_optimizer.zero_grad(set_to_none=True)
        drops = [self._drop(draw, number, moment.drop_rate) for number in range(len(sample.networks))]
        guided = moment.guided and self.guidance.due(moment.step)
        if self.config.execution == "co-resident":
            losses, distill, logits = self._together(images_BCHW, labels_B, sample, drops, guided)
        else:
            losses, distill, logits = self._one_by_one(images_BCHW, labels_B, sample, drops, guided)
        grad_norm = torch.nn.utils.clip_grad_norm_(self._weights, self.config.clip, foreach=True)
        loss = _mean(losses)
        _require_finite({"loss": loss, "gradient norm": grad_norm.item()}, "W", moment)
        for group in self.weight_optimizer.param_groups:
            group["lr"] = moment.lr
        self.weight_optimizer.step()
        self.guidance.follow()
        hits = [(z.argmax(-1) == labels_B).float().mean().item() for z in logits]
        return WeightResult(loss, distill, _mean(hits), grad_norm.item())

    def _one_by_one(
        self, images: Tensor, labels: Tensor, sample: Sample, drops: list[Drop | None], guided: bool
    ) -> tuple[list[float], float | None, list[Tensor]]:
        """Forward and backward of one network after the other: the memory of one."""
        teacher: Tensor | None = None
        if guided:
            students: list[Tensor] = []
            if self.guidance.kind == "ensemble":
                with torch.no_grad():
                    pairs = zip(sample.networks, drops, strict=True)
                    students = [self.net(images, paths, drop) for paths, drop in pairs]
            teacher = self.guidance.logits(images, students)
        weight = 1 / len(sample.networks)
        losses, distills, logits = [], [], []
        trusted = guided and self.guidance.trusted
        for paths, drop in zip(sample.networks, drops, strict=True):
            z = self.net(images, paths, drop)
            loss, distill = self._loss(z, labels, teacher if trusted else None)
            (loss * weight).backward()
            losses.append(F.cross_entropy(z.detach(), labels).item())
            logits.append(z.detach())
            if distill is not None:
                distills.append(distill.item())
            del z, loss, distill
        if teacher is not None:
            self.guidance.judge(teacher, labels, _mean(losses))
        return losses, _mean(distills) if distills else None, logits

    def _together(
        self, images: Tensor, labels: Tensor, sample: Sample, drops: list[Drop | None], guided: bool
    ) -> tuple[list[float], float | None, list[Tensor]]:
        """All forward passes, then one backward: K times the memory, and the ensemble teacher for free."""
        outputs = [self.net(images, paths, drop) for paths, drop in zip(sample.networks, drops, strict=True)]
        teacher = self.guidance.logits(images, outputs) if guided else None
        trusted = guided and self.guidance.trusted
        pairs = [self._loss(z, labels, teacher if trusted else None) for z in outputs]
        torch.stack([loss for loss, _ in pairs]).mean().backward()
        losses = [F.cross_entropy(z.detach(), labels).item() for z in outputs]
        if teacher is not None:
            self.guidance.judge(teacher, labels, _mean(losses))
        distills = [distill.item() for _, distill in pairs if distill is not None]
        return losses, _mean(distills) if distills else None, [z.detach() for z in outputs]

    def _loss(self, logits: Tensor, labels: Tensor, teacher: Tensor | None) -> tuple[Tensor, Tensor | None]:
        loss = F.cross_entropy(logits, labels)
        if teacher is None:
            return loss, None
        distill = self.guidance.distillation(teacher, logits)
        share = self.config.teacher_weight
        return (1 - share) * loss + share * distill, distill

    def alpha_step(self, images_BCHW: Tensor, labels_B: Tensor, moment: Moment) -> AlphaResult:
        """One Adam step on alpha: the mean cross-entropy of the sampled networks, weights frozen.

        Raises:
            NumericsError: for a loss, a gradient or an alpha that is not finite; alpha is then as before.
        """
        draw = 2 * moment.step
        sample = self.sampler.draw(draw, moment.tau, grad=True)
        self.alpha_optimizer.zero_grad(set_to_none=True)
        drops = [self._drop(draw, number, moment.drop_rate) for number in range(len(sample.networks))]
        if self.config.gate == "score":
            loss = self._score_gradient(images_BCHW, labels_B, sample, drops)
        else:
            loss = self._gate_gradient(images_BCHW, labels_B, sample, drops)
        grads = [alpha.grad for alpha in self._alphas if alpha.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads).item() if grads else 0.0
        _require_finite({"loss": loss, "alpha's gradient norm": norm}, "alpha", moment)
        before = {kind: alpha.detach().clone() for kind, alpha in self.sampler.alpha.items()}
        self.alpha_optimizer.step()
        if self.config.gate == "restricted":
            self.sampler.renormalise_(before, sample)
        if not all(bool(torch.isfinite(alpha).all()) for alpha in self._alphas):
            with torch.no_grad():
                for kind, alpha in self.sampler.alpha.items():
                    alpha.copy_(before[kind])
            _require_finite({"alpha": float("nan")}, "alpha", moment)
        return AlphaResult(loss, norm)

    def _gate_gradient(self, images: Tensor, labels: Tensor, sample: Sample, drops: Sequence[Drop | None]) -> float:
        """Backward through the gates; the networks share alpha's graph, so their gradients are gathered first."""
        leaves = _GateLeaves(sample)
        losses = []
        with self._weights_frozen():
            together = []
            for number, drop in enumerate(drops):
                loss = F.cross_entropy(self.net(images, leaves.networks[number], drop), labels)
                losses.append(loss.item())
                if self.config.execution == "co-resident":
                    together.append(loss)
                else:
                    (loss / len(drops)).backward()
                del loss
            if together:
                torch.stack(together).mean().backward()
        leaves.backward()
        return _mean(losses)

    def _score_gradient(self, images: Tensor, labels: Tensor, sample: Sample, drops: Sequence[Drop | None]) -> float:
        """(mean loss - baseline) * grad log P: forward passes only."""
        assert sample.log_probability is not None
        with torch.no_grad():
            pairs = zip(sample.networks, drops, strict=True)
            losses = [F.cross_entropy(self.net(images, paths, drop), labels).item() for paths, drop in pairs]
        loss = _mean(losses)
        baseline = loss if self.score_baseline is None else self.score_baseline
        ((loss - baseline) * sample.log_probability).backward()
        self.score_baseline = BASELINE_DECAY * baseline + (1 - BASELINE_DECAY) * loss
        return loss

    @contextmanager
    def _weights_frozen(self) -> Iterator[None]:
        if self.all_gradients:
            yield
            return
        with self.net.frozen():
            yield

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as plain containers and tensors."""
        return {
            "net": self.net.state_dict(),
            "sampler": self.sampler.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "guidance": self.guidance.state_dict(),
            "score_baseline": self.score_baseline,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.sampler.load_state_dict(state["sampler"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.guidance.load_state_dict(state["guidance"])
        self.score_baseline = state["score_baseline"]


class _GateLeaves:
    """The gates of a sample cut from alpha's graph, so that each network's backward ends at them."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.networks: list[Paths] = []
        for paths in sample.networks:
            leaves = {}
            for kind, cell in paths.items():
                gates = cell.gates_EO.detach().requires_grad_(cell.gates_EO.requires_grad)
                leaves[kind] = type(cell)(cell.operations, gates, cell.shadows)
            self.networks.append(leaves)

    def backward(self) -> None:
        """Send the gathered gradients of all networks' gates on to alpha, in one pass."""
        gates, grads = [], []
        for paths, leaves in zip(self.sample.networks, self.networks, strict=True):
            for kind, cell in paths.items():
                grad = leaves[kind].gates_EO.grad
                if grad is not None:
                    gates.append(cell.gates_EO)
                    grads.append(grad)
        if gates:
            torch.autograd.backward(gates, grads)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _require_finite(values: dict[str, float], which: str, moment: Moment) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise NumericsError(
                f"{name} of the {which} step {moment.step + 1} is not finite",
                got=value,
                allowed="finite numbers",
                next="search anew with a smaller --set lr=...; the last good checkpoint is kept",
            )
