"""What a super-net's losses say of the table's cells."""

from __future__ import annotations

import json

import numpy as np
import pytest
from msgdas.bench.nasbench import Table, genotype_of
from msgdas.bench.ranking import effects_of, judged, main

EDGES = 6


@pytest.fixture(scope="module")
def table(shared_data):
    return Table.read(shared_data / "nasbench201_cifar10.csv.gz")


def random_operations(count):
    names = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    return np.random.default_rng(0).choice(names, (count, EDGES)).tolist()


def test_effects_are_found_again_in_losses_made_of_them():
    made = {"none": 0.3, "skip_connect": -0.1, "nor_conv_1x1": 0.0, "nor_conv_3x3": 0.05, "avg_pool_3x3": 0.2}
    operations = random_operations(2000)
    losses = np.array([2.0 + sum(made[name] for name in cell) for cell in operations])
    found = effects_of(operations, losses)
    assert sorted(found) == sorted(set(made) - {"nor_conv_3x3"})
    for name, value in found.items():
        assert value == pytest.approx(made[name] - made["nor_conv_3x3"], abs=2e-3)


def test_losses_in_the_order_of_the_table_have_a_tau_of_one_and_the_reverse_minus_one(table):
    cells = [*random_operations(30), ["nor_conv_3x3"] * EDGES, ["nor_conv_1x1"] * EDGES]
    indices = np.array([table.index_of(genotype_of(tuple(cell))) for cell in cells])
    right = judged(table, indices, list(-table.test_200[indices]))
    wrong = judged(table, indices, list(table.test_200[indices]))
    assert (right.tau, wrong.tau) == pytest.approx((1, -1))
    assert (right.tau_without_none, wrong.tau_without_none) == pytest.approx((1, -1))
    assert wrong.loss == pytest.approx(table.test_200[indices].mean())


def test_the_command_trains_and_prints_both_halves(shared_data, tmp_path, capsys):
    words = [
        "--table", str(shared_data / "nasbench201_cifar10.csv.gz"), "--layers", "3", "--channels", "2", "--image", "4",
        "--data", f"jpeg-npz:{shared_data / 'cifar10_jpeg.npz'}", "--batch", "8", "--images", "40", "--cells", "6",
        "--minutes", "0.003", "--out", str(tmp_path / "rows.jsonl"),
    ]  # fmt: skip
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "3 cells, C=2, 4 x 4 pixels, 40 images a half" in printed and "held_out" in printed
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row["steps"] >= 1 and row["config"]["data"] == "jpeg-npz" and row["config"]["limit"] == 40
    for half in ("training", "held_out"):
        assert -1 <= row[half]["tau"] <= 1 and np.isfinite(row[half]["loss"])
    assert str(tmp_path) not in json.dumps(row)
