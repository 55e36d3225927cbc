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
from .graph import StepGraphs
from .guidance import Guidance
from .operation import Drop, network_clock
from .optimizer import SampledSGD
from .sampler import CellPaths, Paths, Sample, Sampler
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


@dataclass(frozen=True, slots=True)
class Feed:
    """What changes from one step to the next, on the device.

    Attributes:
        images_BCHW, labels_B: the batch.
        clock: (seed, number of the draw) int64 [2].
        tau: temperature [] in alpha's dtype.
        lr: learning rate [] in the weights' dtype.
        drop_rate: of Dropblock-Identity, fp32 [].
    """

    images_BCHW: Tensor
    labels_B: Tensor
    clock: Tensor
    tau: Tensor
    lr: Tensor
    drop_rate: Tensor

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.images_BCHW, self.labels_B, self.clock, self.tau, self.lr, self.drop_rate

    def shapes(self) -> tuple[torch.Size, ...]:
        return tuple(tensor.shape for tensor in self._tensors())

    def clone(self) -> Feed:
        return Feed(*(tensor.clone() for tensor in self._tensors()))

    def copy_(self, other: Feed) -> None:
        for ours, theirs in zip(self._tensors(), other._tensors(), strict=True):
            ours.copy_(theirs, non_blocking=True)


class Learner:
    """Owns both optimizers and takes steps.

    `weight_step` and `alpha_step` read their results once, at their end; `weight_update` and `alpha_update` are
    the same steps without that and wait for the device nowhere, so that a CUDA graph can hold them.

    Args:
        config: the search's configuration.
        net: weights are its parameters.
        sampler: alpha is its parameter.
        all_gradients: also compute what the step throws away, weight gradients in an alpha step and alpha
            gradients in a W step, as the published DARTS code does (for baselines).
        graphs: whether to run steps as CUDA graphs; needs `impl="triton"`.
    """

    def __init__(
        self, config: SearchConfig, net: SuperNet, sampler: Sampler, *, all_gradients: bool = False,
        graphs: bool = False,
    ) -> None:  # fmt: skip
        self.config, self.net, self.sampler = config, net, sampler
        self.graphs: StepGraphs[Feed] | None = StepGraphs(net.classifier.weight.device) if graphs else None
        self.all_gradients = all_gradients
        self.guidance = Guidance(config, net, sampler)
        self._alphas = list(sampler.parameters())
        # Running mean of the losses that the score estimator compares with; NaN before the first.
        self.score_baseline = self._alphas[0].new_full((), math.nan, requires_grad=False)
        self.weight_optimizer = SampledSGD(
            list(net.parameters()), momentum=config.momentum, weight_decay=config.weight_decay
        )
        # Fused: its step count lives on the device, and `found_inf` voids a step there.
        self.alpha_optimizer = torch.optim.Adam(
            self._alphas, lr=config.alpha_lr, betas=(0.5, 0.999), weight_decay=config.alpha_weight_decay, fused=True
        )

    def feed(self, images_BCHW: Tensor, labels_B: Tensor, moment: Moment, draw: int) -> Feed:
        """The step's inputs as tensors."""
        alpha, weight = self._alphas[0], self.net.classifier.weight
        return Feed(
            images_BCHW,
            labels_B,
            self.sampler.clock(draw),
            torch.tensor(moment.tau, dtype=alpha.dtype, device=alpha.device),
            torch.tensor(moment.lr, dtype=weight.dtype, device=weight.device),
            torch.tensor(moment.drop_rate, dtype=torch.float32, device=weight.device),
        )

    def _drops_now(self, moment: Moment) -> bool:
        return self.config.dbi != "off" and moment.drop_rate > 0

    def _drops(self, feed: Feed, dropped: bool) -> list[Drop | None]:
        """Dropblock-Identity of each network."""
        kind = self.config.dbi
        networks = 1 if self.config.mode == "union" else self.config.k
        if not dropped or kind == "off":
            return [None] * networks
        return [Drop(kind, feed.drop_rate, network_clock(feed.clock, number)) for number in range(networks)]

    def weight_step(self, images_BCHW: Tensor, labels_B: Tensor, moment: Moment) -> WeightResult:
        """One SGD step on the weights of the sampled operations.

        Raises:
            NumericsError: for a loss or a gradient that is not finite; the weights are then as before.
        """
        feed = self.feed(images_BCHW, labels_B, moment, 2 * moment.step + 1)
        guided = moment.guided and self.guidance.due(moment.step)
        dropped = self._drops_now(moment)

        def update(feed: Feed) -> Tensor:
            return self.weight_update(feed, guided=guided, dropped=dropped)

        kind = ("weight", guided, self.guidance.trusted, dropped)
        values = update(feed) if self.graphs is None else self.graphs.run(kind, feed, update)
        loss, accuracy, grad_norm, distill, teacher_loss = values.tolist()
        _require_finite({"loss": loss, "gradient norm": grad_norm}, "W", moment)
        if not math.isnan(teacher_loss):
            self.guidance.judge(teacher_loss, loss)
        return WeightResult(loss, None if math.isnan(distill) else distill, accuracy, grad_norm)

    def weight_update(self, feed: Feed, *, guided: bool, dropped: bool) -> Tensor:
        """`weight_step` without reading: (loss, accuracy, gradient norm, distillation, teacher's loss), fp64 [5].

        The last two are NaN where no teacher acted. A step whose loss or gradient is not finite changes nothing.

        Args:
            feed: the batch, and what the schedules say.
            guided: whether the teacher is run; it acts where `guidance` trusts it.
            dropped: whether Dropblock-Identity acts.
        """
        sample = self.sampler.draw(feed.clock, feed.tau, grad=self.all_gradients)
        self.weight_optimizer.zero_grad()
        take = self._together if self.config.execution == "co-resident" else self._one_by_one
        outcome = take(feed, sample, self._drops(feed, dropped), guided)
        norm = self.weight_optimizer.clip(self.config.clip)
        ok = torch.isfinite(outcome.loss) & torch.isfinite(norm)
        self.weight_optimizer.step(feed.lr, self.net.touched(sample.indices), ok)
        # The step on alpha that follows has no use for them.
        self.weight_optimizer.zero_grad()
        self.guidance.follow()
        hits = torch.stack([(z.argmax(-1) == feed.labels_B).double().mean() for z in outcome.logits]).mean()
        nothing = norm.new_full((), math.nan)
        values = (outcome.loss, hits, norm, outcome.distill, outcome.teacher_loss)
        return torch.stack([(nothing if value is None else value).double() for value in values])

    def _one_by_one(self, feed: Feed, sample: Sample, drops: list[Drop | None], guided: bool) -> _Outcome:
        """Forward and backward of one network after the other: the memory of one."""
        images, labels = feed.images_BCHW, feed.labels_B
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
            losses.append(F.cross_entropy(z.detach(), labels))
            logits.append(z.detach())
            if distill is not None:
                distills.append(distill.detach())
            del z, loss, distill
        return _Outcome.of(losses, distills, logits, teacher, labels)

    def _together(self, feed: Feed, sample: Sample, drops: list[Drop | None], guided: bool) -> _Outcome:
        """All forward passes, then one backward: K times the memory, and the ensemble teacher for free."""
        images, labels = feed.images_BCHW, feed.labels_B
        outputs = [self.net(images, paths, drop) for paths, drop in zip(sample.networks, drops, strict=True)]
        teacher = self.guidance.logits(images, outputs) if guided else None
        trusted = guided and self.guidance.trusted
        pairs = [self._loss(z, labels, teacher if trusted else None) for z in outputs]
        torch.stack([loss for loss, _ in pairs]).mean().backward()
        losses = [F.cross_entropy(z.detach(), labels) for z in outputs]
        distills = [distill.detach() for _, distill in pairs if distill is not None]
        return _Outcome.of(losses, distills, [z.detach() for z in outputs], teacher, labels)

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
        feed = self.feed(images_BCHW, labels_B, moment, 2 * moment.step)
        dropped = self._drops_now(moment)

        def update(feed: Feed) -> Tensor:
            return self.alpha_update(feed, dropped=dropped)

        values = update(feed) if self.graphs is None else self.graphs.run(("alpha", dropped), feed, update)
        loss, grad_norm, finite = values.tolist()
        _require_finite({"loss": loss, "alpha's gradient norm": grad_norm}, "alpha", moment)
        _require_finite({"alpha": 0.0 if finite else math.nan}, "alpha", moment)
        return AlphaResult(loss, grad_norm)

    def alpha_update(self, feed: Feed, *, dropped: bool) -> Tensor:
        """`alpha_step` without reading: (loss, gradient norm, 1 where the new alpha is finite), fp64 [3]."""
        sample = self.sampler.draw(feed.clock, feed.tau, grad=True)
        self.alpha_optimizer.zero_grad(set_to_none=True)
        estimate = self._score_gradient if self.config.gate == "score" else self._gate_gradient
        loss = estimate(feed, sample, self._drops(feed, dropped))
        grads = [alpha.grad for alpha in self._alphas if alpha.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) if grads else loss.new_zeros(())
        ok = torch.isfinite(loss) & torch.isfinite(norm)
        self.alpha_optimizer.found_inf = (~ok).float()  # type: ignore[attr-defined]
        before = {kind: alpha.detach().clone() for kind, alpha in self.sampler.alpha.items()}
        self.alpha_optimizer.step()
        if self.config.gate == "restricted":
            self.sampler.renormalise_(before, sample)
        finite = torch.stack([torch.isfinite(alpha).all() for alpha in self._alphas]).all()
        with torch.no_grad():
            for kind, alpha in self.sampler.alpha.items():
                torch.where(ok & finite, alpha, before[kind], out=alpha)
        return torch.stack([loss.double(), norm.double(), finite.double()])

    def _gate_gradient(self, feed: Feed, sample: Sample, drops: Sequence[Drop | None]) -> Tensor:
        """Backward through the gates; the networks share alpha's graph, so their gradients are gathered first."""
        leaves = _GateLeaves(sample)
        losses, together = [], []
        with self._weights_frozen():
            for number, drop in enumerate(drops):
                loss = F.cross_entropy(self.net(feed.images_BCHW, leaves.networks[number], drop), feed.labels_B)
                losses.append(loss.detach())
                if self.config.execution == "co-resident":
                    together.append(loss)
                else:
                    (loss / len(drops)).backward()
                del loss
            if together:
                torch.stack(together).mean().backward()
        leaves.backward()
        return torch.stack(losses).mean()

    def _score_gradient(self, feed: Feed, sample: Sample, drops: Sequence[Drop | None]) -> Tensor:
        """(mean loss - baseline) * grad log P: forward passes only."""
        assert sample.log_probability is not None
        with torch.no_grad():
            pairs = zip(sample.networks, drops, strict=True)
            losses = [F.cross_entropy(self.net(feed.images_BCHW, paths, drop), feed.labels_B) for paths, drop in pairs]
            loss = torch.stack(losses).mean()
            baseline = torch.where(torch.isnan(self.score_baseline), loss, self.score_baseline)
            self.score_baseline.copy_(BASELINE_DECAY * baseline + (1 - BASELINE_DECAY) * loss)
        ((loss - baseline) * sample.log_probability).backward()
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
            "score_baseline": None if torch.isnan(self.score_baseline) else self.score_baseline.item(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.sampler.load_state_dict(state["sampler"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.guidance.load_state_dict(state["guidance"])
        baseline = state["score_baseline"]
        self.score_baseline.fill_(math.nan if baseline is None else baseline)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Of the forward and backward passes of a W step: means [] over its networks, None without a teacher."""

    loss: Tensor
    distill: Tensor | None
    teacher_loss: Tensor | None
    logits: list[Tensor]

    @classmethod
    def of(
        cls, losses: list[Tensor], distills: list[Tensor], logits: list[Tensor], teacher: Tensor | None, labels: Tensor
    ) -> _Outcome:
        return cls(
            torch.stack(losses).mean(),
            torch.stack(distills).mean() if distills else None,
            None if teacher is None else F.cross_entropy(teacher, labels),
            logits,
        )


class _GateLeaves:
    """The gates of a sample cut from alpha's graph, so that each network's backward ends at them."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.networks: list[Paths] = []
        for paths in sample.networks:
            leaves = {}
            for kind, cell in paths.items():
                gates = cell.gates_EO.detach().requires_grad_(cell.gates_EO.requires_grad)
                leaves[kind] = CellPaths(cell.indices_EK, gates, cell.shadows)
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


def _require_finite(values: dict[str, float], which: str, moment: Moment) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise NumericsError(
                f"{name} of the {which} step {moment.step + 1} is not finite",
                got=value,
                allowed="finite numbers",
                next="search anew with a smaller --set lr=...; the last good checkpoint is kept",
            )
