"""What each choice of an architecture costs in the derived network: a fixed rest, and a number per operation.

The derived network is larger than the one that is searched in (DARTS searches C=16 and 8 cells and trains C=36 and
20), so that its size, not the search's, decides. All costs here are sums over the chosen operations: exactly so for
parameters and MACs, which `counting.count` tells, and by measurement for a latency (latency_table.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from .counting import count
from .genotype import CellGenotype, Genotype
from .quantities import Resource
from .space import DARTS, NASBENCH201, ZERO, CellSpec, SearchSpace, StemKind, space_named

if TYPE_CHECKING:
    from ..settings.config import SearchConfig

Picks = Sequence[tuple[int, int]]
Table = tuple[tuple[float, ...], ...]

# Channels, cells and side of the image by family and stem: what is trained of DARTS' (quark0/darts, cnn/train.py and
# train_imagenet.py) and of NAS-Bench-201's cells.
USUAL_SIZES: dict[tuple[str, str], tuple[int, int, int]] = {
    (DARTS.family, "cifar"): (36, 20, 32),
    (DARTS.family, "imagenet"): (48, 14, 224),
    (NASBENCH201.family, "cifar"): (16, 15, 32),
}


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """Of a derived network; see `counting.count`."""

    channels: int
    layers: int
    image: int
    classes: int
    stem: StemKind


@dataclass(frozen=True, slots=True)
class CostTable:
    """A cost that is a sum over the chosen operations.

    Attributes:
        resource: what is counted; a latency is in milliseconds.
        space: whose edges and operations these are.
        fixed: what the network costs beside its chosen operations.
        tables: by kind of cell [edges][operations], summed over all cells of the kind. Where every edge is kept
            (rule argmax) relative to the edge's cheapest operation, which is then in `fixed`.
    """

    resource: Resource
    space: SearchSpace
    fixed: float
    tables: Mapping[str, Table]

    def of(self, genotype: Genotype) -> float:
        """Cost of the derived network of that genotype."""
        total = self.fixed
        for spec in self.space.cells:
            rows = self.tables[spec.kind]
            total += sum(rows[edge][operation] for edge, operation in picks_of(self.space, spec, genotype))
        return total


def picks_of(space: SearchSpace, spec: CellSpec, genotype: Genotype) -> list[tuple[int, int]]:
    """(edge, operation) of each pair of the genotype's cell of that kind, in its order."""
    if space.rule == "argmax":
        pairs = genotype.cell(spec.kind).pairs
        return [(edge, space.operations.index(name)) for edge, (name, _) in enumerate(pairs)]
    number = {(edge.source, edge.target): row for row, edge in enumerate(spec.edges)}
    return [
        (number[source, node], space.operations.index(name))
        for node, pairs in enumerate(genotype.node_pairs(spec.kind), start=spec.inputs)
        for name, source in pairs
    ]


def genotype_of(space: SearchSpace, picks: Mapping[str, Picks]) -> Genotype:
    """The genotype with these (edge, operation) by kind of cell, in the order of its pairs."""
    cells = []
    for spec in space.cells:
        pairs = tuple((space.operations[operation], spec.edges[edge].source) for edge, operation in picks[spec.kind])
        cells.append((spec.kind, CellGenotype(pairs, spec.concat)))
    return Genotype(space.family, tuple(cells))


def target_size(config: SearchConfig, classes: int) -> NetworkSize:
    """Size of the network that a search is for: the keys `target_*`, where 0 stands for the usual.

    That is C=36, 20 cells and 32 px for DARTS' cells on CIFAR, C=48, 14 cells and 224 px on ImageNet, C=16, 15 cells
    and 32 px for NAS-Bench-201, and the searched network itself where every layer of it is searched.

    Args:
        config: of the search.
        classes: of its data.
    """
    searched = config.channels, config.layers, config.image
    usual = USUAL_SIZES.get((space_named(config.space).family, config.stem), searched)
    return NetworkSize(
        channels=config.target_channels or usual[0],
        layers=config.target_layers or usual[1],
        image=config.target_image or usual[2],
        classes=config.target_classes or classes,
        stem=config.stem,
    )


def counted(space: SearchSpace, size: NetworkSize) -> dict[Resource, CostTable]:
    """Parameters (without auxiliary head) and MACs, exactly those of `counting.count`.

    Raises:
        ConfigError: for a size that the network cannot have.
    """

    def costs(genotype: Genotype) -> tuple[float, float]:
        cost = count(genotype, **asdict(size))
        return cost.params, cost.macs

    params, macs = tabulate(space, costs)
    return {
        "params": CostTable("params", space, params[0], params[1]),
        "macs": CostTable("macs", space, macs[0], macs[1]),
    }


def tabulate(
    space: SearchSpace, costs: Callable[[Genotype], Sequence[float]]
) -> list[tuple[float, dict[str, Table]]]:  # fmt: skip
    """(fixed, tables) of each cost, from networks that differ in one operation.

    Args:
        space: rule top2 has an operation that costs nothing, a pool, which the others are held against.
        costs: of a genotype; each a sum over the chosen operations.
    """
    base_picks = {spec.kind: _base(space, spec) for spec in space.cells}
    base = costs(genotype_of(space, base_picks))
    fixed = list(base)
    tables: list[dict[str, Table]] = [{} for _ in base]
    for spec in space.cells:
        rows: list[list[list[float]]] = [[] for _ in base]
        for edge in range(len(spec.edges)):
            # What an edge of a chain cannot have costs as much as what is there instead.
            excluded = space.excluded(spec.kind)[edge] if space.chain is not None else ()
            seen = [
                base
                if operation in excluded
                else costs(genotype_of(space, {**base_picks, spec.kind: _with(space, spec, edge, operation)}))
                for operation in range(space.num_operations)
            ]
            for number, start in enumerate(base):
                row = [values[number] - start for values in seen]
                cheapest = min(row) if space.rule == "argmax" else 0.0
                fixed[number] += cheapest
                rows[number].append([value - cheapest for value in row])
        for number, table in enumerate(rows):
            tables[number][spec.kind] = tuple(tuple(row) for row in table)
    return list(zip(fixed, tables, strict=True))


def _base(space: SearchSpace, spec: CellSpec) -> list[tuple[int, int]]:
    """The first operation other than `none` on each edge, or on the first two edges of each node."""
    first = next(number for number, name in enumerate(space.operations) if name != ZERO)
    if space.rule == "argmax":
        return [(edge, first) for edge in range(len(spec.edges))]
    return [
        (edge, first)
        for node in range(spec.inputs, spec.num_states)
        for edge in [row for row, place in enumerate(spec.edges) if place.target == node][:2]
    ]


def _with(space: SearchSpace, spec: CellSpec, edge: int, operation: int) -> list[tuple[int, int]]:
    """`_base` with that operation on that edge."""
    picks = _base(space, spec)
    if space.rule == "argmax":
        picks[edge] = (edge, operation)
        return picks
    target = spec.edges[edge].target
    first = next(at for at, (row, _) in enumerate(picks) if spec.edges[row].target == target)
    at = first + 1 if picks[first + 1][0] == edge else first
    picks[at] = (edge, operation)
    return picks
