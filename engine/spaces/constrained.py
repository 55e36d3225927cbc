"""The most probable architecture among those whose derived network stays within limits, exactly.

Ours. An architecture's score is the sum of the logarithms of what `derive.weights_of` says of its (edge, operation)
pairs; without a limit the best score is `derive.derive`'s own choice. The
choices of a node, an edge or a layer add to score and costs independently of the others', which makes this a
multiple-choice knapsack: dynamic programming over them keeps the choices that no other beats in score and every
cost, and leaves out what a Lagrangian bound shows to be worse than a known solution (Kellerer, Pferschy and Pisinger,
Knapsack Problems, 2004, chapter 11).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from .costs import CostTable, genotype_of
from .derive import by_rule
from .genotype import Genotype
from .quantities import quantity_text
from .space import ZERO, CellSpec, SearchSpace

# Of a limit, left for rounding where costs are sums of fractions.
SLACK = 1e-9
DUAL_STEPS, DUAL_ROUNDS = 40, 4
# Log weight of an operation whose weight is 0 in double precision.
LEAST = math.log(5e-324)


@dataclass(frozen=True, slots=True)
class Limit:
    """A cost that the derived network may not exceed.

    Attributes:
        key: of the configuration, for messages.
        table: of the costs.
        most: in the table's unit, inclusive.
    """

    key: str
    table: CostTable
    most: float

    def told(self, genotype: Genotype) -> str:
        """As `512 M MACs, at most 600 M MACs`."""
        resource = self.table.resource
        return f"{quantity_text(resource, self.table.of(genotype))}, at most {quantity_text(resource, self.most)}"


@dataclass(frozen=True, slots=True)
class Option:
    """One choice for a node or an edge: its log weight, its cost under each limit, and what it chooses."""

    score: float
    costs: tuple[float, ...]
    picks: tuple[tuple[int, int], ...] = ()


def most_probable(
    space: SearchSpace, weights: Mapping[str, Sequence[Sequence[float]]], limits: Sequence[Limit]
) -> Genotype:
    """The genotype with the largest product of weights within all limits: `by_rule`'s where that is.

    Args:
        space: whose rule applies: two incoming edges of every node, or an operation on every edge.
        weights: as `derive.weights_of` gives them.
        limits: none or more.

    Raises:
        ConfigError: where no genotype is within the limits; the message tells the smallest cost there is.
    """
    free = by_rule(space, weights)
    if all(limit.table.of(free) <= limit.most for limit in limits):
        return free
    groups = [
        (spec, options)
        for spec in space.cells
        for options in (_node_options if space.rule == "top2" else _edge_options)(
            space, spec, weights[spec.kind], [limit.table.tables[spec.kind] for limit in limits]
        )
    ]
    chosen = best_choice([options for _, options in groups], [limit.most - limit.table.fixed for limit in limits])
    if chosen is None:
        raise _impossible([options for _, options in groups], limits)
    picks: dict[str, list[tuple[int, int]]] = {spec.kind: [] for spec in space.cells}
    for (spec, _), option in zip(groups, chosen, strict=True):
        picks[spec.kind] += option.picks
    return genotype_of(space, picks)


def require_possible(space: SearchSpace, limits: Sequence[Limit]) -> None:
    """Raise ConfigError where no genotype of the space's candidates is within the limits."""
    even = {
        spec.kind: [
            [1.0 if name in names else -1.0 for name in space.operations] for names in space.names_of(spec.kind)
        ]
        for spec in space.cells
    }
    most_probable(space, even, limits)


def best_choice(groups: Sequence[Sequence[Option]], budgets: Sequence[float]) -> list[Option] | None:
    """One option of each group with the largest sum of scores whose sums of costs are within the budgets.

    None where there is none. Exact but for rounding; of equal scores any may come.
    """
    least = [sum(min(option.costs[axis] for option in group) for group in groups) for axis in range(len(budgets))]
    room = [
        budget - SLACK * abs(budget) * _has_fractions(groups, axis) - low
        for axis, (budget, low) in enumerate(zip(budgets, least, strict=True))
    ]
    if any(left < 0 for left in room):
        return None
    scaled = [_undominated(_scaled(group, room)) for group in groups]
    if not all(scaled):
        return None
    prices, incumbent = _prices(scaled, len(budgets))
    rest = [0.0] * (len(groups) + 1)
    for index in range(len(groups) - 1, -1, -1):
        rest[index] = rest[index + 1] + max(_priced(score, costs, prices) for score, costs, _ in scaled[index])
    states: list[_State] = [(0.0, (0.0,) * len(budgets), None)]
    for index, group in enumerate(scaled):
        grown: list[_State] = []
        for state in states:
            for score, costs, option in group:
                spent = tuple(before + more for before, more in zip(state[1], costs, strict=True))
                total = state[0] + score
                bound = _priced(total, spent, prices) + sum(prices) + rest[index + 1]
                if all(value <= 1 + 1e-12 for value in spent) and bound >= incumbent - 1e-9 * (1 + abs(incumbent)):
                    grown.append((total, spent, (state[2], option)))
        states = _undominated(grown)
    return _unrolled(states[0][2]) if states else None


def _has_fractions(groups: Sequence[Sequence[Option]], axis: int) -> bool:
    """Whether some cost on that axis is no whole number, so that sums of them are rounded."""
    return any(option.costs[axis] != int(option.costs[axis]) for group in groups for option in group)


_State = tuple[float, tuple[float, ...], object]


def _scaled(group: Sequence[Option], room: Sequence[float]) -> list[_State]:
    """(score, costs above the group's least in shares of the room, the option) of those that the room has place for."""
    least = [min(option.costs[axis] for option in group) for axis in range(len(room))]
    states: list[_State] = []
    for option in group:
        above = [cost - low for cost, low in zip(option.costs, least, strict=True)]
        if all(value <= left for value, left in zip(above, room, strict=True)):
            shares = [value / left if value else 0.0 for value, left in zip(above, room, strict=True)]
            states.append((option.score, tuple(shares), option))
    return states


def _priced(score: float, costs: tuple[float, ...], prices: Sequence[float]) -> float:
    return score - sum(price * cost for price, cost in zip(prices, costs, strict=True))


def _undominated(states: list[_State]) -> list[_State]:
    """Those that no other equals or beats in score and all costs, best score first."""
    kept: list[_State] = []
    for state in sorted(states, key=lambda state: (-state[0], state[1])):
        costs = state[1]
        if len(costs) == 1:
            beaten = bool(kept) and kept[-1][1][0] <= costs[0]
        else:
            beaten = any(all(mine <= his for mine, his in zip(other[1], costs, strict=True)) for other in kept)
        if not beaten:
            kept.append(state)
    return kept


def _prices(groups: Sequence[list[_State]], axes: int) -> tuple[list[float], float]:
    """Prices of the costs that make the Lagrangian bound small, and the best score that they led to, or -inf.

    One price after the other by bisection on whether the costs that it leads to are above 1.
    """
    prices, incumbent = [0.0] * axes, -math.inf

    def spent() -> list[float]:
        nonlocal incumbent
        best = [max(group, key=lambda state: _priced(state[0], state[1], prices)) for group in groups]
        total = [sum(state[1][axis] for state in best) for axis in range(axes)]
        if all(value <= 1 for value in total):
            incumbent = max(incumbent, sum(state[0] for state in best))
        return total

    if all(value <= 1 for value in spent()):
        return prices, incumbent
    for _ in range(DUAL_ROUNDS if axes > 1 else 1):
        for axis in range(axes):
            low, high = 0.0, 1e6
            for _ in range(DUAL_STEPS):
                # Geometric, since prices span many orders of magnitude.
                prices[axis] = math.sqrt(max(low, 1e-6) * high)
                low, high = (low, prices[axis]) if spent()[axis] <= 1 else (prices[axis], high)
            prices[axis] = high if high > 2e-6 else 0.0
            spent()
    return prices, incumbent


def _unrolled(chain: object) -> list[Option]:
    found: list[Option] = []
    while isinstance(chain, tuple):
        chain, option = chain
        found.append(option)
    return found[::-1]


def _candidates(space: SearchSpace, row: Sequence[float]) -> list[int]:
    """Operations that the rule may take on an edge; where none is alive, all that it knows."""
    known = [n for n in range(space.num_operations) if space.rule == "argmax" or space.operations[n] != ZERO]
    return [n for n in known if row[n] >= 0] or known


def _log(weight: float) -> float:
    return math.log(weight) if weight > 0 else LEAST * (1 + (weight < 0))


def _edge_options(
    space: SearchSpace, spec: CellSpec, rows: Sequence[Sequence[float]],
    tables: Sequence[Sequence[Sequence[float]]],
) -> list[list[Option]]:  # fmt: skip
    """The operations of each edge."""
    return [
        [Option(_log(row[n]), tuple(table[edge][n] for table in tables), ((edge, n),)) for n in _candidates(space, row)]
        for edge, row in enumerate(rows)
    ]


def _node_options(
    space: SearchSpace, spec: CellSpec, rows: Sequence[Sequence[float]],
    tables: Sequence[Sequence[Sequence[float]]],
) -> list[list[Option]]:  # fmt: skip
    """Pairs of edges with their operations for each node, heaviest first, of which no other pair is better."""
    edges = _edge_options(space, spec, rows, tables)
    groups = []
    for node in range(spec.inputs, spec.num_states):
        incoming = [edge for edge, place in enumerate(spec.edges) if place.target == node]
        pairs = [
            Option(
                one.score + other.score,
                tuple(a + b for a, b in zip(one.costs, other.costs, strict=True)),
                tuple(pick for option in sorted((one, other), key=lambda o: -o.score) for pick in option.picks),
            )
            for first, second in itertools.combinations(incoming, 2)
            for one in edges[first]
            for other in edges[second]
        ]
        groups.append(pairs)
    return groups


def _impossible(groups: Sequence[Sequence[Option]], limits: Sequence[Limit]) -> ConfigError:
    least = [
        limit.table.fixed + sum(min(option.costs[axis] for option in group) for group in groups)
        for axis, limit in enumerate(limits)
    ]
    shown = [quantity_text(limit.table.resource, value, up=True) for limit, value in zip(limits, least, strict=True)]
    over = [axis for axis, limit in enumerate(limits) if least[axis] > limit.most]
    axis = over[0] if over else 0
    limit = limits[axis]
    got = ", ".join(f"{one.key} of {quantity_text(one.table.resource, one.most)}" for one in limits)
    return ConfigError(
        "no derived network is within the limit" if over else "no derived network is within all limits at once",
        got=got, allowed=f"{shown[axis]} or more" if over else f"each alone from {', '.join(shown)} on",
        next=f"a larger {limit.key}, or smaller target_channels or target_layers",
    )  # fmt: skip
