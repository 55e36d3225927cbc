"""Spaces with fewer candidates: no draw, no gradient and no genotype takes an excluded operation."""

from __future__ import annotations

import pytest
import torch
from msgdas.engine.errors import ConfigError
from msgdas.engine.learning.assembly import build_learner
from msgdas.engine.learning.steps import Moment
from msgdas.engine.search.evaluate import derived
from msgdas.engine.settings.config import build
from msgdas.engine.spaces.space import S1, SKIP, SPACES, space_named

SIZE = {"channels": 4, "layers": 3, "image": 8, "batch": 4, "alpha_lr": 0.5, "device": "cpu"}
FEWER = [name for name, space in SPACES.items() if space.candidates and space.chain is None]


@pytest.mark.parametrize("gate", ["sampled", "recompute", "restricted", "score"])
@pytest.mark.parametrize("name", FEWER)
def test_excluded_operations_are_never_drawn_nor_derived(name, gate):
    space = space_named(name)
    config = build({"space": name, **SIZE, "k": 2, "mode": "subgraphs", "gate": gate}, {})
    learner, _, _ = build_learner(config, torch.device("cpu"), 3)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    for step in range(4):
        moment = Moment(step, tau=1.0, lr=0.1, drop_rate=0.3, guided=True)
        learner.alpha_step(images, labels, moment)
        learner.weight_step(images, labels, moment)
        for kind, indices_EK in learner.sampler.draw(1000 + step, 1.0, grad=False).indices.items():
            for drawn, excluded in zip(indices_EK.tolist(), space.excluded(kind), strict=True):
                assert not set(drawn) & set(excluded)
    for kind, p_EO in learner.sampler.probabilities().items():
        for edge, columns in enumerate(space.excluded(kind)):
            assert not p_EO[edge, list(columns)].any()
    genotype = derived(learner.sampler)
    assert genotype.space == space.family
    for kind in genotype.kinds:
        spec, edges = space.cell(kind), dict(space.candidates)[kind]
        places = {(edge.source, edge.target): names for edge, names in zip(spec.edges, edges, strict=True)}
        for node, pairs in enumerate(genotype.node_pairs(kind)):
            assert all(name in places[source, spec.inputs + node] for name, source in pairs)


def test_k_is_bounded_by_the_edge_with_the_fewest():
    assert [space_named(name).candidates_per_edge() for name in ("darts", "s1", "s3")] == [8, 2, 3]
    with pytest.raises(ConfigError, match="1 to 2"):
        build({"space": "s1", "k": 3}, {})
    assert build({"space": "s3", "method": "darts"}, {}).k == 3


def test_s1_is_the_published_table():
    normal, reduce = (edges for _, edges in S1.candidates)
    assert sum(SKIP in edge for edge in normal) == 12 and sum(SKIP in edge for edge in reduce) == 6
    assert normal[12] == normal[13] == ("dil_conv_3x3", "dil_conv_5x5")
    assert reduce[6] == ("max_pool_3x3", "sep_conv_3x3")
