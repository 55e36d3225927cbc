"""Latencies measured on this machine: of every operation in every place of the derived network, and of whole networks.

At batch 1 in inference, without autograd. On one CPU thread the clock is the process's time on its core, which other
processes disturb less; otherwise it is wall time. Every round runs each network once, so that load hits all alike, and
the quickest round counts.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch
from torch import nn

from ...profiles.timing import WARMUP, clock_of, device_name, torch_threads
from ..network.network import Cell, Network
from ..run.environment import package_version
from ..spaces.costs import NetworkSize, genotype_of
from ..spaces.counting import count
from ..spaces.genotype import Genotype
from ..spaces.latency_table import Latencies, Part, Site, lookup_table, places
from ..spaces.space import SearchSpace
from .fit import covering, fit, relative_error


class _Timed:
    """A network whose chosen operations are timed in place.

    Attributes:
        edges: the place of each, and its time in every pass.
        rest_ns: of each pass, what is left of it.
    """

    def __init__(self, genotype: Genotype, size: NetworkSize, device: torch.device, clock: Callable[[], int]) -> None:
        self.net, self.clock = network_of(genotype, size, device), clock
        self.rest_ns: list[int] = []
        self._begin, self._inside = 0, 0
        modules = [
            edge
            for layer in self.net.layers
            if isinstance(layer, Cell) and layer.spec.kind in genotype.kinds
            for edge in layer.edges
        ]
        self.edges: list[tuple[Site, list[int]]] = [(place, []) for place in places(genotype, size)]
        for module, (_, taken_ns) in zip(modules, self.edges, strict=True):
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave(taken_ns))

    def _enter(self, module: nn.Module, inputs: object) -> None:
        self._begin = self.clock()

    def _leave(self, taken_ns: list[int]) -> Callable[[nn.Module, object, object], None]:
        def leave(module: nn.Module, inputs: object, output: object) -> None:
            taken = self.clock() - self._begin
            self._inside += taken
            taken_ns.append(taken)

        return leave

    def run(self, image: torch.Tensor) -> None:
        self._inside = 0
        begin = self.clock()
        self.net(image)
        self.rest_ns.append(self.clock() - begin - self._inside)


def network_of(genotype: Genotype, size: NetworkSize, device: torch.device) -> Network:
    """The derived network, in inference and channels_last."""
    net = Network(genotype, channels=size.channels, layers=size.layers, classes=size.classes, stem=size.stem)
    return net.to(device).to(memory_format=torch.channels_last).eval()


def _image(size: NetworkSize, device: torch.device) -> torch.Tensor:
    shape = (1, 3, size.image, size.image)
    return torch.randn(shape, device=device).to(memory_format=torch.channels_last)


@torch.inference_mode()
def measure_table(
    space: SearchSpace, size: NetworkSize, *, repeats: int, threads: int = 1, device: torch.device | None = None
) -> Latencies:
    """The lookup table, from networks that have the same operation on all their edges.

    Args:
        space, size: of the derived network.
        repeats: rounds after the warm-up.
        threads: of torch.
        device: the CPU by default.

    Raises:
        ConfigError: for a size that the network cannot have.
    """
    device = torch.device("cpu") if device is None else device
    picks = covering(space)
    # Refuses sizes that the network itself does not ask about.
    count(genotype_of(space, picks[-1]), **asdict(size))
    name, clock = clock_of(device, threads)
    image = _image(size, device)
    with torch_threads(threads):
        nets = [_Timed(genotype_of(space, one), size, device, clock) for one in picks]
        for _ in range(WARMUP + repeats):
            for net in nets:
                net.run(image)
    taken: dict[Site, list[list[int]]] = defaultdict(list)
    for net in nets:
        for place, values_ns in net.edges:
            taken[place].append(values_ns[WARMUP:])
    parts = tuple(_part(place, edges) for place, edges in sorted(taken.items()))
    fixed_ms = statistics.median(min(net.rest_ns[WARMUP:]) for net in nets) / 1e6
    table = lookup_table({part.place: part.ms for part in parts}, fixed_ms, space, size)
    provenance = {
        "device": device_name(device), "threads": threads, "clock": f"{name}, quickest round", "repeats": repeats,
        "batch": 1,
        "torch": package_version("torch"), "msgdas": package_version("msgdas"),
    }  # fmt: skip
    return Latencies(space.name, size, provenance, parts, fixed_ms, table.fixed, table.tables)


def _part(place: Site, edges_ns: Sequence[Sequence[int]]) -> Part:
    """Of an operation, from its rounds on each edge that has it in that place."""
    every = [value for values in edges_ns for value in values]
    low, middle, high = statistics.quantiles(every, n=4) if len(every) > 1 else every * 3
    return Part(place, statistics.median(map(min, edges_ns)) / 1e6, (high - low) / 2 / max(1, middle))


@torch.inference_mode()
def measure_networks(
    genotypes: Sequence[Genotype], size: NetworkSize, *, repeats: int, threads: int = 1,
    device: torch.device | None = None,
) -> list[float]:  # fmt: skip
    """Latency of each whole network in milliseconds, the quickest of the rounds."""
    device = torch.device("cpu") if device is None else device
    _, clock = clock_of(device, threads)
    image = _image(size, device)
    taken: list[list[int]] = [[] for _ in genotypes]
    with torch_threads(threads):
        nets = [network_of(genotype, size, device) for genotype in genotypes]
        for number in range(WARMUP + repeats):
            for net, values in zip(nets, taken, strict=True):
                begin = clock()
                net(image)
                if number >= WARMUP:
                    values.append(clock() - begin)
    return [min(values) / 1e6 for values in taken]


def with_fit(table: Latencies, genotypes: Sequence[Genotype], measured_ms: Sequence[float]) -> Latencies:
    """The table with a predictor fitted to all networks but every fourth, which tell its error."""
    lookup = table.costs(lookup=True)
    held = [n for n in range(len(genotypes)) if n % 4 == 3]
    seen = [n for n in range(len(genotypes)) if n % 4 != 3]
    predictor = fit(lookup, table.size, [genotypes[n] for n in seen], [measured_ms[n] for n in seen])
    costs = predictor.costs()
    truth = [measured_ms[n] for n in held]
    facts = {
        "networks": len(seen), "held_out": len(held),
        "error": relative_error([predictor.predict(genotypes[n]) for n in held], truth),
        "lookup_error": relative_error([lookup.of(genotypes[n]) for n in held], truth),
    }  # fmt: skip
    return replace(table, fitted_ms=costs.fixed, fitted=costs.tables, fit=facts)
