"""From architecture logits alpha to a genotype, by each space's rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..errors import GenotypeError, NumericsError
from .chain import CHAIN_SKIPS
from .genotype import CellGenotype, Genotype
from .space import SKIP, ZERO, CellSpec, SearchSpace


def softmax(logits: Sequence[float]) -> list[float]:
    """Probabilities of finite logits; the largest logit is taken off first, so that none overflows."""
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def probabilities(space: SearchSpace, alpha: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, list[list[float]]]:
    """Softmax of each row of alpha, per kind of cell.

    Args:
        space: whose edges are the rows and whose operations the columns.
        alpha: logits.

    Raises:
        NumericsError: where a logit is NaN or infinite.
        GenotypeError: where kinds, rows or columns are not those of the space.
    """
    kinds = [spec.kind for spec in space.cells]
    if sorted(alpha) != sorted(kinds):
        raise GenotypeError(
            f"alpha of space {space.name} has one table per cell",
            got=", ".join(sorted(alpha)),
            allowed=", ".join(kinds),
            next="msgdas search --space " + space.name,
        )
    return {spec.kind: _cell_probabilities(space, spec, alpha[spec.kind]) for spec in space.cells}


def _cell_probabilities(space: SearchSpace, spec: CellSpec, rows: Sequence[Sequence[float]]) -> list[list[float]]:
    if len(rows) != len(spec.edges) or any(len(row) != space.num_operations for row in rows):
        raise GenotypeError(
            f"alpha of cell {spec.kind} has a row per edge and a column per operation",
            got=f"{len(rows)} rows of {sorted({len(row) for row in rows})}",
            allowed=f"{len(spec.edges)} rows of {space.num_operations}",
            next="msgdas search --space " + space.name,
        )
    for edge, row in enumerate(rows):
        for operation, logit in zip(space.operations, row, strict=True):
            if not math.isfinite(logit):
                raise NumericsError(
                    f"alpha of cell {spec.kind} is not finite at edge {edge}, {operation}",
                    got=logit,
                    allowed="finite numbers",
                    next="resume from the last checkpoint with a smaller --alpha-lr",
                )
    return [softmax(row) for row in rows]


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def derive(
    space: SearchSpace, alpha: Mapping[str, Sequence[Sequence[float]]], *, alone: bool = False,
    beta: Mapping[str, Sequence[float]] | None = None, alive: Mapping[str, Sequence[Sequence[bool]]] | None = None,
) -> Genotype:  # fmt: skip
    """The genotype that alpha stands for; ties go to the lowest index.

    Rule `top2` is `genotype()` of DARTS (quark0/darts, cnn/model_search.py): an edge weighs as much as its
    most probable operation other than `none`; each node keeps its two heaviest incoming edges, heaviest
    first, with that operation. Rule `argmax` (NAS-Bench-201) takes the most probable operation of each edge,
    `none` included. With beta an edge's probabilities are times its softmax over the node's edges first, as in
    `genotype()` of PC-DARTS (yuhuixu1993/PC-DARTS, model_search.py).

    Args:
        space: whose rule applies.
        alpha: logits per kind of cell, [edges][operations].
        alone: sigmoid of each logit in place of the softmax of a row (FairDARTS).
        beta: logits of the edges per kind of cell.
        alive: which operations are candidates, all of the space's where None; an edge without any but `none` is not
            chosen.

    Raises:
        NumericsError: where a logit is NaN or infinite.
        GenotypeError: where the shape of alpha is not that of the space.
    """
    return by_rule(space, weights_of(space, alpha, alone=alone, beta=beta, alive=alive))


def weights_of(
    space: SearchSpace, alpha: Mapping[str, Sequence[Sequence[float]]], *, alone: bool = False,
    beta: Mapping[str, Sequence[float]] | None = None, alive: Mapping[str, Sequence[Sequence[bool]]] | None = None,
) -> dict[str, list[list[float]]]:  # fmt: skip
    """What `derive` compares, by kind of cell [edges][operations]; negative for what is no candidate."""
    tables = probabilities(space, alpha)
    for spec in space.cells:
        rows = tables[spec.kind]
        if alone:
            rows = [[sigmoid(logit) for logit in row] for row in alpha[spec.kind]]
        if alive is not None:
            rows = [_among(row, mask, alone) for row, mask in zip(rows, alive[spec.kind], strict=True)]
        for row, excluded in zip(rows, space.excluded(spec.kind), strict=True):
            for column in excluded:
                row[column] = -1.0
        if beta is not None:
            shares = _edge_weights(spec, beta[spec.kind])
            rows = [[share * value for value in row] for share, row in zip(shares, rows, strict=True)]
        tables[spec.kind] = rows
    return tables


def by_rule(space: SearchSpace, weights: Mapping[str, Sequence[Sequence[float]]]) -> Genotype:
    """The genotype that the space's rule makes of `weights_of`."""
    rule = _top2 if space.rule == "top2" else _argmax
    return Genotype(space.family, tuple((spec.kind, rule(space, spec, weights[spec.kind])) for spec in space.cells))


def _among(row: Sequence[float], alive: Sequence[bool], alone: bool) -> list[float]:
    """The row of the candidates, of sum 1 unless each stands alone; others below all of them."""
    total = 1.0 if alone else sum(value for value, mine in zip(row, alive, strict=True) if mine)
    return [value / total if mine else -1.0 for value, mine in zip(row, alive, strict=True)]


def _edge_weights(spec: CellSpec, beta: Sequence[float]) -> list[float]:
    """Softmax over the incoming edges of each node."""
    weights = [0.0] * len(beta)
    for node in range(spec.inputs, spec.num_states):
        rows = [row for row, edge in enumerate(spec.edges) if edge.target == node]
        for row, weight in zip(rows, softmax([beta[row] for row in rows]), strict=True):
            weights[row] = weight
    return weights


def _top2(space: SearchSpace, spec: CellSpec, rows: Sequence[Sequence[float]]) -> CellGenotype:
    allowed = [index for index, operation in enumerate(space.operations) if operation != ZERO]
    best = [max(allowed, key=row.__getitem__) for row in rows]
    pairs: list[tuple[str, int]] = []
    for node in range(spec.inputs, spec.num_states):
        incoming = [edge for edge, place in enumerate(spec.edges) if place.target == node]
        incoming.sort(key=lambda edge: -rows[edge][best[edge]])
        pairs += [(space.operations[best[edge]], spec.edges[edge].source) for edge in incoming[:2]]
    return CellGenotype(tuple(pairs), spec.concat)


def _argmax(space: SearchSpace, spec: CellSpec, rows: Sequence[Sequence[float]]) -> CellGenotype:
    best = [max(range(space.num_operations), key=row.__getitem__) for row in rows]
    return CellGenotype(
        tuple((space.operations[index], edge.source) for index, edge in zip(best, spec.edges, strict=True)),
        spec.concat,
    )


def skip_count(genotype: Genotype) -> dict[str, int]:
    """Number of skip-connects in each kind of cell; many of them in the normal cell are DARTS' collapse.

    In a chain the layers that are left out: FBNet's `skip` is a convolution where there is no shortcut.
    """
    return {
        kind: sum(
            name == SKIP or (name in CHAIN_SKIPS and edge.shortcut)
            for (name, _), edge in zip(cell.pairs, genotype.spec(kind).edges, strict=True)
        )
        for kind, cell in genotype.cells
    }


def skips_name(space: SearchSpace) -> str:
    """What `skip_count` counts there."""
    return "skip-connects" if space.chain is None else "layers left out"
