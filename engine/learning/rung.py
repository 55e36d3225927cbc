"""How a search runs its steps just now, and what it would fall back to for less memory. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..settings.checks import POLICIES
from ..settings.config import SearchConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Rung:
    """A place on the ladder from the configuration's own setting down to K=1, one image and policy `min`.

    Attributes:
        accumulate: micro-batches that a step's batch is cut into.
        policies: activation policy of each cell; `("autograd",)` for the plain path.
        k: operations sampled per edge.
    """

    accumulate: int
    policies: tuple[str, ...]
    k: int

    @classmethod
    def of(cls, config: SearchConfig) -> Rung:
        """Where the search of that configuration begins."""
        policies = ("autograd",) if config.policy == "autograd" else config.policies
        return cls(config.accumulate, policies, config.k)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rung:
        """The inverse of `to_dict`."""
        return cls(values["accumulate"], tuple(values["policies"]), values["k"])

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON and checkpoints."""
        return {"accumulate": self.accumulate, "policies": list(self.policies), "k": self.k}

    def share(self, world: int) -> Rung:
        """One process's part of a whole search's rung; `over` gives that back, with micro-batches for every process."""
        return dataclasses.replace(self, accumulate=-(-self.accumulate // world))

    def over(self, world: int) -> Rung:
        """The whole search's rung, where this is one process's part."""
        return dataclasses.replace(self, accumulate=self.accumulate * world)

    def images(self, batch: int) -> int:
        """The most images that one forward pass of a batch holds."""
        return -(-batch // self.accumulate)

    def lower(self, batch: int, fewest: int) -> Rung | None:
        """The next setting that takes less memory, None at the foot of the ladder.

        First twice as many micro-batches, until one holds `fewest` images; then the leaner policy of the cells that
        keep the most (a plain path has none); then half of K.

        Args:
            batch: images of a step.
            fewest: images of which BatchNorm can take statistics, 1 or 2.
        """
        most = max(1, batch // fewest)
        if self.accumulate < most:
            return dataclasses.replace(self, accumulate=min(2 * self.accumulate, most))
        kept = [POLICIES.index(policy) for policy in self.policies if policy in POLICIES]
        if kept and min(kept) < len(POLICIES) - 1:
            richest = POLICIES[min(kept)]
            leaner = POLICIES[min(kept) + 1]
            policies = tuple(leaner if policy == richest else policy for policy in self.policies)
            return dataclasses.replace(self, policies=policies)
        return dataclasses.replace(self, k=self.k // 2) if self.k > 1 else None

    def __str__(self) -> str:
        policy = self.policies[0] if len(set(self.policies)) == 1 else ",".join(self.policies)
        parts = "" if self.accumulate == 1 else f", {self.accumulate} micro-batches"
        return f"K={self.k}, policy {policy}{parts}"


def fewest_images(config: SearchConfig, stride: int) -> int:
    """Images of which BatchNorm can take statistics: 2 where the network's last map is a single pixel, else 1.

    Args:
        config: `image` is read.
        stride: of the whole network.
    """
    return 1 if config.image > stride else 2
