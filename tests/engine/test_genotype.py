"""Genotypes: what is written is what is read, and nothing else is a genotype."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgdas.engine.errors import GenotypeError
from msgdas.engine.spaces.genotype import CellGenotype, Genotype, from_arch
from msgdas.engine.spaces.genotype_text import format_tuple_text, load_any, parse_tuple_text
from msgdas.engine.spaces.space import NASBENCH201_OPERATIONS, PUBLISHED_OPERATIONS

SMALL: dict[str, Any] = {
    "normal": [["sep_conv_3x3", 1], ["skip_connect", 0], ["conv_7x1_1x7", 2], ["sep_conv_7x7", 0]],
    "normal_concat": [2, 3],
    "reduce": [["max_pool_3x3", 0], ["max_pool_3x3", 1]],
    "reduce_concat": [2],
}
ARCH = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|skip_connect~2|"


@st.composite
def darts_cells(draw: st.DrawFn) -> CellGenotype:
    nodes = draw(st.integers(1, 6))
    pairs = tuple(
        (draw(st.sampled_from(PUBLISHED_OPERATIONS)), draw(st.integers(0, 1 + node)))
        for node in range(nodes)
        for _ in range(2)
    )
    concat = draw(st.lists(st.integers(2, 1 + nodes), min_size=1, unique=True))
    return CellGenotype(pairs, tuple(concat))


@st.composite
def genotypes(draw: st.DrawFn) -> Genotype:
    if draw(st.booleans()):
        return Genotype("darts", (("normal", draw(darts_cells())), ("reduce", draw(darts_cells()))))
    operations = draw(st.lists(st.sampled_from(NASBENCH201_OPERATIONS), min_size=6, max_size=6))
    pairs = tuple(zip(operations, (0, 0, 1, 0, 1, 2), strict=True))
    return Genotype("nasbench201", (("cell", CellGenotype(pairs, (3,))),))


@given(genotypes())
def test_parse_undoes_print(genotype: Genotype) -> None:
    assert Genotype.from_json_dict(json.loads(json.dumps(genotype.to_json_dict()))) == genotype
    if genotype.space == "darts":
        assert parse_tuple_text(format_tuple_text(genotype, "CELL")) == genotype
        assert parse_tuple_text(format_tuple_text(genotype)) == genotype
    else:
        assert from_arch(genotype.arch) == genotype


def test_node_pairs() -> None:
    nodes = Genotype.from_json_dict(SMALL).node_pairs("normal")
    assert nodes == ((("sep_conv_3x3", 1), ("skip_connect", 0)), (("conv_7x1_1x7", 2), ("sep_conv_7x7", 0)))
    assert [len(pairs) for pairs in from_arch(ARCH).node_pairs("cell")] == [1, 2, 3]


def test_spec_has_stride_2_on_the_inputs_of_reductions_only() -> None:
    data = {**SMALL, "reduce": SMALL["normal"], "reduce_concat": [3]}
    genotype = Genotype.from_json_dict(data)
    assert [edge.stride for edge in genotype.spec("reduce").edges] == [2, 2, 1, 2]
    assert [edge.stride for edge in genotype.spec("normal").edges] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"normal": [["conv_9x9", 0], ["skip_connect", 1]], "normal_concat": [2]},
        {"normal": [["skip_connect", 2], ["skip_connect", 1]], "normal_concat": [2]},
        {"normal": [["skip_connect", -1], ["skip_connect", 1]], "normal_concat": [2]},
        {"normal": [["skip_connect", True], ["skip_connect", 1]], "normal_concat": [2]},
        {"normal": [["skip_connect", 0.0], ["skip_connect", 1]], "normal_concat": [2]},
        {"normal": [["skip_connect", "0"], ["skip_connect", 1]], "normal_concat": [2]},
        {"normal": [[["skip_connect"], 0], ["skip_connect", 1]], "normal_concat": [2]},
        {"normal": [["skip_connect", 0]], "normal_concat": [2]},
        {"normal": [["skip_connect", 0, 1], ["skip_connect", 1]], "normal_concat": [2]},
        {"normal": []},
        {"normal": "skip_connect"},
        {"reduce_concat": []},
        {"reduce_concat": [2, 2]},
        {"reduce_concat": [1]},
        {"reduce_concat": [3]},
        {"reduce_concat": [[2]]},
        {"reduce_concat": 2},
        {"arch": ARCH},
        {"more": 1},
    ],
)
def test_what_no_space_can_express(change: dict[str, Any]) -> None:
    Genotype.from_json_dict(SMALL)
    with pytest.raises(GenotypeError, match=r"(?s)got .*allowed .*Next: "):
        Genotype.from_json_dict({**SMALL, **change})


@pytest.mark.parametrize("key", list(SMALL))
def test_missing_keys(key: str) -> None:
    with pytest.raises(GenotypeError, match=f"no {key}"):
        Genotype.from_json_dict({name: value for name, value in SMALL.items() if name != key})


@pytest.mark.parametrize(
    "arch",
    [
        ARCH.replace("none", "eval"), ARCH.replace("~2", "~3"), ARCH.replace("~2", "~02"), ARCH[:-1], ARCH + "+",
        ARCH.rpartition("+")[0], "", "|", 3, None,
    ],
)  # fmt: skip
def test_bad_arch_strings(arch: object) -> None:
    with pytest.raises(GenotypeError):
        Genotype.from_json_dict({"arch": arch})


@settings(max_examples=150)
@given(st.data())
def test_fault_48_tampered_files_raise_nothing_but_genotype_errors(data: st.DataObject) -> None:
    tuple_text = format_tuple_text(Genotype.from_json_dict(SMALL))
    source = data.draw(st.sampled_from([json.dumps(SMALL), ARCH, tuple_text]))
    start = data.draw(st.integers(0, len(source)))
    length = data.draw(st.integers(0, 8))
    patch = data.draw(st.text(alphabet="[](){},:'\"|~+0123456789-.eE \\\0\nNaxé", max_size=8))
    text = source[:start] + patch + source[start + length :]
    for parse in (
        lambda: Genotype.from_json_dict(json.loads(text)),
        lambda: from_arch(text),
        lambda: parse_tuple_text(text),
    ):
        with contextlib.suppress(GenotypeError, json.JSONDecodeError):
            assert isinstance(parse(), Genotype)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe\x00", b"[]", b"NaN", b'{"normal": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        f'{{"arch": "{ARCH}", "arch": "{ARCH}"}}'.encode(), b'{"normal": 1' + b"0" * 5000 + b"}", b"-" * 200_000,
        b"(" * 5000, b"Genotype(normal=range(10**30))", b"Genotype(*[1])",
        b"__import__('os').system('true')", b" " * ((1 << 20) + 1),
    ],
)  # fmt: skip
def test_fault_48_hostile_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "genotype.json"
    file.write_bytes(content)
    with pytest.raises(GenotypeError, match="Next: "):
        load_any(file)


def test_save_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    file = tmp_path / "genotype.json"
    file.write_text("old")
    genotype = Genotype.from_json_dict(SMALL)
    genotype.save(file)
    assert Genotype.load(file) == genotype
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(GenotypeError, match="cannot write"):
        genotype.save(tmp_path / "missing" / "genotype.json")


def test_load_any_reads_each_form(tmp_path: Path) -> None:
    genotype = Genotype.from_json_dict(SMALL)
    forms = {
        "a.json": json.dumps(SMALL),
        "a.txt": format_tuple_text(genotype),
        "all.json": json.dumps({"genotypes": {"A": {**SMALL, "source": "x"}}}),
        "genotypes.py": f"from x import y\n{format_tuple_text(genotype, 'A')}\n{format_tuple_text(genotype, 'B')}\n",
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
    for target in ("a.json", "a.txt", "all.json:A", "genotypes.py:A"):
        assert load_any(f"{tmp_path / target}") == genotype
    (tmp_path / "arch").write_text(ARCH + "\n")
    assert load_any(tmp_path / "arch").arch == ARCH
    for target in ("all.json", "all.json:C", "genotypes.py", "genotypes.py:C", "none.json", "none.json:A"):
        with pytest.raises(GenotypeError, match="Next: "):
            load_any(f"{tmp_path / target}")


def test_a_long_range_is_not_spelled_out() -> None:
    with pytest.raises(GenotypeError, match="not lists of literals"):
        parse_tuple_text("Genotype(normal=range(1025))")


def test_tuple_text_as_darts_prints_it() -> None:
    text = (
        "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0)], normal_concat=range(2, 3), "
        "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1)], reduce_concat=[2])"
    )
    genotype = parse_tuple_text(text)
    assert genotype.cell("normal").concat == (2,)
    assert format_tuple_text(genotype) == text.replace("range(2, 3)", "[2]")
