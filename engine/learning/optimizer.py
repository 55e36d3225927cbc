"""SGD on the weights that the step's sample used, and on no others; never waits for the device.

All operations of a cell share a few tensors (see `weights`), so "this operation was not sampled" is a mask over
rows. A row outside the mask keeps its value and its momentum, as a parameter without a gradient does under
torch.optim.SGD: weight decay does not touch it either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class SampledSGD:
    """SGD with momentum and weight decay (torch.optim.SGD's formula) on masked rows.

    Args:
        parameters: any mixture of arenas and ordinary parameters.
        momentum, weight_decay, nesterov: as in torch.optim.SGD, dampening 0.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], *, momentum: float, weight_decay: float, nesterov: bool = False
    ) -> None:
        self.parameters = list(parameters)
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov
        self.buffers: list[Tensor | None] = [None] * len(self.parameters)

    def reserve(self) -> None:
        """Make the momentum of every parameter that has a gradient, so that a step allocates little."""
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is not None and self.buffers[number] is None:
                self.buffers[number] = torch.zeros_like(parameter)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def clip(self, max_norm: float) -> Tensor:
        """The total 2-norm [] of the gradients, which are scaled in place to at most `max_norm`."""
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads, foreach=True)
        torch.nn.utils.clip_grads_with_norm_(
            [p for p in self.parameters if p.grad is not None], max_norm, norm, foreach=True
        )
        return norm

    @torch.no_grad()
    def step(self, lr: Tensor, touched: Sequence[Tensor | None], ok: Tensor) -> None:
        """One update; overwrites the gradients.

        Args:
            lr: learning rate [].
            touched: for each parameter a mask of 0 and 1 in its dtype that broadcasts over it, or None for all.
            ok: bool []; where it is False nothing changes, whatever the gradients hold.
        """
        active = [n for n, parameter in enumerate(self.parameters) if parameter.grad is not None]
        self.reserve()
        weights: list[Tensor] = [self.parameters[n] for n in active]
        grads: list[Tensor] = [g for n in active if (g := self.parameters[n].grad) is not None]
        buffers: list[Tensor] = [b for n in active if (b := self.buffers[n]) is not None]
        masks = [ok.to(w.dtype) if (m := touched[n]) is None else m * ok for n, w in zip(active, weights, strict=True)]
        zeros = {grad.dtype: ok.new_zeros((), dtype=grad.dtype) for grad in grads}
        decays, rates = [1 - (1 - self.momentum) * mask for mask in masks], [mask * -lr for mask in masks]
        ahead = [rate * self.momentum for rate in rates] if self.nesterov else rates
        # Nothing below allocates: memory that runs out leaves the weights as they were.
        torch._foreach_add_(grads, weights, alpha=self.weight_decay)
        every = zip(grads, buffers, decays, masks, rates, ahead, weights, strict=True)
        for grad, buffer, decay, mask, rate, onward, weight in every:
            # A gradient that is not finite must not reach the buffer, not even times zero.
            torch.where(ok, grad, zeros[grad.dtype], out=grad)
            buffer.mul_(decay).addcmul_(grad, mask)
            weight.addcmul_(buffer, onward)
            if self.nesterov:
                weight.addcmul_(grad, rate)

    def state_dict(self) -> dict[str, Any]:
        """The momentum buffers by number of the parameter."""
        return {"momentum": {n: buffer for n, buffer in enumerate(self.buffers) if buffer is not None}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for n, buffer in state["momentum"].items():
            self.buffers[n] = buffer.to(self.parameters[n].device, copy=True)
