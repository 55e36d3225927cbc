"""What a search is told about the derived network's resources: its costs and its limits, out of the configuration."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from .config import SearchConfig
from .constrained import Limit, require_possible
from .costs import CostTable, NetworkSize, counted, target_size
from .latency_table import load_latency
from .quantities import LIMITS, Resource, parse_quantity
from .space import space_named


@cache
def _counted(space_name: str, size: NetworkSize) -> dict[Resource, CostTable]:
    return counted(space_named(space_name), size)


def cost_table(config: SearchConfig, resource: Resource, size: NetworkSize) -> CostTable:
    """What choices cost in a network of that size.

    Raises:
        ConfigError: for a size that the network cannot have, or a device table that is missing, damaged or of another
            space or size.
    """
    space = space_named(config.space)
    if resource != "latency":
        return _counted(config.space, size)[resource]
    table = load_latency(Path(config.device_table))
    table.require(space, size)
    return table.costs()


def limits_of(config: SearchConfig, classes: int) -> list[Limit]:
    """The limits on the derived network, all of which can be kept at once.

    Args:
        config: of the search; its keys `max_params`, `max_macs`, `target_latency` and `target_*`.
        classes: of the data.

    Raises:
        ConfigError: as `cost_table`, or where no candidate is within them; the message tells the smallest cost.
    """
    size = target_size(config, classes)
    limits = [
        Limit(key, cost_table(config, resource, size), parse_quantity(key, resource, getattr(config, key)))
        for key, resource in LIMITS.items()
        if getattr(config, key)
    ]
    require_possible(space_named(config.space), limits)
    return limits


def reference(config: SearchConfig, table: CostTable) -> float | None:
    """What an expected cost is held against: `cost_target`, or the limit on the same resource; None for neither."""
    key = next(key for key, resource in LIMITS.items() if resource == table.resource)
    text = config.cost_target or getattr(config, key)
    return parse_quantity("cost_target" if config.cost_target else key, table.resource, text) if text else None
