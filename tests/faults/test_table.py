"""docs/faults.md against the tests: every fault has its row, and every file that a row names a test of its number."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
TABLE = TESTS.parent / "docs" / "faults.md"
FAULTS = range(1, 53)
STATES = ("holds", "holds on a CPU; GPU part unproven", "in part", "not yet")


def rows() -> dict[int, list[str]]:
    """The cells behind the number of each row."""
    lines = re.findall(r"^\| (\d+) \| (.+) \|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    found = {int(number): cells.split(" | ") for number, cells in lines}
    assert len(found) == len(lines)
    return found


def numbers_in(path: Path) -> set[int]:
    """Of the faults that a file has tests of."""
    functions = [one.name for one in ast.walk(ast.parse(path.read_text())) if isinstance(one, ast.FunctionDef)]
    return {int(found[1]) for name in functions if (found := re.match(r"test_fault_(\d\d)_", name))}


def test_every_fault_has_a_row_of_four_cells():
    found = rows()
    assert list(found) == list(FAULTS)
    assert all(len(cells) == 4 and all(cells) for cells in found.values())


@pytest.mark.parametrize("number", FAULTS)
def test_a_row_names_tests_of_its_number(number):
    _, _, tests, state = rows()[number]
    assert state.startswith(STATES)
    if state.startswith("not yet"):
        return
    files = re.findall(r"`([a-z0-9_/]+\.py)`", tests)
    assert files
    for file in files:
        assert number in numbers_in(TESTS / file), file


def test_every_file_with_a_test_of_a_fault_is_in_its_row():
    named = {number: set(re.findall(r"`([a-z0-9_/]+\.py)`", cells[2])) for number, cells in rows().items()}
    for path in TESTS.rglob("test_*.py"):
        for number in numbers_in(path):
            assert path.relative_to(TESTS).as_posix() in named[number], number
