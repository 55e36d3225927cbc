"""The search machinery on a table: sampler, score estimator and Adam, with no network in between."""

from __future__ import annotations

import pytest
import torch
from msgdas.bench.nasbench import CELLS, Table
from msgdas.bench.table_search import EVALUATIONS, main, random_search, table_config, table_search

SEEDS = range(10)


@pytest.fixture(scope="module")
def table(shared_data):
    return Table.read(shared_data / "nasbench201_cifar10.csv.gz")


@pytest.mark.slow
def test_alpha_finds_better_cells_than_as_many_random_ones(table):
    found = [table_search(table, table_config(seed)) for seed in SEEDS]
    assert {result.evaluations for result in found} == {EVALUATIONS}
    for accuracies in ([r.derived.accuracy for r in found], [r.chosen.accuracy for r in found]):
        assert sum(accuracy > table.expected_best(EVALUATIONS) for accuracy in accuracies) >= 8
        assert sum(accuracy >= table.top_threshold() for accuracy in accuracies) >= 8
        assert sum(accuracies) / len(accuracies) >= table.top_threshold()


def test_sub_graphs_that_are_all_compared_tell_more_than_the_first_against_the_others(table):
    derived = {
        reward: [table_search(table, table_config(seed, k=2, reward=reward)).derived.accuracy for seed in range(4)]
        for reward in ("contrast", "leave-one-out")
    }
    assert sum(derived["leave-one-out"]) > sum(derived["contrast"]) + 4 * 0.5


def test_the_seed_alone_decides(table):
    first, again, other = (table_search(table, table_config(seed), 40) for seed in (3, 3, 4))
    assert first == again
    assert (first.derived, first.chosen) != (other.derived, other.chosen)


def test_every_evaluation_is_counted(table):
    assert table_search(table, table_config(0, k=4), 10).evaluations == 12


def test_a_better_cell_is_a_smaller_loss(table):
    """The estimator's reward against the table, cell by cell, as the sampler's columns name them."""
    from msgdas.bench.table_search import TablePasses
    from msgdas.engine.learning.assembly import build_learner
    from msgdas.engine.supernet.paths import fixed_paths

    learner, _, _ = build_learner(table_config(0), torch.device("cpu"), 10)
    passes = TablePasses(learner, table)
    assert sorted(passes.indices.values()) == list(range(CELLS))
    columns = ((3,), (3,), (3,), (1,), (3,), (2,))
    paths = fixed_paths(learner.sampler.space, {"cell": columns}, torch.device("cpu"))
    sample = type(learner.sampler.draw(0, 1.0, grad=False))((paths,), {}, None)
    (loss,) = passes.losses(None, sample, dropped=False)
    assert passes.seen == [6111]
    assert loss.item() == pytest.approx(torch.log(torch.tensor(1 - 0.84384)).item(), abs=1e-4)


def test_random_search_sees_no_more_than_it_pays_for(table):
    best = max(range(CELLS), key=lambda index: table.val_12[index])
    assert table.val_12[random_search(table, 0, 50).index] < table.val_12[best]
    assert random_search(table, 0, 50) == random_search(table, 0, 50)


def test_the_command_compares_means(table, shared_data, capsys):
    main(["--table", str(shared_data / "nasbench201_cifar10.csv.gz"), "--seeds", "0", "1", "--evaluations", "20"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("20 evaluations")
    assert "n=2" in lines[2]
