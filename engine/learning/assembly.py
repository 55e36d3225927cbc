"""A search's learner, put together from its configuration."""

from __future__ import annotations

import torch

from ..run.dist import Ranks
from ..settings.config import SearchConfig
from ..spaces.space import space_named
from ..supernet.implementation import Impl, resolve
from ..supernet.supernet import SuperNet
from .expected_cost import expected_cost
from .sampler import Sampler
from .steps import Learner


def build_learner(
    config: SearchConfig, device: torch.device, classes: int, *, all_gradients: bool = False, ranks: Ranks | None = None
) -> tuple[Learner, Impl, str | None]:
    """The learner on its device, what computes its cells, and why that is not the quickest (see `resolve`).

    `all_gradients` and `ranks` are a Learner's.

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
    # The rows of a sample that travel are found on the host.
    graphs = config.graph and impl == "triton" and device.type == "cuda" and (ranks is None or ranks.alone)
    sampler = Sampler(space, config, impl=impl)
    # Both are made on the CPU; tensors without data, under FakeTensorMode, cannot be moved, not even to where they are.
    if device.type != "cpu":
        net, sampler = net.to(device), sampler.to(device)
    learner = Learner(
        config, net, sampler, all_gradients=all_gradients, graphs=graphs, ranks=ranks,
        cost=expected_cost(config, sampler, classes),
    )  # fmt: skip
    return learner, impl, note
