"""A step as one CUDA graph: one launch for the host instead of hundreds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

# Steps of one kind that run launch by launch before it is captured: optimizers make their state in the first, and
# libraries choose their algorithms (torch's own advice is three).
WARM_UP_STEPS = 3


class Copyable(Protocol):
    """Inputs of a step that can stay at one address."""

    def shapes(self) -> Hashable: ...
    def clone(self: FeedT) -> FeedT: ...
    def copy_(self: FeedT, other: FeedT) -> None: ...


FeedT = TypeVar("FeedT", bound=Copyable)


class StepGraphs(Generic[FeedT]):
    """Captured steps by kind. Every step that it is given really happens, exactly once.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._feeds: dict[Hashable, FeedT] = {}
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._taken: Counter[Hashable] = Counter()

    def run(self, kind: Hashable, feed: FeedT, body: Callable[[FeedT], Tensor]) -> Tensor:
        """body(feed), by replay once it is captured.

        Args:
            kind: everything on the host that decides what `body` launches.
            feed: inputs; their values are copied to fixed addresses.
            body: the step; it must not wait for the device.
        """
        shapes = feed.shapes()
        static = self._feeds.get(shapes)
        if static is None:
            static = self._feeds[shapes] = feed.clone()
        else:
            static.copy_(feed)
        key = (kind, shapes)
        if self._taken[key] < WARM_UP_STEPS:
            self._taken[key] += 1
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                values = body(static)
            torch.cuda.current_stream().wait_stream(self._stream)
            return values
        if key not in self._graphs:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                values = body(static)
            self._graphs[key] = graph, values
        graph, values = self._graphs[key]
        graph.replay()
        return values.clone()
