"""Super-net guidance: a teacher for the sampled sub-graphs that costs no kept activations.

L = (1 - lambda) CE + lambda T^2 KL(softmax(z_T / T) || softmax(z / T)), z_T without gradient (Hinton et al.;
in-place distillation as in US-Nets). Which teacher, and that a teacher worse than its students is not used,
are our choices: the abstract of arXiv 2107.04324 names the idea only.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..settings.config import SearchConfig, resolved_teacher
from ..supernet.supernet import SuperNet
from .sampler import Sampler

# Of the running means that decide whether the teacher is trusted, per W step (ours).
TRUST_DECAY = 0.9
# A teacher that is not trusted is looked at again every so many steps: it costs a forward pass (ours).
RETRY_STEPS = 8


class Guidance:
    """The teacher of one search.

    Args:
        config: teacher, teacher_weight, teacher_temperature and teacher_decay are read.
        net, sampler: the super-net and alpha that `supernet` and `ema` evaluate as a dense mixture.

    Attributes:
        kind: none, supernet, ensemble or ema.
        teacher_loss, student_loss: running means of the cross-entropy, None before the first.
    """

    def __init__(self, config: SearchConfig, net: SuperNet, sampler: Sampler) -> None:
        self.config, self.net, self.sampler = config, net, sampler
        self.kind = resolved_teacher(config)
        self.teacher_loss: float | None = None
        self.student_loss: float | None = None
        self.ema = copy.deepcopy(net).requires_grad_(False) if self.kind == "ema" else None

    @property
    def trusted(self) -> bool:
        """Whether the teacher's running loss is below its students'."""
        if self.teacher_loss is None or self.student_loss is None:
            return False
        return self.teacher_loss < self.student_loss

    def due(self, step: int) -> bool:
        """Whether the teacher is to be run in this step; a single sub-graph has no ensemble to learn from."""
        if self.kind == "ensemble" and self.sampler.k == 1:
            return False
        return self.kind != "none" and (self.trusted or step % RETRY_STEPS == 0)

    @torch.no_grad()
    def logits(self, images_BCHW: Tensor, student_logits: Sequence[Tensor]) -> Tensor:
        """z_T [B, classes]; `student_logits` are those of all sub-graphs, for the ensemble."""
        if self.kind == "ensemble":
            return torch.stack([logits.detach() for logits in student_logits]).mean(0)
        net = self.net if self.ema is None else self.ema
        return net(images_BCHW, self.sampler.mixture())

    def judge(self, teacher_loss: float, student_loss: float) -> None:
        """Update the running losses that `trusted` compares."""
        self.teacher_loss = _running(self.teacher_loss, teacher_loss)
        self.student_loss = _running(self.student_loss, student_loss)

    def distillation(self, teacher_logits: Tensor, logits: Tensor) -> Tensor:
        """T^2 KL(teacher || student), mean over the batch, []."""
        temperature = self.config.teacher_temperature
        divergence = F.kl_div(
            F.log_softmax(logits / temperature, -1),
            F.log_softmax(teacher_logits / temperature, -1),
            reduction="batchmean",
            log_target=True,
        )
        return temperature**2 * divergence

    @torch.no_grad()
    def follow(self) -> None:
        """Move the EMA teacher's weights towards the net's, after a W step."""
        if self.ema is not None:
            torch._foreach_lerp_(
                list(self.ema.parameters()), list(self.net.parameters()), 1 - self.config.teacher_decay
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "teacher_loss": self.teacher_loss,
            "student_loss": self.student_loss,
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.teacher_loss, self.student_loss = state["teacher_loss"], state["student_loss"]
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def _running(mean: float | None, value: float) -> float:
    return value if mean is None else TRUST_DECAY * mean + (1 - TRUST_DECAY) * value
