"""A search's learner, put together from its configuration."""

from __future__ import annotations

import torch

from .config import SearchConfig
from .expected_cost import expected_cost
from .implementation import Impl, resolve
from .sampler import Sampler
from .space import space_named
from .steps import Learner
from .supernet import SuperNet


def build_learner(
    config: SearchConfig, device: torch.device, classes: int, *, all_gradients: bool = False
) -> tuple[Learner, Impl, str | None]:
    """The learner on its device, what computes its cells, and why that is not the quickest (see `resolve`).

    `all_gradients` is a Learner's.

    Raises:
        ConfigError: where the implementation that was asked for cannot run, or a cost is not known.
    """
    impl, note = resolve(config, device)
    space = space_named(config.space)
    net = SuperNet(
        space, channels=config.channels, layers=config.layers, stem=config.stem, classes=classes,
        policy=config.policies if config.policy != "autograd" else ("autograd",), layout=config.layout,
        seed=config.seed, dtype=getattr(torch, config.dtype), partial=config.partial, impl=impl,
    )  # fmt: skip
    graphs = config.graph and impl == "triton" and device.type == "cuda"
    sampler = Sampler(space, config, impl=impl)
    # Both are made on the CPU; tensors without data, under FakeTensorMode, cannot be moved, not even to where they are.
    if device.type != "cpu":
        net, sampler = net.to(device), sampler.to(device)
    cost = expected_cost(config, sampler, classes)
    return Learner(config, net, sampler, all_gradients=all_gradients, graphs=graphs, cost=cost), impl, note
