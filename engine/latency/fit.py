"""A latency predictor fitted to whole networks: ridge regression on the lookup table's sum and the operations' numbers.

LA-DARTS (arXiv 2001.06392) encodes an architecture and lets a neural network predict its latency; ours is linear, so
that its prediction is a sum over the chosen operations and serves as a cost and in an exact limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..spaces.costs import CostTable, NetworkSize, tabulate
from ..spaces.genotype import Genotype
from ..spaces.latency_table import places
from ..spaces.space import SearchSpace

# Of the mean squared feature, which has variance 1; small, since there are few features (ours).
RIDGE = 1e-3

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Predictor:
    """latency = intercept + weights . features, in milliseconds.

    Attributes:
        lookup: the table whose sum is the first feature; the others are how often each operation is there.
        size: of the networks.
    """

    lookup: CostTable
    size: NetworkSize
    intercept: float
    weights: Vector

    def predict(self, genotype: Genotype) -> float:
        """Milliseconds."""
        return self.intercept + float(_features(self.lookup, self.size, genotype) @ self.weights)

    def costs(self) -> CostTable:
        """The same prediction as a table of choices."""
        ((fixed, tables),) = tabulate(self.lookup.space, lambda genotype: (self.predict(genotype),))
        return CostTable("latency", self.lookup.space, fixed, tables)


def _features(lookup: CostTable, size: NetworkSize, genotype: Genotype) -> Vector:
    numbers = Counter(place.name for place in places(genotype, size))
    return np.array([lookup.of(genotype), *(numbers[name] for name in lookup.space.operations)], dtype=np.float64)


def fit(lookup: CostTable, size: NetworkSize, genotypes: Sequence[Genotype], measured_ms: Sequence[float]) -> Predictor:
    """The predictor with the least squared relative errors.

    Args:
        lookup: of the same device and size.
        size: of the networks.
        genotypes, measured_ms: two or more networks and their latencies.
    """
    y = np.array(measured_ms)
    x = np.stack([_features(lookup, size, genotype) for genotype in genotypes])
    mean, scale = x.mean(0), x.std(0)
    # A feature that is the same in all networks tells nothing.
    scale[scale < 1e-9] = np.inf
    # Rows divided by the latency make the error relative.
    design = np.column_stack([np.ones(len(y)), (x - mean) / scale]) / y[:, None]
    shrink = RIDGE * float((1 / y**2).sum()) * np.diag([0.0, *np.ones(x.shape[1])])
    solved = np.linalg.solve(design.T @ design + shrink, design.T @ np.ones(len(y)))
    weights = solved[1:] / scale
    return Predictor(lookup, size, float(solved[0] - mean @ weights), weights)


def relative_error(predicted_ms: Sequence[float], measured_ms: Sequence[float]) -> float:
    """Mean of |predicted - measured| / measured."""
    return float(np.mean(np.abs(np.array(predicted_ms) / np.array(measured_ms) - 1)))


def covering(space: SearchSpace) -> list[dict[str, list[tuple[int, int]]]]:
    """Picks of networks that together have every candidate on an edge of every stride."""
    return [
        {spec.kind: _cover(space, spec.kind, operation, last) for spec in space.cells}
        for operation in range(space.num_operations)
        for last in ((False, True) if space.rule == "top2" else (False,))
    ]


def _cover(space: SearchSpace, kind: str, operation: int, last: bool) -> list[tuple[int, int]]:
    spec, excluded = space.cell(kind), space.excluded(kind)
    kept = range(len(spec.edges))
    if space.rule == "top2":
        nodes = range(spec.inputs, spec.num_states)
        rows = {node: [row for row, edge in enumerate(spec.edges) if edge.target == node] for node in nodes}
        return [(row, operation) for node in nodes for row in (rows[node][-2:] if last else rows[node][:2])]
    # A chain's layer that cannot have the operation has its first.
    return [(edge, operation if operation not in excluded[edge] else 0) for edge in kept]
