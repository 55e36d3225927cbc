"""Measured latencies of a space's operations, in the JSON file that `msgdas latency` writes.

A lookup table predicts a network's latency as the sum of its parts (ProxylessNAS, FBNet); a linear model fitted to
whole networks corrects it (latency_fit.py). Both are sums over the
chosen operations, so that both serve as a cost and as a limit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .costs import CostTable, NetworkSize, Table, tabulate
from .counting import names_of, network_skeleton
from .genotype import Genotype
from .space import CHAIN, FAMILIES, ResidualLayer, SearchSpace, space_named

FORMAT = 1
MAX_FILE_BYTES = 1 << 24
NEXT = "msgdas latency --out FILE"


@dataclass(frozen=True, order=True, slots=True)
class Site:
    """An operation where a network has it: channels of its input and output, side of its output, stride."""

    name: str
    channels_in: int
    channels: int
    side: int
    stride: int


@dataclass(frozen=True, slots=True)
class Part:
    """A measured place: the quickest of its passes at batch 1, median over the edges that have it.

    `spread` is half the distance of the passes' quartiles by their median.
    """

    place: Site
    ms: float
    spread: float


@dataclass(frozen=True, slots=True)
class Latencies:
    """A device's latencies of one space at one size.

    Attributes:
        space: its name.
        size: of the derived network.
        provenance: device, threads, clock and versions.
        parts: every operation in every place.
        rest_ms: all of a network but its chosen operations.
        fixed_ms, tables: the lookup table, as a CostTable's.
        fitted_ms, fitted: fixed part and tables of the linear model; None where none was fitted.
        fit: what is known of the model: number of networks, errors.
    """

    space: str
    size: NetworkSize
    provenance: Mapping[str, Any]
    parts: tuple[Part, ...]
    rest_ms: float
    fixed_ms: float
    tables: Mapping[str, Table]
    fitted_ms: float | None = None
    fitted: Mapping[str, Table] | None = None
    fit: Mapping[str, Any] | None = None

    def costs(self, *, lookup: bool = False) -> CostTable:
        """Latency by the linear model, or by the lookup table where none was fitted or `lookup` is set."""
        space = space_named(self.space)
        if lookup or self.fitted is None or self.fitted_ms is None:
            return CostTable("latency", space, self.fixed_ms, self.tables)
        return CostTable("latency", space, self.fitted_ms, self.fitted)

    def require(self, space: SearchSpace, size: NetworkSize) -> None:
        """Raise ConfigError where the file is not of that size and that space's family."""
        family = FAMILIES[space.family].name
        measured, wanted = {"space": self.space, **asdict(self.size)}, {"space": family, **asdict(size)}
        other = [name for name, value in wanted.items() if measured[name] != value]
        if other:
            flags = " ".join(f"--{name} {value}" for name, value in wanted.items())
            raise ConfigError(
                "the device table is of another network", got=", ".join(f"{name} {measured[name]}" for name in other),
                allowed=", ".join(f"{name} {wanted[name]}" for name in other),
                next=f"msgdas latency {flags} --out FILE",
            )  # fmt: skip

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)


def places(genotype: Genotype, size: NetworkSize) -> list[Site]:
    """Of the chosen operations of the derived network, layer by layer in the order of their edges."""
    skeleton = network_skeleton(genotype, channels=size.channels, layers=size.layers, stem=size.stem)
    side = size.image
    for stem in skeleton.stems:
        for conv in stem.convs:
            side //= conv.stride
    found = []
    for layer in skeleton.layers:
        if isinstance(layer, ResidualLayer):
            side //= 2
            continue
        side = side // 2 if layer.spec.reduction else side
        if not layer.fixed:
            chain = layer.spec.kind == CHAIN
            before = layer.channels_in[0] if chain else layer.channels
            for name, edge in zip(names_of(genotype, layer), layer.spec.edges, strict=True):
                found.append(Site(name, before, layer.channels, side, edge.stride))
    return found


def lookup_table(parts: Mapping[Site, float], fixed_ms: float, space: SearchSpace, size: NetworkSize) -> CostTable:
    """The table whose prediction is the sum of the parts' times and the fixed rest."""

    def predicted(genotype: Genotype) -> tuple[float]:
        return (fixed_ms + sum(parts[place] for place in places(genotype, size)),)

    ((fixed, tables),) = tabulate(space, predicted)
    return CostTable("latency", space, fixed, tables)


def load_latency(path: Path) -> Latencies:
    """The file's latencies.

    Raises:
        ConfigError: where it is missing, too large, not JSON, of another format, or has a number that is none.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
        data = json.loads(content)
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ValueError(f"no table of format {FORMAT}")
        return _checked(data)
    except OSError as error:
        got = error.strerror
    except RecursionError:
        got = "nested too deep"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        got = str(error)[:120]
    raise ConfigError(f"cannot read the device table {path}", got=got, allowed="a file of msgdas latency", next=NEXT)


def _checked(data: dict[str, Any]) -> Latencies:
    wrong = set(data) ^ {field.name for field in fields(Latencies)}
    if wrong:
        raise ValueError(f"keys {', '.join(sorted(map(str, wrong)))[:80]}")
    space = space_named(data["space"])
    data["size"] = NetworkSize(**data["size"])
    data["parts"] = tuple(
        Part(Site(**part["place"]), _number(part["ms"]), _number(part["spread"])) for part in data["parts"]
    )
    data["tables"] = _table(space, data["tables"])
    _number(data["rest_ms"])
    _number(data["fixed_ms"])
    if data["fitted"] is not None:
        data["fitted"] = _table(space, data["fitted"])
        _number(data["fitted_ms"])
    return Latencies(**data)


def _table(space: SearchSpace, tables: Mapping[str, Any]) -> dict[str, Table]:
    if sorted(tables) != sorted(spec.kind for spec in space.cells):
        raise ValueError(f"tables of {', '.join(map(str, tables))[:80]}")
    found = {}
    for spec in space.cells:
        rows = tuple(tuple(_number(value) for value in row) for row in tables[spec.kind])
        if len(rows) != len(spec.edges) or any(len(row) != space.num_operations for row in rows):
            raise ValueError(f"table of {spec.kind} has not {len(spec.edges)} rows of {space.num_operations}")
        found[spec.kind] = rows
    return found


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]} is no latency")
    return float(value)
