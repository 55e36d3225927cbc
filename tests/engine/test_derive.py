"""Derivations that can be checked by hand."""

from __future__ import annotations

import math

import pytest
from msgdas.engine.errors import GenotypeError, NumericsError
from msgdas.engine.spaces.derive import derive, skip_count, softmax
from msgdas.engine.spaces.space import DARTS, NASBENCH201, SearchSpace

NONE, MAX, AVG, SKIP, SEP3, SEP5, DIL3, DIL5 = range(8)


def zeros(space: SearchSpace) -> dict[str, list[list[float]]]:
    return {spec.kind: [[0.0] * space.num_operations for _ in spec.edges] for spec in space.cells}


def test_top2_by_hand() -> None:
    """Edges are 02 12 | 03 13 23 | 04 14 24 34 | 05 15 25 35 45."""
    alpha = zeros(DARTS)
    normal = alpha["normal"]
    normal[0][SEP3], normal[1][SKIP] = 1.0, 2.0
    normal[2][NONE], normal[3][DIL5], normal[4][AVG] = 9.0, 1.0, 0.5
    normal[7][SEP5], normal[8][DIL3] = 3.0, 3.0
    normal[12][SKIP], normal[13][MAX] = 1.0, 5.0
    genotype = derive(DARTS, alpha)
    assert genotype.cell("normal").pairs == (
        ("skip_connect", 1), ("sep_conv_3x3", 0),
        ("dil_conv_5x5", 1), ("avg_pool_3x3", 2),
        ("sep_conv_5x5", 2), ("dil_conv_3x3", 3),
        ("max_pool_3x3", 4), ("skip_connect", 3),
    )  # fmt: skip
    assert genotype.cell("reduce").pairs == (("max_pool_3x3", 0), ("max_pool_3x3", 1)) * 4
    assert genotype.cell("normal").concat == (2, 3, 4, 5)
    assert skip_count(genotype) == {"normal": 2, "reduce": 0}


def test_none_lowers_an_edge_but_is_never_taken() -> None:
    """With `none` at 9 the edge 1->3 has the larger logit and yet the smaller probability."""
    alpha = zeros(DARTS)
    alpha["normal"][3][NONE], alpha["normal"][3][SEP5] = 9.0, 2.0
    pairs = derive(DARTS, alpha).node_pairs("normal")[1]
    assert pairs == (("max_pool_3x3", 0), ("max_pool_3x3", 2))


def test_argmax_takes_none_and_the_first_of_equals() -> None:
    alpha = zeros(NASBENCH201)
    alpha["cell"][1][0] = 1.0
    alpha["cell"][2][4] = alpha["cell"][2][2] = 1.0
    alpha["cell"][5][1] = 1.0
    arch = "|none~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|skip_connect~2|"
    assert derive(NASBENCH201, alpha).arch == arch


def test_softmax_at_extremes() -> None:
    assert softmax([1e308, 0.0, -1e308]) == [1.0, 0.0, 0.0]
    assert softmax([-1e4, -1e4]) == [0.5, 0.5]
    assert math.isclose(softmax([0.0, math.log(3.0)])[1], 0.75)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_fault_16_logits_that_are_not_finite(value: float) -> None:
    alpha = zeros(DARTS)
    alpha["reduce"][13][7] = value
    with pytest.raises(NumericsError, match="edge 13, dil_conv_5x5"):
        derive(DARTS, alpha)


def test_alpha_of_another_shape() -> None:
    alpha = zeros(DARTS)
    with pytest.raises(GenotypeError, match="13 rows"):
        derive(DARTS, {**alpha, "reduce": alpha["reduce"][:13]})
    with pytest.raises(GenotypeError, match="one table per cell"):
        derive(DARTS, {"normal": alpha["normal"]})
