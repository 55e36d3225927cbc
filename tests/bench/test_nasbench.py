"""The table of NAS-Bench-201: mapping of cells, chance in closed form, files that are none."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from msgdas.bench.nasbench import CELLS, CONVOLUTIONS, Table, genotype_of, main, yardsticks
from msgdas.bench.statistics import kendall_tau
from msgdas.engine.errors import DataError
from msgdas.engine.spaces.derive import derive
from msgdas.engine.spaces.space import NASBENCH201


@pytest.fixture(scope="session")
def table(shared_data):
    return Table.read(shared_data / "nasbench201_cifar10.csv.gz")


def test_a_cell_is_found_whatever_it_comes_from(table):
    cell = ("nor_conv_3x3", "nor_conv_3x3", "nor_conv_3x3", "skip_connect", "nor_conv_3x3", "nor_conv_1x1")
    alpha = {"cell": [[float(name == operation) for operation in NASBENCH201.operations] for name in cell]}
    found = table.look_up(derive(NASBENCH201, alpha))
    assert found == table.look_up(genotype_of(cell))
    assert (found.index, found.rank, found.regret) == (6111, 1, 0.0)
    assert found.accuracy == pytest.approx(94.3733)
    assert table.look_up(genotype_of(("skip_connect",) * 6)).accuracy == pytest.approx(54.2967)


def test_ranks_count_the_better_cells(table):
    for index in (0, 77, 13714, int(table.test_200.argmin())):
        found = table.at(index)
        assert found.rank == 1 + (table.test_200 > found.accuracy).sum()
        assert found.regret == pytest.approx(table.test_200.max() - found.accuracy)


def test_expected_best_is_that_of_draws(table):
    draws = np.random.default_rng(0).choice(table.test_200, (20_000, 25)).max(1)
    error = draws.std() / len(draws) ** 0.5
    assert table.expected_best(25) == pytest.approx(draws.mean(), abs=4 * error)
    assert table.expected_best(1) == pytest.approx(table.test_200.mean())


def test_yardsticks(table):
    found = yardsticks(table)
    assert found["every edge 3x3"] == pytest.approx(93.76, abs=0.005)
    assert found["1x1 or 3x3 by a coin on each edge"] == pytest.approx(93.20, abs=0.01)
    assert found["best 1 % begin at"] == pytest.approx(93.78, abs=0.01)
    assert found["Kendall's tau of the number of parameters"] == pytest.approx(0.57, abs=0.01)
    assert len(table.indices_of(CONVOLUTIONS)) == 64
    assert kendall_tau(-table.test_200, table.test_200) == pytest.approx(-1)


def test_the_command_prints_them(table, shared_data, capsys):
    main(["--table", str(shared_data / "nasbench201_cifar10.csv.gz")])
    assert "every edge 3x3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"index,arch\n0,x\n", "no column c10_test_200"),
        (b"index,arch,c10_test_200,c10_val_12,c10_test_12,params_c10\n0,x,1,2,3,4\n", "1 rows"),
        (b"index,arch,c10_test_200,c10_val_12,c10_test_12,params_c10\n0,x,1,many,3,4\n", "no number"),
        (b"index,arch,c10_test_200,c10_val_12,c10_test_12,params_c10\n0,x\n", "no number"),
        (gzip.compress(b"index", mtime=0)[:12], "not NAS-Bench-201's table"),
        (b"\x00\xff\xfe\x00", "not NAS-Bench-201's table"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        Table.read(path)
    assert "\n" not in str(error.value)
    assert f"{CELLS} rows" in str(error.value)
