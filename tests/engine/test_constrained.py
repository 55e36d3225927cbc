"""Costs of choices against the count of whole networks, and the best architecture within limits against all of them."""

from __future__ import annotations

import itertools
import random
from dataclasses import asdict

import pytest
from msgdas.engine.errors import ConfigError
from msgdas.engine.search.evaluate import random_cells
from msgdas.engine.spaces.constrained import Limit, Option, best_choice, most_probable, require_possible
from msgdas.engine.spaces.costs import CostTable, NetworkSize, counted
from msgdas.engine.spaces.counting import count
from msgdas.engine.spaces.derive import derive, weights_of
from msgdas.engine.spaces.quantities import parse_quantity, quantity_text
from msgdas.engine.spaces.space import DARTS, IMAGENET_FBNET, IMAGENET_MOBILE, NASBENCH201, S1, SearchSpace

CIFAR = NetworkSize(36, 20, 32, 10, "cifar")
IMAGENET = NetworkSize(48, 14, 224, 1000, "imagenet")
TABULAR = NetworkSize(16, 15, 32, 10, "cifar")
PLACES = [
    (DARTS, CIFAR),
    (DARTS, IMAGENET),
    (S1, CIFAR),
    (NASBENCH201, TABULAR),
    (IMAGENET_MOBILE, NetworkSize(32, 21, 224, 1000, "imagenet")),
    (IMAGENET_FBNET, NetworkSize(16, 22, 224, 1000, "imagenet")),
]


def random_alpha(space: SearchSpace, seed: int, scale: float = 2.0) -> dict[str, list[list[float]]]:
    chance = random.Random(seed)
    return {spec.kind: [[chance.gauss(0, scale) for _ in space.operations] for _ in spec.edges] for spec in space.cells}


@pytest.mark.parametrize(("space", "size"), PLACES, ids=lambda value: getattr(value, "name", ""))
def test_costs_of_choices_add_up_to_the_count(space: SearchSpace, size: NetworkSize) -> None:
    tables = counted(space, size)
    for genotype in random_cells(space, 7, 40):
        cost = count(genotype, **asdict(size))
        assert tables["params"].of(genotype) == cost.params
        assert tables["macs"].of(genotype) == cost.macs


def test_costs_are_those_of_the_operations() -> None:
    """Two depthwise-separable 5x5 in each of the six normal cells at C, 2C and 4C."""
    table = counted(DARTS, CIFAR)["params"].tables["normal"]
    once = [2 * (25 * c + c * c + 2 * c) for c in (36, 72, 144)]
    assert table[0][DARTS.operations.index("sep_conv_5x5")] == 6 * sum(once)
    assert all(row[DARTS.operations.index(name)] == 0 for row in table for name in ("none", "skip_connect"))


@pytest.mark.parametrize(("space", "size"), [PLACES[1], *PLACES[3:]], ids=lambda value: getattr(value, "name", ""))
@pytest.mark.parametrize("resource", ["params", "macs"])
def test_never_above_the_limit(space: SearchSpace, size: NetworkSize, resource: str) -> None:
    """50 random alphas, limits from just possible to never binding."""
    table = counted(space, size)[resource]
    sizes = sorted(table.of(genotype) for genotype in random_cells(space, 3, 50))
    bound = 0
    for seed in range(50):
        weights = weights_of(space, random_alpha(space, seed))
        most = sizes[seed % 25]
        found = most_probable(space, weights, [Limit("max", table, most)])
        assert table.of(found) <= most
        assert getattr(count(found, **asdict(size)), resource) <= most
        free = derive(space, random_alpha(space, seed))
        bound += found != free
        assert most_probable(space, weights, [Limit("max", table, table.of(free))]) == free
    assert bound > 10


@pytest.mark.parametrize("limits", [1, 2, 3])
def test_best_of_all_choices(limits: int) -> None:
    """Against every combination of random options, whole numbers and fractions, loose and tight."""
    chance = random.Random(limits)
    infeasible = 0
    for _ in range(60):
        whole = chance.random() < 0.5
        groups = [
            [
                Option(
                    chance.gauss(0, 3),
                    tuple(chance.randint(0, 9) if whole else chance.random() for _ in range(limits)),
                )
                for _ in range(chance.randint(1, 5))
            ]
            for _ in range(5)
        ]
        budgets = [chance.uniform(2, 5) * (7 if whole else 0.7) for _ in range(limits)]
        every = [
            sum(option.score for option in options)
            for options in itertools.product(*groups)
            if all(sum(option.costs[axis] for option in options) <= budgets[axis] for axis in range(limits))
        ]
        found = best_choice(groups, budgets)
        if not every:
            assert found is None
            infeasible += 1
            continue
        assert found is not None
        assert all(sum(option.costs[axis] for option in found) <= budgets[axis] for axis in range(limits))
        assert sum(option.score for option in found) == pytest.approx(max(every), abs=1e-9)
    assert 0 < infeasible < 50


def test_best_of_all_cells_of_nasbench201() -> None:
    table = counted(NASBENCH201, TABULAR)["macs"]
    weights = weights_of(NASBENCH201, random_alpha(NASBENCH201, 11))["cell"]
    most = table.fixed + 0.3 * sum(max(row) for row in table.tables["cell"])
    best, chosen = -1.0, ()
    for operations in itertools.product(range(5), repeat=6):
        cost = table.fixed + sum(row[n] for row, n in zip(table.tables["cell"], operations, strict=True))
        product = 1.0
        for row, n in zip(weights, operations, strict=True):
            product *= row[n]
        if cost <= most and product > best:
            best, chosen = product, operations
    found = most_probable(NASBENCH201, {"cell": weights}, [Limit("max_macs", table, most)])
    assert [name for name, _ in found.cell("cell").pairs] == [NASBENCH201.operations[n] for n in chosen]


def test_long_chain_of_choices_is_quick_and_within() -> None:
    """22 layers of 9 operations with real costs, as FBNet's space has."""
    chance = random.Random(1)
    groups = [
        [Option(chance.gauss(0, 1), (chance.uniform(1e6, 3e7), chance.uniform(0.1, 3.0)), ((n, 0),)) for n in range(9)]
        for _ in range(22)
    ]
    found = best_choice(groups, [2.2e8, 25.0])
    assert found is not None and len(found) == 22
    assert sum(option.costs[0] for option in found) <= 2.2e8 and sum(option.costs[1] for option in found) <= 25.0


def test_impossible_limits_name_the_smallest_network() -> None:
    table = counted(NASBENCH201, TABULAR)["params"]
    with pytest.raises(ConfigError, match=r"max_params of 50 k parameters.*73\.\d+ k parameters or more"):
        require_possible(NASBENCH201, [Limit("max_params", table, 50_000)])
    require_possible(NASBENCH201, [Limit("max_params", table, table.fixed)])
    even = {"cell": [[1.0] * 5] * 6}
    smallest = most_probable(NASBENCH201, even, [Limit("max_params", table, table.fixed)])
    assert table.of(smallest) == table.fixed


def test_limits_that_exclude_each_other() -> None:
    rows = ((0.0, 1.0, 9.0, 9.0, 9.0),) * 6
    swapped = ((1.0, 0.0, 9.0, 9.0, 9.0),) * 6
    limits = [
        Limit("max_params", CostTable("params", NASBENCH201, 0, {"cell": rows}), 2),
        Limit("max_macs", CostTable("macs", NASBENCH201, 0, {"cell": swapped}), 2),
    ]
    with pytest.raises(ConfigError, match="all limits at once"):
        require_possible(NASBENCH201, limits)


def test_quantities() -> None:
    assert parse_quantity("max_macs", "macs", "600M") == 6e8
    assert parse_quantity("max_params", "params", " 5.5 M") == 5.5e6
    assert parse_quantity("max_params", "params", "1e6") == 1e6
    assert parse_quantity("target_latency", "latency", "0.08s") == 80
    assert quantity_text("macs", 6e8) == "600 M MACs" and quantity_text("latency", 80.0) == "80 ms"
    assert quantity_text("macs", 7_783_051.0, up=True) == "7.784 M MACs"
    assert quantity_text("macs", 7_784_000.0, up=True) == "7.784 M MACs"
    for text in ("", "600", "-5ms", "nan ms", "80 MACs", "0ms"):
        with pytest.raises(ConfigError, match="target_latency is no time"):
            parse_quantity("target_latency", "latency", text)
