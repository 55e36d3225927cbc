"""The factor that keeps gradients of fp16 maps above fp16's smallest numbers.

As torch.amp.GradScaler (Micikevicius et al., Mixed Precision Training, ICLR 2018): 2^16 at first, half after a step
whose gradients are not finite, which changes nothing, twice after 2000 good steps in a row. It lives on the host, since
the step is read there anyway, and W and alpha steps share it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

FIRST, GROWTH_STEPS = 2.0**16, 2000


class LossScale:
    """Scales losses, takes the scale from gradients, and learns from each step; does nothing where it is off.

    Args:
        on: whether maps are fp16.
        patience: steps in a row that may be skipped.

    Attributes:
        scale: a power of two, 1 where it is off.
        skipped: steps skipped so far.
        run: of them the last in a row.
    """

    def __init__(self, *, on: bool, patience: int) -> None:
        self.on, self.patience = on, patience
        self.scale = FIRST if on else 1.0
        self.skipped, self.run, self._good = 0, 0, 0

    @torch.no_grad()
    def unscale_(self, gradients: Iterable[Tensor | None]) -> None:
        """Divide by the scale, in place."""
        if self.scale != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(1 / self.scale)

    def forgives(self, *, finite: bool) -> bool:
        """Learn whether a step's gradients were finite; whether one whose were not is to be passed over."""
        if not self.on:
            return False
        if finite:
            self.run, self._good = 0, self._good + 1
            if self._good % GROWTH_STEPS == 0:
                self.scale *= 2
            return False
        self.run, self._good, self.skipped = self.run + 1, 0, self.skipped + 1
        self.scale /= 2
        return self.run < self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "skipped": self.skipped, "run": self.run, "good": self._good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale, self.skipped, self.run, self._good = (state[key] for key in ("scale", "skipped", "run", "good"))
