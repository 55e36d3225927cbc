"""Forward and backward passes of the networks of one draw, over a batch that may be cut into micro-batches.

Gradients of micro-batches add up with the weights of their sizes, so that the loss is the mean over the whole batch;
statistics of BatchNorm and the normaliser of Dropblock-Identity are each micro-batch's own. One draw serves them all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..settings.config import SearchConfig
from ..supernet.operation import Drop, network_clock
from ..supernet.paths import Paths, Sample
from ..supernet.supernet import SuperNet
from .guidance import Guidance
from .loss_scale import LossScale


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

    def parts(self, count: int, first: int = 0) -> Iterator[Part]:
        """The batch as `count` micro-batches whose sizes differ by at most one image, views without a copy.

        `first` is the number of the first one among those of all processes.
        """
        size = len(self.labels_B)
        pairs = zip(self.images_BCHW.tensor_split(count), self.labels_B.tensor_split(count), strict=True)
        for number, (images, labels) in enumerate(pairs, start=first):
            yield Part(images, labels, len(labels) / size, number)


@dataclass(frozen=True, slots=True)
class Part:
    """A micro-batch.

    Attributes:
        images_BCHW, labels_B: its images.
        share: its part of this process's batch, above 0 and at most 1.
        number: among the micro-batches of all processes, 0 for the first.
    """

    images_BCHW: Tensor
    labels_B: Tensor
    share: float
    number: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the passes of a W step: means [] over its networks, None without a teacher."""

    loss: Tensor
    distill: Tensor | None
    teacher_loss: Tensor | None
    accuracy: Tensor

    @classmethod
    def of(cls, part: Part, losses: list[Tensor], distills: list[Tensor], logits: list[Tensor],
           teacher: Tensor | None) -> Outcome:  # fmt: skip
        hits = [(z.argmax(-1) == part.labels_B).double().mean() for z in logits]
        return cls(
            torch.stack(losses).mean(),
            torch.stack(distills).mean() if distills else None,
            None if teacher is None else F.cross_entropy(teacher, part.labels_B),
            torch.stack(hits).mean(),
        )

    def tensors(self) -> list[Tensor | None]:
        """Its four means."""
        return [self.loss, self.distill, self.teacher_loss, self.accuracy]

    def values(self, grad_norm: Tensor) -> Tensor:
        """(loss, accuracy, gradient norm, distillation, teacher's loss), fp64 [5]; NaN for what is None."""
        nothing = grad_norm.new_full((), math.nan)
        values = (self.loss, self.accuracy, grad_norm, self.distill, self.teacher_loss)
        return torch.stack([(nothing if value is None else value).double() for value in values])


def mean_over(parts: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Sum of share * value; the value itself of a single part."""
    (share, first), *rest = parts
    if not rest:
        return first
    return torch.stack([first * share, *(value * share for share, value in rest)]).sum(0)


def _outcome_over(parts: Sequence[tuple[float, Outcome]]) -> Outcome:
    def over(name: str) -> Tensor | None:
        values = [(share, getattr(outcome, name)) for share, outcome in parts]
        return None if values[0][1] is None else mean_over(values)

    loss, accuracy = over("loss"), over("accuracy")
    assert loss is not None and accuracy is not None
    return Outcome(loss, over("distill"), over("teacher_loss"), accuracy)


class Passes:
    """Runs the networks; changes nothing but gradients.

    Args:
        config: execution, dbi and teacher_weight are read.
        net, guidance: what runs, and its teacher.
        all_gradients: whether an alpha step also computes the weights' gradients.
        rank: number of this process, whose micro-batches follow those of the ones before it.

    Attributes:
        accumulate: micro-batches per step, of this process.
        scale: of the losses that gradients are taken of; whoever uses a gradient divides it by that.
        enter: told the name of each phase as it begins: `alpha forward`, `alpha backward`, `W forward`, `W backward`,
            and by the learner `optimizer`; "" where the last one ends.
    """

    def __init__(
        self, config: SearchConfig, net: SuperNet, guidance: Guidance, *, all_gradients: bool, rank: int = 0
    ) -> None:
        self.config, self.net, self.guidance, self.all_gradients = config, net, guidance, all_gradients
        self.rank = rank
        self.scale = LossScale(on=config.dtype == "float16", patience=config.scale_skips)
        self.accumulate = config.accumulate
        self.enter: Callable[[str], None] = _unheard

    def unheard(self) -> None:
        """Tell the phases to nobody."""
        self.enter = _unheard

    def weights(self, feed: Feed, sample: Sample, *, guided: bool, dropped: bool) -> Outcome:
        """Gradients of the weights, added to what the parameters have.

        Args:
            feed: the batch, and the clock of the masks.
            sample: one draw, for all micro-batches.
            guided: whether the teacher is run; it acts where `guidance` trusts it.
            dropped: whether Dropblock-Identity acts.
        """
        leaves = GateLeaves(sample) if self.all_gradients else None
        if leaves is not None:
            sample = dataclasses.replace(sample, networks=tuple(leaves.networks))
        take = self._together if self.config.execution == "co-resident" else self._one_by_one
        outcome = _outcome_over(
            [
                (part.share, take(part, sample, self._drops(feed, part, sample, dropped), guided))
                for part in self._parts(feed)
            ]
        )
        if leaves is not None:
            leaves.backward()
        return outcome

    def _parts(self, feed: Feed) -> Iterator[Part]:
        count = min(self.accumulate, len(feed.labels_B))
        return feed.parts(count, self.rank * count)

    def _drops(self, feed: Feed, part: Part, sample: Sample, dropped: bool) -> list[Drop | None]:
        """Dropblock-Identity of each network on a micro-batch."""
        kind = self.config.dbi
        numbers = range(len(sample.networks))
        if not dropped or kind == "off":
            return [None for _ in numbers]
        return [Drop(kind, feed.drop_rate, network_clock(feed.clock, number, part.number)) for number in numbers]

    def _one_by_one(self, part: Part, sample: Sample, drops: list[Drop | None], guided: bool) -> Outcome:
        """Forward and backward of one network after the other: the memory of one."""
        images, labels = part.images_BCHW, part.labels_B
        self.enter("W forward")
        teacher: Tensor | None = None
        if guided:
            students: list[Tensor] = []
            if self.guidance.kind == "ensemble":
                with torch.no_grad():
                    pairs = zip(sample.networks, drops, strict=True)
                    students = [self.net(images, paths, drop) for paths, drop in pairs]
            teacher = self.guidance.logits(images, students)
        weight = part.share / len(sample.networks)
        losses, distills, logits = [], [], []
        trusted = guided and self.guidance.trusted
        for paths, drop in zip(sample.networks, drops, strict=True):
            self.enter("W forward")
            z = self.net(images, paths, drop)
            loss, distill = self._loss(z, labels, teacher if trusted else None)
            self.enter("W backward")
            (loss * (weight * self.scale.scale)).backward()
            losses.append(F.cross_entropy(z.detach(), labels))
            logits.append(z.detach())
            if distill is not None:
                distills.append(distill.detach())
            del z, loss, distill
        return Outcome.of(part, losses, distills, logits, teacher)

    def _together(self, part: Part, sample: Sample, drops: list[Drop | None], guided: bool) -> Outcome:
        """All forward passes, then one backward: K times the memory, and the ensemble teacher for free."""
        images, labels = part.images_BCHW, part.labels_B
        self.enter("W forward")
        outputs = [self.net(images, paths, drop) for paths, drop in zip(sample.networks, drops, strict=True)]
        teacher = self.guidance.logits(images, outputs) if guided else None
        trusted = guided and self.guidance.trusted
        pairs = [self._loss(z, labels, teacher if trusted else None) for z in outputs]
        self.enter("W backward")
        self._weighted(torch.stack([loss for loss, _ in pairs]).mean(), part).backward()
        losses = [F.cross_entropy(z.detach(), labels) for z in outputs]
        distills = [distill.detach() for _, distill in pairs if distill is not None]
        return Outcome.of(part, losses, distills, [z.detach() for z in outputs], teacher)

    def _loss(self, logits: Tensor, labels: Tensor, teacher: Tensor | None) -> tuple[Tensor, Tensor | None]:
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        if teacher is None:
            return loss, None
        distill = self.guidance.distillation(teacher, logits)
        share = self.config.teacher_weight
        return (1 - share) * loss + share * distill, distill

    def gates(self, feed: Feed, sample: Sample, *, dropped: bool, weights: bool = False) -> tuple[Tensor, GateLeaves]:
        """Mean cross-entropy [] and the gradients of the gates; with `weights` the weights have theirs too.

        The networks share alpha's graph, so their gradients are gathered first; `GateLeaves.backward` takes them on.
        """
        leaves = GateLeaves(sample)
        means = []
        with nullcontext() if self.all_gradients or weights else self.net.frozen():
            for part in self._parts(feed):
                drops = self._drops(feed, part, sample, dropped)
                means.append((part.share, self._gate_part(part, leaves, drops)))
        return mean_over(means), leaves

    def _gate_part(self, part: Part, leaves: GateLeaves, drops: Sequence[Drop | None]) -> Tensor:
        losses, together = [], []
        for network, drop in zip(leaves.networks, drops, strict=True):
            self.enter("alpha forward")
            loss = F.cross_entropy(self.net(part.images_BCHW, network, drop), part.labels_B)
            losses.append(loss.detach())
            if self.config.execution == "co-resident":
                together.append(loss)
            else:
                self.enter("alpha backward")
                self._weighted(loss / len(drops), part).backward()
            del loss
        if together:
            self.enter("alpha backward")
            self._weighted(torch.stack(together).mean(), part).backward()
        return torch.stack(losses).mean()

    def _weighted(self, loss: Tensor, part: Part) -> Tensor:
        weight = part.share * self.scale.scale
        return loss if weight == 1 else loss * weight

    @torch.no_grad()
    def losses(self, feed: Feed, sample: Sample, *, dropped: bool) -> Tensor:
        """Cross-entropy of each network [K], forward passes only."""
        self.enter("alpha forward")
        means = []
        for part in self._parts(feed):
            pairs = zip(sample.networks, self._drops(feed, part, sample, dropped), strict=True)
            losses = [F.cross_entropy(self.net(part.images_BCHW, paths, drop), part.labels_B) for paths, drop in pairs]
            means.append((part.share, torch.stack(losses)))
        return mean_over(means)


def _unheard(phase: str) -> None:
    """Nobody records the phases."""


class GateLeaves:
    """The gates of a sample cut from alpha's graph, so that each network's backward ends at them."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.networks: list[Paths] = [
            {kind: cell.leaves() for kind, cell in paths.items()} for paths in sample.networks
        ]

    def gradients(self) -> list[Tensor]:
        """What was gathered so far, in a fixed order; not copies."""
        return [grad for _, grad in self._pairs()]

    def backward(self) -> None:
        """Send the gathered gradients of all networks' gates on to alpha and beta, in one pass."""
        gathered = self._pairs()
        if gathered:
            gates, grads = zip(*gathered, strict=True)
            torch.autograd.backward(gates, grads)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        found = []
        for paths, leaves in zip(self.sample.networks, self.networks, strict=True):
            for kind, cell in paths.items():
                pairs = ((cell.gates_EO, leaves[kind].gates_EO), (cell.edges_E, leaves[kind].edges_E))
                for ours, leaf in pairs:
                    if ours is not None and leaf is not None and leaf.grad is not None:
                        found.append((ours, leaf.grad))
        return found
