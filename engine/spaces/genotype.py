"""Genotypes: the answer of a search, as pure data that is checked when it is built.

Four spaces are known. A DARTS genotype has the cells `normal` and `reduce`; each reads the two cells before it
(states 0 and 1), each of its nodes adds two operations, and `concat` lists the nodes that form its output.
A NAS-Bench-201 genotype has one `cell` with three nodes; node j adds one operation from each of the j earlier
states. A genotype of a mobile chain (`mobile`, `fbnet`) has one `chain`: an operation for each of its layers.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import GenotypeError
from .space import (
    CHAIN,
    DARTS,
    FAMILIES,
    NASBENCH201,
    NASBENCH201_OPERATIONS,
    PUBLISHED_OPERATIONS,
    CellSpec,
    Edge,
)

MAX_FILE_BYTES = 1 << 20
CHAINS = tuple(family for family, space in FAMILIES.items() if space.chain is not None)
EXAMPLE = '{"normal": [["sep_conv_3x3", 0], ...], "normal_concat": [2, ...], "reduce": [...], ...}'
DARTS_KINDS = tuple(spec.kind for spec in DARTS.cells)
_ARCH_TERM = re.compile(r"([A-Za-z0-9_]{1,40})~([0-9]{1,3})")

Pairs = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class CellGenotype:
    """One derived cell.

    Attributes:
        pairs: (operation, input state) in node order.
        concat: states that form the cell's output.
    """

    pairs: Pairs
    concat: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Genotype:
    """The derived cells of a search space, by kind.

    Attributes:
        space: `darts`, `nasbench201`, `mobile` or `fbnet`.
        cells: (kind, cell) in the space's order.

    Raises:
        GenotypeError: when built with anything that the space cannot express.
    """

    space: str
    cells: tuple[tuple[str, CellGenotype], ...]

    def __post_init__(self) -> None:
        _check(self)

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(kind for kind, _ in self.cells)

    def cell(self, kind: str) -> CellGenotype:
        return next(cell for name, cell in self.cells if name == kind)

    def node_pairs(self, kind: str) -> tuple[Pairs, ...]:
        """(operation, input state) of each node: two in DARTS, one per earlier state in NAS-Bench-201, one a layer."""
        pairs = self.cell(kind).pairs
        if self.space in CHAINS:
            return tuple((pair,) for pair in pairs)
        if self.space == DARTS.name:
            return tuple(pairs[start : start + 2] for start in range(0, len(pairs), 2))
        nodes = NASBENCH201.cells[0].nodes
        return tuple(pairs[node * (node - 1) // 2 : node * (node + 1) // 2] for node in range(1, nodes + 1))

    def spec(self, kind: str) -> CellSpec:
        """The cell's type with its own nodes and concat, and one edge per pair in the order of the pairs."""
        if self.space != DARTS.name:
            return FAMILIES[self.space].cell(kind)
        reduction = DARTS.cell(kind).reduction
        nodes = self.node_pairs(kind)
        edges = tuple(
            Edge(source, 2 + node, 2 if reduction and source < 2 else 1)
            for node, pairs in enumerate(nodes)
            for _, source in pairs
        )
        return CellSpec(kind, 2, len(nodes), edges, self.cell(kind).concat, preprocess=True, reduction=reduction)

    def to_json_dict(self) -> dict[str, Any]:
        """`{"normal": [[op, input], ...], ...}`, `{"arch": "|op~0|+..."}` or `{"mobile": [op, ...]}`."""
        if self.space == NASBENCH201.name:
            return {"arch": self.arch}
        if self.space in CHAINS:
            return {self.space: list(self.layers)}
        data: dict[str, Any] = {}
        for kind, cell in self.cells:
            data[kind] = [[operation, source] for operation, source in cell.pairs]
            data[f"{kind}_concat"] = list(cell.concat)
        return data

    @property
    def layers(self) -> tuple[str, ...]:
        """The operation of each layer; only for a genotype of a chain."""
        assert self.space in CHAINS, self.space
        return tuple(operation for operation, _ in self.cell(CHAIN).pairs)

    @property
    def arch(self) -> str:
        """NAS-Bench-201's string (D-X-Y/NAS-Bench-201); only for a genotype of that space."""
        assert self.space == NASBENCH201.name, self.space
        nodes = self.node_pairs("cell")
        return "+".join("|" + "".join(f"{operation}~{source}|" for operation, source in pairs) for pairs in nodes)

    @classmethod
    def from_json_dict(cls, data: object) -> Genotype:
        """The genotype that `to_json_dict` wrote.

        Raises:
            GenotypeError: for missing or further keys, wrong types, unknown operations or impossible inputs.
        """
        if not isinstance(data, Mapping):
            _refuse("a genotype is a JSON object", type(data).__name__, EXAMPLE)
        if "arch" in data:
            _check_keys(data, ("arch",))
            return from_arch(data["arch"])
        for family in CHAINS:
            if family in data:
                _check_keys(data, (family,))
                return from_layers(family, data[family])
        _check_keys(data, tuple(key for kind in DARTS_KINDS for key in (kind, f"{kind}_concat")))
        cells = tuple((kind, _read_cell(kind, data[kind], data[f"{kind}_concat"])) for kind in DARTS_KINDS)
        return cls(DARTS.name, cells)

    @classmethod
    def load(cls, path: Path) -> Genotype:
        """The genotype in a JSON file of at most 1 MiB.

        Raises:
            GenotypeError: for a file that is missing, too large, not JSON or not a genotype.
        """
        return cls.from_json_dict(parse_json(read_text(path), path))

    def save(self, path: Path) -> None:
        """Write the JSON file: beside its place first, then renamed, so that a reader never sees half of it.

        Raises:
            GenotypeError: where the file cannot be written.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(json.dumps(self.to_json_dict()) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise GenotypeError(
                f"cannot write the genotype {path}", got=error.strerror, allowed="a writable folder",
                next="another path",
            ) from None  # fmt: skip


def from_arch(text: object) -> Genotype:
    """The genotype of a NAS-Bench-201 string such as `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`.

    Raises:
        GenotypeError: for anything else.
    """
    example = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
    if not isinstance(text, str):
        _refuse("a NAS-Bench-201 cell is a string", type(text).__name__, example)
    pairs: list[tuple[str, int]] = []
    nodes = text.strip().split("+")
    for node, part in enumerate(nodes, start=1):
        terms = [_ARCH_TERM.fullmatch(term) for term in part.strip("|").split("|")]
        found = [(term.group(1), int(term.group(2))) for term in terms if term]
        whole = "|" + "".join(f"{operation}~{source}|" for operation, source in found)
        if whole != part or [source for _, source in found] != list(range(node)):
            _refuse(f"node {node} of a NAS-Bench-201 cell reads each earlier state once, in order", part, example)
        pairs += found
    return Genotype(NASBENCH201.name, (("cell", CellGenotype(tuple(pairs), NASBENCH201.cells[0].concat)),))


def from_layers(family: str, names: object) -> Genotype:
    """The genotype of a chain, `mobile` or `fbnet`, from the operation of each of its layers.

    Raises:
        GenotypeError: for anything but a list of as many operations as the chain has layers.
    """
    spec = FAMILIES[family].cell(CHAIN)
    if not isinstance(names, list | tuple) or len(names) != len(spec.edges):
        got = len(names) if isinstance(names, list | tuple) else type(names).__name__
        _refuse(f"a genotype of space {family} lists the operation of each layer", got, f"{len(spec.edges)} operations")
    pairs = tuple((name, edge.source) for name, edge in zip(names, spec.edges, strict=True))
    return Genotype(family, ((CHAIN, CellGenotype(pairs, spec.concat)),))


def read_text(path: Path) -> str:
    """The text of a genotype file. Raises GenotypeError where it is missing, over 1 MiB or not UTF-8."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            _refuse(f"{path} is too large for a genotype", "more bytes", f"{MAX_FILE_BYTES} bytes")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise GenotypeError(
            f"cannot read the genotype {path}", got=error.strerror,
            allowed="a genotype file, a run folder, or a published name as DARTS_V2",
            next="msgdas search demo makes one",
        ) from None  # fmt: skip
    except UnicodeDecodeError:
        _refuse(f"{path} is not text", "bytes that are not UTF-8", EXAMPLE)


def parse_json(text: str, path: Path) -> object:
    """The JSON value in `text`. Raises GenotypeError where it is none or a key comes twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key comes twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        _refuse(f"{path} is not JSON", str(error)[:120], EXAMPLE)


def _refuse(what: str, got: object, allowed: str) -> NoReturn:
    shown = str(got)
    shown = shown if len(shown) <= 120 else f"{shown[:117]}..."
    raise GenotypeError(what, got=shown, allowed=allowed, next="mend the genotype, then msgdas show FILE")


def _check_keys(data: Mapping[Any, Any], allowed: tuple[str, ...]) -> None:
    wrong = [f"no {key}" for key in allowed if key not in data] + [
        reprlib.repr(key) for key in data if key not in allowed
    ]
    if wrong:
        _refuse("a genotype has exactly these keys", wrong[0], ", ".join(allowed))


def _read_cell(kind: str, pairs: object, concat: object) -> CellGenotype:
    if not isinstance(pairs, list | tuple) or not isinstance(concat, list | tuple):
        _refuse(
            f"{kind} and {kind}_concat are lists",
            f"{type(pairs).__name__} and {type(concat).__name__}",
            EXAMPLE,
        )
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            _refuse(f"{kind} lists pairs [operation, input]", reprlib.repr(pair), EXAMPLE)
    return CellGenotype(tuple((pair[0], pair[1]) for pair in pairs), tuple(concat))


def _is_state(value: object, low: int, high: int) -> bool:
    """Whether value is an integer with low <= value < high; True and 1.0 are none."""
    return type(value) is int and low <= value < high


def _check(genotype: Genotype) -> None:
    if genotype.space == NASBENCH201.name:
        kinds: tuple[str, ...] = ("cell",)
    elif genotype.space == DARTS.name:
        kinds = DARTS_KINDS
    elif genotype.space in CHAINS:
        kinds = (CHAIN,)
    else:
        _refuse("unknown space of a genotype", reprlib.repr(genotype.space), ", ".join(FAMILIES))
    if genotype.kinds != kinds:
        _refuse(f"a genotype of space {genotype.space} has these cells", genotype.kinds, ", ".join(kinds))
    for kind, cell in genotype.cells:
        if genotype.space == DARTS.name:
            _check_darts_cell(kind, cell)
        elif genotype.space in CHAINS:
            _check_chain(genotype.space, cell)
        else:
            _check_nasbench201_cell(cell)


def _check_operation(kind: str, operation: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(operation, str) or operation not in allowed:
        _refuse(f"unknown operation in {kind}", reprlib.repr(operation), ", ".join(allowed))


def _check_darts_cell(kind: str, cell: CellGenotype) -> None:
    if not cell.pairs or len(cell.pairs) % 2:
        _refuse(f"{kind} has two pairs per node", f"{len(cell.pairs)} pairs", "2, 4, 6, ... pairs")
    for index, (operation, source) in enumerate(cell.pairs):
        _check_operation(kind, operation, PUBLISHED_OPERATIONS)
        node = 2 + index // 2
        if not _is_state(source, 0, node):
            _refuse(f"node {node} of {kind} reads an earlier state", reprlib.repr(source), f"0 to {node - 1}")
    states = 2 + len(cell.pairs) // 2
    for state in cell.concat:
        if not _is_state(state, 2, states):
            _refuse(f"{kind}_concat lists nodes of the cell", reprlib.repr(state), f"2 to {states - 1}")
    if not cell.concat or len(set(cell.concat)) != len(cell.concat):
        _refuse(f"{kind}_concat lists one node or more, each once", cell.concat, f"2 to {states - 1}")


def _check_nasbench201_cell(cell: CellGenotype) -> None:
    spec = NASBENCH201.cells[0]
    for operation, _ in cell.pairs:
        _check_operation(spec.kind, operation, NASBENCH201_OPERATIONS)
    sources = [source for _, source in cell.pairs]
    if sources != [edge.source for edge in spec.edges] or not all(_is_state(source, 0, 3) for source in sources):
        _refuse("a NAS-Bench-201 cell has an operation on each edge", sources, "inputs 0, 0, 1, 0, 1, 2")
    if cell.concat != spec.concat:
        _refuse("the output of a NAS-Bench-201 cell is its last node", cell.concat, str(spec.concat))


def _check_chain(family: str, cell: CellGenotype) -> None:
    space = FAMILIES[family]
    spec = space.cell(CHAIN)
    sources = [source for _, source in cell.pairs]
    if sources != [edge.source for edge in spec.edges] or cell.concat != spec.concat:
        _refuse(f"a chain of space {family} has an operation on each layer", sources, f"{len(spec.edges)} layers")
    for number, ((operation, _), allowed) in enumerate(zip(cell.pairs, space.names_of(CHAIN), strict=True), start=1):
        _check_operation(f"layer {number} of {family}", operation, allowed)
