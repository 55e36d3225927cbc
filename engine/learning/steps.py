"""One step on the weights and one on alpha: the only place where anything is learned.

First-order alternation as in DARTS: alpha on a batch of one half of the images, then the weights on a batch
of the other, each with a fresh draw.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import NumericsError
from ..run.dist import Exchange, Ranks
from ..settings.config import SearchConfig
from ..supernet.paths import Sample
from ..supernet.supernet import SuperNet
from .expected_cost import ExpectedCost
from .graph import StepGraphs
from .guidance import Guidance
from .loss_scale import LossScale
from .optimizer import SampledSGD
from .passes import Feed, GateLeaves, Passes
from .rung import Rung
from .sampler import Sampler
from .score_baseline import ScoreBaseline
from .unrolled import unrolled_gradient


@dataclass(frozen=True, slots=True)
class Moment:
    """What the schedules say for one step.

    Attributes:
        step: number of the step, 0 for the first.
        tau: temperature.
        lr: SGD's learning rate.
        drop_rate: of Dropblock-Identity.
        guided: whether the teacher may act.
        cost_share: of the expected cost's term in alpha's loss.
    """

    step: int
    tau: float
    lr: float
    drop_rate: float
    guided: bool
    cost_share: float = 1.0


@dataclass(frozen=True, slots=True)
class WeightResult:
    """Means over the networks of a W step; `distill` is None without a teacher, `grad_norm` where it was skipped."""

    loss: float
    distill: float | None
    accuracy: float
    grad_norm: float | None


@dataclass(frozen=True, slots=True)
class AlphaResult:
    """Mean cross-entropy of an alpha step and the norm of alpha's gradient, None where it was skipped."""

    loss: float
    grad_norm: float | None


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
        graphs: whether to run steps as CUDA graphs; needs `impl="triton"`, and a process that is alone.
        ranks: the processes of the search; `config` is then this one's part of it (see `share_of`).
        cost: what the expected cost of the derived network adds to alpha's loss.

    Attributes:
        rung: micro-batches, activation policies and the largest K of the steps to come; `stand_on` changes it.
        scheduled_k: the K that the schedule asks for; `follow` changes it.
    """

    def __init__(
        self, config: SearchConfig, net: SuperNet, sampler: Sampler, *, all_gradients: bool = False,
        graphs: bool = False, ranks: Ranks | None = None, cost: ExpectedCost | None = None,
    ) -> None:  # fmt: skip
        self.config, self.net, self.sampler, self.cost = config, net, sampler, cost
        self.ranks = Ranks() if ranks is None else ranks
        # A step of the second order reads two batches, and a captured one has room for one.
        graphs = graphs and config.order == 1
        self.graphs: StepGraphs[Feed] | None = StepGraphs(net.classifier.weight.device) if graphs else None
        self.all_gradients = all_gradients
        self.guidance = Guidance(config, net, sampler)
        self.passes = Passes(config, net, self.guidance, all_gradients=all_gradients, rank=self.ranks.rank)
        self.rung, self.scheduled_k = Rung.of(config), config.k
        self._alphas = list(sampler.parameters())
        self.score_baseline = ScoreBaseline(self._alphas[0])
        self.weight_optimizer = SampledSGD(
            list(net.parameters()), momentum=config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
        )
        # Fused: its step count lives on the device, and `found_inf` voids a step there.
        self.alpha_optimizer = torch.optim.Adam(
            self._alphas,
            lr=config.alpha_lr,
            betas=(config.alpha_beta1, 0.999),
            weight_decay=config.alpha_weight_decay,
            fused=True,
        )

    def stand_on(self, rung: Rung) -> None:
        """Take the steps to come with these micro-batches and policies, at most this K; captured graphs are dropped."""
        self.rung = rung
        if not self.net.plain:
            self.net.policies = rung.policies
        self.passes.accumulate = rung.accumulate
        self._sample()

    @property
    def scale(self) -> LossScale:
        """Of the losses of fp16 maps."""
        return self.passes.scale

    def follow(self, k: int) -> None:
        """Sample as many operations as the schedule says, or as many as the rung allows."""
        if k != self.scheduled_k:
            self.scheduled_k = k
            self._sample()

    def standing(self, rung: Rung | None = None) -> Rung:
        """A rung, by default the present one, with the K that steps on it have just now."""
        rung = self.rung if rung is None else rung
        return dataclasses.replace(rung, k=min(rung.k, self.scheduled_k))

    def keep_operations(self, count: int) -> None:
        """Leave every edge its `count` most probable operations; alpha and its optimizer start anew."""
        self.sampler.keep_(count)
        self.alpha_optimizer.state.clear()
        self._sample()

    def _sample(self) -> None:
        self.sampler.k = self.standing().k
        if self.graphs is not None:
            self.graphs = StepGraphs(self.net.classifier.weight.device)

    def optimizer_tensors(self) -> list[Tensor]:
        """Momentum of the weights and all of Adam's state on alpha, as far as steps have made them."""
        adam = [value for state in self.alpha_optimizer.state.values() for value in state.values()]
        return [*(buffer for buffer in self.weight_optimizer.buffers if buffer is not None), *adam]

    def state_bytes(self) -> int:
        """Bytes of all that lives between steps: weights, alpha, both optimizers' state, the teacher's copy."""
        ema = [] if self.guidance.ema is None else list(self.guidance.ema.parameters())
        tensors = [*self.net.parameters(), *self.net.buffers(), *self._alphas, *self.optimizer_tensors(), *ema]
        return sum(tensor.nbytes for tensor in tensors)

    def drop_gradients(self) -> None:
        """Free the gradients of weights and alpha."""
        self.weight_optimizer.zero_grad()
        self.alpha_optimizer.zero_grad(set_to_none=True)

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
        self.passes.enter("W draw" if self.graphs is None else "W step")
        values = update(feed) if self.graphs is None else self.graphs.run(kind, feed, update)
        loss, accuracy, grad_norm, distill, teacher_loss = values.tolist()
        if math.isfinite(loss) and self.scale.forgives(finite=math.isfinite(grad_norm)):
            return WeightResult(loss, None, accuracy, None)
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
        what = "the W step"
        with self.ranks.together(what) as meeting:
            sample = self.sampler.draw(feed.clock, feed.tau, grad=self.all_gradients, part="weight")
            self.weight_optimizer.zero_grad()
            outcome = self.passes.weights(feed, sample, guided=guided, dropped=dropped)
            touched = self.net.touched(sample.indices)
            self.weight_optimizer.reserve()
            gradients = self._exchange(touched)
            means = self.ranks.exchange(outcome.tensors())
            meeting.equal = self.ranks.digest_of(sample.indices.values())
        with self.ranks.committed(what):
            gradients.average()
            means.average()
            self.scale.unscale_(parameter.grad for parameter in self.weight_optimizer.parameters)
            self.passes.enter("optimizer")
            norm = self.weight_optimizer.clip(self.config.clip)
            ok = torch.isfinite(outcome.loss) & torch.isfinite(norm)
            # Before the weights change: memory that runs out later would leave a step half done.
            values = outcome.values(norm)
            self.weight_optimizer.step(feed.lr, touched, ok)
            # The step on alpha that follows has no use for them.
            self.weight_optimizer.zero_grad()
            self.guidance.follow()
        self.passes.enter("")
        return values

    def _exchange(self, touched: list[Tensor | None]) -> Exchange:
        """The gradients of the sampled rows, packed; the others are zero on every rank."""
        masks = {number: mask for number, mask in enumerate(touched) if mask is not None}
        return self.ranks.exchange([parameter.grad for parameter in self.weight_optimizer.parameters], masks)

    def alpha_step(
        self, images_BCHW: Tensor, labels_B: Tensor, moment: Moment, train: tuple[Tensor, Tensor] | None = None
    ) -> AlphaResult:
        """One Adam step on alpha: the mean cross-entropy of the sampled networks, weights frozen.

        `train` is the batch of the W step that the second order looks ahead to, by default the same.

        Raises:
            NumericsError: for a loss, a gradient or an alpha that is not finite; alpha is then as before.
        """
        feed = self.feed(images_BCHW, labels_B, moment, 2 * moment.step)
        ahead = None if train is None else self.feed(*train, moment, 2 * moment.step)
        dropped = self._drops_now(moment)
        if self.cost is not None:
            self.cost.share.fill_(moment.cost_share)

        def update(feed: Feed) -> Tensor:
            return self.alpha_update(feed, dropped=dropped, train=ahead)

        self.passes.enter("alpha draw" if self.graphs is None else "alpha step")
        values = update(feed) if self.graphs is None else self.graphs.run(("alpha", dropped), feed, update)
        loss, grad_norm, finite = values.tolist()
        if math.isfinite(loss) and self.scale.forgives(finite=math.isfinite(grad_norm)):
            return AlphaResult(loss, None)
        _require_finite({"loss": loss, "alpha's gradient norm": grad_norm}, "alpha", moment)
        _require_finite({"alpha": 0.0 if finite else math.nan}, "alpha", moment)
        return AlphaResult(loss, grad_norm)

    def alpha_update(self, feed: Feed, *, dropped: bool, train: Feed | None = None) -> Tensor:
        """`alpha_step` without reading: (loss, gradient norm, 1 where the new alpha is finite), fp64 [3]."""
        what = "the alpha step"
        with self.ranks.together(what) as meeting:
            sample = self.sampler.draw(feed.clock, feed.tau, grad=True)
            self.alpha_optimizer.zero_grad(set_to_none=True)
            losses, leaves = self._alpha_losses(feed, sample, train, dropped=dropped)
            meeting.equal = self.ranks.digest_of(sample.indices.values())
        with self.ranks.committed(what):
            return self._alpha_commit(losses, leaves, sample)

    def _alpha_losses(
        self, feed: Feed, sample: Sample, train: Feed | None, *, dropped: bool
    ) -> tuple[Tensor, GateLeaves | None]:
        """Mean cross-entropy [], or of each network [K] for the score estimator, and gates' gradients for alpha's.

        The second order leaves alpha's own.
        """
        if self.config.order == 2:
            return unrolled_gradient(
                self.passes, self.sampler, self.weight_optimizer, feed, feed if train is None else train,
                dropped=dropped, average_=self.ranks.average_,
            ), None  # fmt: skip
        if self.config.gate == "score":
            return self.passes.losses(feed, sample, dropped=dropped), None
        return self.passes.gates(feed, sample, dropped=dropped)

    def _alpha_commit(self, losses: Tensor, leaves: GateLeaves | None, sample: Sample) -> Tensor:
        """What all ranks found together, and Adam's step with it; the values of `alpha_update`."""
        self.ranks.average_([losses, *(leaves.gradients() if leaves else ())])
        loss = losses.mean()
        if leaves:
            self.scale.unscale_(leaves.gradients())
            leaves.backward()
        if self.config.gate == "score":
            assert sample.log_probability is not None
            self.score_baseline.backward(losses, sample.log_probability, self.config.reward)
        if self.cost is not None:
            self.cost.add_to([alpha.grad for alpha in self._alphas if alpha.grad is not None], loss)
        penalty = self.sampler.penalty()
        if penalty is not None:
            penalty.backward()
        self.passes.enter("optimizer")
        grads = [alpha.grad for alpha in self._alphas if alpha.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) if grads else loss.new_zeros(())
        ok = torch.isfinite(loss) & torch.isfinite(norm)
        self.alpha_optimizer.found_inf = (~ok).float()  # type: ignore[attr-defined]
        before = [alpha.detach().clone() for alpha in self._alphas]
        self.alpha_optimizer.step()
        if self.config.gate == "restricted":
            self.sampler.renormalise_(dict(zip(self.sampler.alpha, before, strict=False)), sample)
        finite = torch.stack([torch.isfinite(alpha).all() for alpha in self._alphas]).all()
        with torch.no_grad():
            for alpha, old in zip(self._alphas, before, strict=True):
                torch.where(ok & finite, alpha, old, out=alpha)
        self.passes.enter("")
        return torch.stack([loss.double(), norm.double(), finite.double()])

    def alpha_state(self) -> list[Tensor]:
        """A copy of alpha and of what learns it; `put_back` undoes an alpha step that failed half-way."""
        return [tensor.detach().clone() for tensor in self._alpha_tensors()]

    @torch.no_grad()
    def put_back(self, before: list[Tensor]) -> None:
        """Alpha, its optimizer and the score estimator's baseline as `alpha_state` found them."""
        if len(self._alpha_tensors()) != len(before):
            # The step that failed was the first, or made a part of Adam's state.
            self.alpha_optimizer.state.clear()
        for tensor, value in zip(self._alpha_tensors(), before, strict=True):
            tensor.copy_(value)

    def _alpha_tensors(self) -> list[Tensor]:
        adam = [value for state in self.alpha_optimizer.state.values() for value in state.values()]
        return [*self._alphas, self.score_baseline.mean, *adam]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as plain containers and tensors."""
        return {
            "net": self.net.state_dict(),
            "sampler": self.sampler.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "guidance": self.guidance.state_dict(),
            "score_baseline": self.score_baseline.state(),
            "loss_scale": self.scale.state_dict(),
            "rung": self.rung.over(self.ranks.world).to_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stand_on(Rung.from_dict(state["rung"]).share(self.ranks.world))
        self.net.load_state_dict(state["net"])
        self.sampler.load_state_dict(state["sampler"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.guidance.load_state_dict(state["guidance"])
        if "loss_scale" in state:
            self.scale.load_state_dict(state["loss_scale"])
        self.score_baseline.load(state["score_baseline"])


def _require_finite(values: dict[str, float], which: str, moment: Moment) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise NumericsError(
                f"{name} of the {which} step {moment.step + 1} is not finite",
                got=value,
                allowed="finite numbers",
                next="search anew with a smaller --set lr=...; the last good checkpoint is kept",
            )
