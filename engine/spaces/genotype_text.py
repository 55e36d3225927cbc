"""Genotypes as other programs write them: DARTS' tuple text, NAS-Bench-201's string, collections in one file.

Text is read with `ast` and never run; DARTS' own `eval("genotypes.%s" % arch)` runs whatever it is given.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from ..errors import GenotypeError
from .genotype import DARTS_KINDS, Genotype, from_arch, parse_json, read_text
from .space import DARTS

CALL = "Genotype"
EXAMPLE = "Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=[2, 3, 4, 5], reduce=[...], ...)"
MAX_RANGE = 1 << 10
# Cells of quark0/darts, chenxin061/pdarts and yuhuixu1993/PC-DARTS, by the names in their genotypes.py.
PUBLISHED = Path(__file__).parent.parent / "assets" / "genotypes.json"
_GENOTYPE_KEYS = tuple(key for kind in DARTS_KINDS for key in (kind, f"{kind}_concat"))
_UNREADABLE = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)


def format_tuple_text(genotype: Genotype, name: str = "") -> str:
    """DARTS' text, `Genotype(normal=[...], ...)`, or `NAME = Genotype(...)` where a name is given.

    Raises:
        GenotypeError: for a genotype of another space, or a name that Python would not take.
    """
    if genotype.space != DARTS.name:
        raise GenotypeError(
            "only DARTS cells have tuple text",
            got=f"space {genotype.space}",
            allowed=DARTS.name,
            next="write JSON",
        )
    if name and not name.isidentifier():
        raise GenotypeError("a genotype's name is a Python name", got=repr(name), allowed="letters, digits, _")
    fields = (f"{kind}={list(cell.pairs)!r}, {kind}_concat={list(cell.concat)!r}" for kind, cell in genotype.cells)
    text = f"{CALL}({', '.join(fields)})"
    return f"{name} = {text}" if name else text


def parse_tuple_text(text: str, name: str = "") -> Genotype:
    """The genotype in DARTS' text: one expression, or assignments such as those of DARTS' genotypes.py.

    Args:
        text: Python source; only `Genotype(...)` calls with literals and `range` are looked at.
        name: which assignment; needed where there are several.

    Raises:
        GenotypeError: where no such genotype, or more than one, is in the text, or it is none of the space.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            body = ast.parse(text).body
    except _UNREADABLE as error:
        raise _unreadable(str(error) or type(error).__name__) from None
    return _from_call(_choose(_calls(body), name))


def load_any(target: str | Path) -> Genotype:
    """The genotype in a file: JSON, DARTS' tuple text or a NAS-Bench-201 string, at most 1 MiB.

    Args:
        target: a path, or `FILE:NAME` for one of several: an entry of `{"genotypes": {NAME: {...}}}`, of
            which only the genotype's own keys are read, or an assignment `NAME = Genotype(...)`. Where no such
            file is, one of `published()`'s names.

    Raises:
        GenotypeError: for a file that is missing, too large or none of these, or for a name it does not have.
    """
    path, name = Path(target), ""
    if not path.exists() and str(target) in published():
        return Genotype.from_json_dict(published()[str(target)])
    if not path.exists() and ":" in str(target):
        before, _, after = str(target).rpartition(":")
        path, name = Path(before), after
    text = read_text(path)
    start = text.lstrip()[:1]
    if start == "{":
        data = parse_json(text, path)
        if isinstance(data, Mapping) and (name or "genotypes" in data):
            data = _entry(data.get("genotypes"), name)
        return Genotype.from_json_dict(data)
    if start == "|":
        return from_arch(text)
    return parse_tuple_text(text, name)


@cache
def published() -> Mapping[str, object]:
    """Published genotypes by name, as `Genotype.to_json_dict` writes them."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))["genotypes"]


def _entry(collection: object, name: str) -> object:
    if not isinstance(collection, Mapping) or name not in collection:
        names = ", ".join(map(str, collection)) if isinstance(collection, Mapping) else ""
        raise _no_such(name, names)
    entry = collection[name]
    if not isinstance(entry, Mapping) or "arch" in entry:
        return entry
    return {key: entry[key] for key in _GENOTYPE_KEYS if key in entry}


def _no_such(name: str, names: str) -> GenotypeError:
    return GenotypeError(
        "no genotype of that name" if name else "the file holds several genotypes",
        got=repr(name) if name else "no name",
        allowed=names[:400] or "a file with named genotypes",
        next="msgdas show FILE:NAME",
    )


def _unreadable(got: str) -> GenotypeError:
    return GenotypeError(
        "this is no genotype",
        got=got[:120],
        allowed=f"JSON, a NAS-Bench-201 string, or {EXAMPLE}",
        next="mend the file",
    )


def _calls(body: list[ast.stmt]) -> list[tuple[str, ast.Call]]:
    """The Genotype(...) calls at the top level, each with the name it is assigned to, if any."""
    found = []
    for statement in body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name, value = statement.targets[0].id, statement.value
        elif isinstance(statement, ast.Expr):
            name, value = "", statement.value
        else:
            continue
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == CALL:
            found.append((name, value))
    return found


def _choose(calls: list[tuple[str, ast.Call]], name: str) -> ast.Call:
    matching = [call for own, call in calls if not name or own == name]
    if not calls:
        raise _unreadable("no Genotype(...) in it")
    if len(matching) != 1:
        raise _no_such(name, ", ".join(own for own, _ in calls))
    return matching[0]


def _from_call(call: ast.Call) -> Genotype:
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise _unreadable("arguments without names")
    if len({keyword.arg for keyword in call.keywords}) != len(call.keywords):
        raise _unreadable("an argument that comes twice")
    try:
        return Genotype.from_json_dict({keyword.arg: _literal(keyword.value) for keyword in call.keywords})
    except _UNREADABLE:
        raise _unreadable("arguments that are not lists of literals") from None


def _literal(node: ast.expr) -> object:
    """The value of a literal or of range(...) with at most MAX_RANGE numbers."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
        return ast.literal_eval(node)
    if node.keywords:
        raise ValueError("range takes numbers")
    numbers = range(*(ast.literal_eval(argument) for argument in node.args))
    if len(numbers[: MAX_RANGE + 1]) > MAX_RANGE:
        raise ValueError(f"a range of more than {MAX_RANGE} numbers")
    return list(numbers)
