"""Judging a derived cell with the super-net's own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from .batches import Batch
from .derive import derive
from .genotype import Genotype
from .paths import Paths, fixed_paths
from .sampler import Sampler
from .space import SearchSpace
from .supernet import SuperNet


def genotype_paths(space: SearchSpace, genotype: Genotype, device: torch.device) -> Paths:
    """The derived cell as paths of the super-net: its operations with gate 1, nothing on the other edges."""
    chosen: dict[str, tuple[tuple[int, ...], ...]] = {}
    for spec in space.cells:
        operations: dict[tuple[int, int], int] = {}
        for node, pairs in enumerate(genotype.node_pairs(spec.kind)):
            for name, source in pairs:
                operations[source, spec.inputs + node] = space.operations.index(name)
        chosen[spec.kind] = tuple(
            (operations[edge.source, edge.target],) if (edge.source, edge.target) in operations else ()
            for edge in spec.edges
        )
    return fixed_paths(space, chosen, device)


def derived(sampler: Sampler) -> Genotype:
    """The genotype that the sampler's alpha, beta and candidates stand for.

    Raises:
        NumericsError: where a logit is NaN or infinite.
    """
    everything = sampler.num_alive == sampler.space.num_operations
    return derive(
        sampler.space,
        {kind: alpha.tolist() for kind, alpha in sampler.alpha.items()},
        alone=sampler.config.relaxation == "sigmoid",
        beta={kind: beta.tolist() for kind, beta in sampler.beta.items()} if sampler.beta else None,
        alive=None if everything else {kind: sampler.alive(kind).tolist() for kind in sampler.alpha},
    )


@torch.no_grad()
def evaluate(
    net: SuperNet, paths: Paths, batches: Iterable[Batch], device: torch.device, stop: Callable[[], bool]
) -> tuple[float, float] | None:
    """(mean cross-entropy, accuracy) over the batches, or None where `stop` said so.

    BatchNorm uses each batch's own statistics, as everywhere in the search.
    """
    loss_sum, hits, total = 0.0, 0, 0
    for batch in batches:
        if stop():
            return None
        labels = batch.labels_B.to(device)
        logits = net(batch.images_BCHW.to(device), paths)
        loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
        hits += int((logits.argmax(-1) == labels).sum())
        total += len(labels)
    return loss_sum / total, hits / total
