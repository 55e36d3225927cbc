"""What a search is told about the derived network's resources: its costs and its limits, out of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from ..spaces.constrained import Limit, require_possible
from ..spaces.costs import CostTable, NetworkSize, counted, target_size
from ..spaces.latency_table import load_latency
from ..spaces.quantities import LIMITS, Resource, parse_quantity
from ..spaces.space import space_named
from .config import SearchConfig


@cache
def _counted(space_name: str, size: NetworkSize) -> dict[Resource, CostTable]:
    return counted(space_named(space_name), size)


def cost_table(space_name: str, resource: Resource, size: NetworkSize, device_table: str) -> CostTable:
    """What choices cost in a network of that size.

    Args:
        space_name, resource, size: of what.
        device_table: file of the latencies, read where the resource is one.

    Raises:
        ConfigError: for a size that the network cannot have, or a device table that is missing, damaged or of another
            space or size.
    """
    if resource != "latency":
        return _counted(space_name, size)[resource]
    table = load_latency(Path(device_table))
    table.require(space_named(space_name), size)
    return table.costs()


def limits_of(config: SearchConfig, classes: int) -> list[Limit]:
    """The limits on the derived network, all of which can be kept at once.

    Args:
        config: of the search; its keys `max_params`, `max_macs`, `target_latency` and `target_*`.
        classes: of the data.

    Raises:
        ConfigError: as `limits_at`.
    """
    texts = {key: getattr(config, key) for key in LIMITS}
    return limits_at(config.space, target_size(config, classes), texts, config.device_table)


def limits_at(space_name: str, size: NetworkSize, texts: Mapping[str, str], device_table: str) -> list[Limit]:
    """The limits in `texts`, by key, on a network of that size; an empty text is none.

    Raises:
        ConfigError: as `cost_table`, or where no candidate is within them; the message tells the smallest cost.
    """
    limits = [
        Limit(key, cost_table(space_name, resource, size, device_table), parse_quantity(key, resource, texts[key]))
        for key, resource in LIMITS.items()
        if texts[key]
    ]
    require_possible(space_named(space_name), limits)
    return limits


def reference(config: SearchConfig, table: CostTable) -> float | None:
    """What an expected cost is held against: `cost_target`, or the limit on the same resource; None for neither."""
    key = next(key for key, resource in LIMITS.items() if resource == table.resource)
    text = config.cost_target or getattr(config, key)
    return parse_quantity("cost_target" if config.cost_target else key, table.resource, text) if text else None
