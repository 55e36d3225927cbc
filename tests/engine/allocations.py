"""The peak of a real step by the CPU allocator's own events, to hold predictions against."""

from __future__ import annotations

import torch
from msgdas.engine.learning.sampler import Sampler
from msgdas.engine.learning.steps import Learner, Moment
from msgdas.engine.spaces.space import space_named
from msgdas.engine.supernet.supernet import SuperNet
from msgdas.profiles.tracker import AllocatorBytes

TAU = 1.0
DRAW = 3


def real_learner(config, impl: str) -> Learner:
    """The search's learner on the CPU, with ten classes and all of its optimizer state."""
    plain = config.policy == "autograd"
    space = space_named(config.space)
    net = SuperNet(
        space, channels=config.channels, layers=config.layers, stem=config.stem, classes=10,
        policy=("autograd",) if plain else config.policies, layout=config.layout, seed=config.seed,
        dtype=getattr(torch, config.dtype), partial=config.partial, impl="reference" if plain else impl,
    )  # fmt: skip
    learner = Learner(config, net, Sampler(space, config))
    # An alpha that moves may draw other operations in the next step.
    learner.alpha_optimizer.param_groups[0]["lr"] = 0.0
    learner.weight_optimizer.buffers = [torch.zeros_like(p) for p in net.parameters()]
    for alpha in learner.sampler.parameters():
        alpha.grad = torch.zeros_like(alpha)
    learner.alpha_optimizer.step()
    learner.alpha_optimizer.zero_grad()
    return learner


def live_bytes(learner: Learner) -> int:
    """Parameters, buffers and optimizer state."""
    states = [t for state in learner.alpha_optimizer.state.values() for t in state.values()]
    ema = [] if learner.guidance.ema is None else list(learner.guidance.ema.parameters())
    tensors = [
        *learner.net.parameters(), *learner.net.buffers(), *learner.sampler.parameters(), *ema, *states,
        *(b for b in learner.weight_optimizer.buffers if b is not None),
    ]  # fmt: skip
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def measured_peak_bytes(config, impl: str, *, guided: bool, dropped: bool, draw: int = DRAW) -> int:
    """Of a W step, an alpha step and another W step, all of one draw, everything that lives before included."""
    learner = real_learner(config, impl)
    images = torch.randn(config.batch, 3, config.image, config.image, dtype=getattr(torch, config.dtype))
    memory = torch.contiguous_format if config.layout == "nchw" else torch.channels_last
    images = images.contiguous(memory_format=memory)
    labels = torch.zeros(config.batch, dtype=torch.int64)
    moment = Moment(0, TAU, config.lr, drop_rate=0.3, guided=guided)
    if guided and learner.guidance.kind != "none":
        learner.guidance.judge(0.0, 1.0)
    guided = guided and learner.guidance.kind != "none"
    with AllocatorBytes() as allocated:
        for phase in ("weight", "alpha", "weight"):
            feed = learner.feed(images, labels, moment, draw)
            if phase == "weight":
                learner.weight_update(feed, guided=guided, dropped=dropped)
            else:
                learner.alpha_update(feed, dropped=dropped)
    before = live_bytes(learner) + images.untyped_storage().nbytes() + labels.untyped_storage().nbytes()
    return before + allocated.peak_bytes
