"""One search step of any method, policy and layout on random data, for anybody's profiler."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.errors import ConfigError
from ..engine.learning.assembly import build_learner
from ..engine.learning.passes import Feed
from ..engine.learning.sampler import Sampler
from ..engine.learning.steps import Learner, Moment
from ..engine.settings.config import SearchConfig, build
from ..engine.supernet.supernet import SuperNet


@dataclass(slots=True)
class Step:
    """A search that takes the same kind of step again and again, each with a new draw.

    Attributes:
        config, net, sampler, learner: the parts, for inspection.
    """

    config: SearchConfig
    net: SuperNet
    sampler: Sampler
    learner: Learner
    images_BCHW: Tensor
    labels_B: Tensor
    tau: float
    number: int = 0

    def _feed(self, draw: int) -> Feed:
        moment = Moment(self.number, self.tau, self.config.lr, drop_rate=0.0, guided=False)
        return self.learner.feed(self.images_BCHW, self.labels_B, moment, draw)

    def cut(self, batch: int, side: int | None = None) -> Step:
        """The same search, not a copy, on the first `batch` images, or on their upper left corners of `side` pixels."""
        images = self.images_BCHW[:batch, :, :side, :side]
        return dataclasses.replace(self, images_BCHW=images, labels_B=self.labels_B[:batch])

    def forward(self, networks: int | None = None) -> Tensor:
        """Mean cross-entropy [] of a W draw's first networks with everything that backward would need, no update.

        Args:
            networks: how many of them, None for all.
        """
        feed = self._feed(2 * self.number + 1)
        sample = self.sampler.draw(feed.clock, feed.tau, grad=self.learner.all_gradients, part="weight")
        taken = sample.networks[:networks]
        losses = [F.cross_entropy(self.net(self.images_BCHW, paths), self.labels_B) for paths in taken]
        return torch.stack(losses).mean()

    def alpha_step(self) -> Tensor:
        """See `Learner.alpha_update`; nothing is read."""
        return self.learner.alpha_update(self._feed(2 * self.number), dropped=False)

    def weight_step(self) -> Tensor:
        """See `Learner.weight_update`; nothing is read."""
        return self.learner.weight_update(self._feed(2 * self.number + 1), guided=False, dropped=False)

    def step(self) -> None:
        """One alpha step and one W step, optimizers included."""
        self.alpha_step()
        self.weight_step()
        self.number += 1


def build_step(
    *,
    method: str = "msg",
    space: str = "darts",
    stem: str = "cifar",
    channels: int = 16,
    layers: int = 8,
    batch: int = 16,
    image: int = 32,
    classes: int = 10,
    k: int = 2,
    mode: str = "union",
    policy: str = "min",
    layout: str = "nhwc",
    impl: str = "auto",
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    gradients: str = "auto",
) -> Step:
    """A search step on random images.

    Args:
        method: as `msgdas search --method` takes it; k and mode are as it fixes them.
        mode: union or subgraphs (sequential).
        policy: all, bn, nodes, min (or one per cell), or autograd: the plain path.
        layout: of the plain path, nchw or nhwc.
        impl: auto, triton, native or reference; see `engine.implementation`.
        dtype: float32, float64, or bfloat16 with the Triton kernels.
        gradients: `lazy` computes what a step uses; `all` also what it throws away, as the published DARTS
            code does; `auto` is `all` for the plain path and `lazy` for the engine.

    Raises:
        ConfigError: for a value or combination that no search can run with, or a policy that the method does not have.
    """
    if gradients not in ("auto", "lazy", "all"):
        raise ConfigError("unknown gradients", got=gradients, allowed="auto, lazy, all", next='gradients="auto"')
    base = {
        "recipe": "bench", "method": method, "space": space, "stem": stem, "channels": channels, "layers": layers,
        "image": image, "batch": batch, "k": k, "mode": mode, "policy": policy, "layout": layout,
        "device": device, "dtype": dtype, "seed": seed, "dbi": "off", "teacher": "none", "impl": impl,
    }  # fmt: skip
    config = build(base, {})
    if config.policy != policy:
        raise ConfigError(
            f"method {method} fixes the policy", got=policy, allowed=config.policy, next=f'policy="{config.policy}"'
        )
    all_gradients = gradients == "all" or (gradients == "auto" and policy == "autograd")
    learner, _, _ = build_learner(config, torch.device(device), classes, all_gradients=all_gradients)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, image, image, generator=generator).to(getattr(torch, config.dtype))
    memory = torch.contiguous_format if layout == "nchw" else torch.channels_last
    images = images.contiguous(memory_format=memory).to(device)
    labels = torch.randint(0, classes, (batch,), generator=generator).to(device)
    return Step(config, learner.net, learner.sampler, learner, images, labels, tau=1.0)
