"""Judging a derived cell with the super-net's own weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F

from ..errors import ConfigError
from ..images.batches import Batch
from ..learning.sampler import Sampler
from ..run.dist import Ranks
from ..spaces.constrained import Limit, most_probable
from ..spaces.derive import weights_of
from ..spaces.genotype import CellGenotype, Genotype
from ..spaces.space import SearchSpace
from ..supernet.paths import Paths, fixed_paths
from ..supernet.supernet import SuperNet

# Of a race among random cells: batches of its first round, and cells in its second.
RACE_BATCHES, FINALISTS = 10, 10
# Random cells that are drawn for one within the limits.
MOST_DRAWS = 1000


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


def derived(sampler: Sampler, limits: Sequence[Limit] = ()) -> Genotype:
    """The genotype that the sampler's alpha, beta and candidates stand for, the most probable one within the limits.

    Raises:
        NumericsError: where a logit is NaN or infinite.
        ConfigError: where nothing is within the limits.
    """
    weights = weights_of(
        sampler.space,
        {kind: alpha.tolist() for kind, alpha in sampler.alpha.items()},
        alone=sampler.config.relaxation == "sigmoid",
        beta={kind: beta.tolist() for kind, beta in sampler.beta.items()} if sampler.beta else None,
        alive=None if sampler.everything_alive else {kind: sampler.alive(kind).tolist() for kind in sampler.alpha},
    )
    return most_probable(sampler.space, weights, limits)


def random_cells(space: SearchSpace, seed: int, count: int, limits: Sequence[Limit] = ()) -> list[Genotype]:
    """Cells drawn uniformly: two different inputs for each node and a candidate for each, `none` where it is one.

    NAS-Bench-201 has all edges, so that only the operations are drawn. Source: `sample_arch` of
    liamcli/randomNAS_release (Li and Talwalkar 2019). Uniform among those within the limits: others are drawn again.

    Raises:
        ConfigError: where hardly any cell is within the limits.
    """
    chance = random.Random(seed)
    found: list[Genotype] = []
    for _ in range(MOST_DRAWS * count if limits else count):
        cell = _random_cell(space, chance)
        if all(limit.table.of(cell) <= limit.most for limit in limits):
            found.append(cell)
        if len(found) == count:
            break
    if len(found) < count:
        raise ConfigError(
            "random cells are hardly ever within the limits", got=f"{len(found)} of {MOST_DRAWS * count}",
            allowed=f"1 in {MOST_DRAWS}", next="larger limits, or --set choose=alpha",
        )  # fmt: skip
    return found


def _random_cell(space: SearchSpace, chance: random.Random) -> Genotype:
    cells = []
    for spec in space.cells:
        pairs: list[tuple[str, int]] = []
        candidates = space.names_of(spec.kind)
        for node in range(spec.inputs, spec.num_states):
            incoming = [row for row, edge in enumerate(spec.edges) if edge.target == node]
            kept = chance.sample(incoming, 2) if space.rule == "top2" else incoming
            pairs += [(chance.choice(candidates[row]), spec.edges[row].source) for row in kept]
        cells.append((spec.kind, CellGenotype(tuple(pairs), spec.concat)))
    return Genotype(space.family, tuple(cells))


def best_of(
    cells: Sequence[Genotype],
    net: SuperNet,
    batches: Callable[[int], Iterable[Batch]],
    device: torch.device,
    stop: Callable[[], bool],
    ranks: Ranks | None = None,
) -> tuple[Genotype, float] | None:
    """The most accurate of some cells with the super-net's weights, and its accuracy; None where `stop` said so.

    All on RACE_BATCHES batches, then the FINALISTS best of them on all (Li and Talwalkar 2019, and their code). Ties
    go to the first.

    Args:
        cells, net: what is judged.
        batches: that many of the first batches, all for 0; those of this process.
        device: of the net.
        stop: asked before each batch.
        ranks: the processes that judge together.
    """
    space = net.space
    left = list(cells)
    accuracies: list[float] = []
    for count, survivors in ((RACE_BATCHES, FINALISTS), (0, 1)):
        accuracies = []
        for cell in left:
            judged = evaluate(net, genotype_paths(space, cell, device), batches(count), device, stop, ranks)
            if judged is None:
                return None
            accuracies.append(judged[1])
        order = sorted(range(len(left)), key=lambda n: -accuracies[n])[:survivors]
        left, accuracies = [left[n] for n in order], [accuracies[n] for n in order]
    return left[0], accuracies[0]


@torch.no_grad()
def evaluate(
    net: SuperNet, paths: Paths, batches: Iterable[Batch], device: torch.device, stop: Callable[[], bool],
    ranks: Ranks | None = None,
) -> tuple[float, float] | None:  # fmt: skip
    """(mean cross-entropy, accuracy) over the batches of all processes, or None where one's `stop` said so.

    BatchNorm uses each batch's own statistics, as everywhere in the search.
    """
    ranks = Ranks() if ranks is None else ranks
    loss_sum, hits, total, stopped = 0.0, 0, 0, False
    with ranks.together("the evaluation"):
        for batch in batches:
            stopped = stop()
            if stopped:
                break
            labels = batch.labels_B.to(device)
            logits = net(batch.images_BCHW.to(device), paths)
            loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
            hits += int((logits.argmax(-1) == labels).sum())
            total += len(labels)
    loss_sum, all_hits, all_images, stops = ranks.total("the evaluation", (loss_sum, hits, total, stopped))
    return None if stops else (loss_sum / all_images, all_hits / all_images)
