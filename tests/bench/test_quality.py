"""Searches that the table judges: budgets, rows, going on after a stop, and the table of means."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import asdict, replace

import pytest
import torch
from msgdas.bench import quality
from msgdas.bench.nasbench import Table
from msgdas.bench.quality import VARIANTS, changed, run, table_text
from msgdas.bench.searches import Bench, Budget, Rates, Settings, config_of, networks_of, steps_of
from msgdas.engine.errors import ConfigError, InterruptedSearchError

TINY = Settings(
    space="nasbench201-conv-skip", channels=2, layers=3, image=4, batch=8, least_epochs=2, eval_images=16,
    ranked_cells=6, overrides={"lr": 0.1, "augment": False},
)  # fmt: skip
TINY_BUDGET = Budget(passes=8 * 4 * 2 * 6)
# Its budgets here are too small for as many epochs as it asks for.
MSG = replace(VARIANTS["msg"], least_epochs=0)


@pytest.fixture(scope="module")
def table(shared_data):
    return Table.read(shared_data / "nasbench201_cifar10.csv.gz")


@pytest.fixture(scope="module")
def images(shared_data):
    return f"jpeg-npz:{shared_data / 'cifar10_jpeg.npz'}"


@pytest.fixture(scope="module")
def shared_bench(table, images, tmp_path_factory):
    return Bench(TINY, images, table, tmp_path_factory.mktemp("runs"), "python -m msgdas.bench quality --methods msg")


@pytest.fixture
def bench(shared_bench, tmp_path):
    shared_bench.runs = tmp_path / "runs"
    return shared_bench


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_equal_budgets_are_equal_passes(variant):
    settings = Settings()
    probe = config_of(settings, variant, 0, "cifar10", settings.least_epochs, images_per_half=25_000)
    steps = steps_of(Budget(passes=640_000), variant, probe, Rates(0.0, 0.0))
    config = config_of(settings, variant, 0, "cifar10", steps, images_per_half=25_000)
    from msgdas.bench.searches import _passes

    assert config.epochs >= max(settings.least_epochs, variant.least_epochs)
    assert _passes(config) == pytest.approx(640_000, rel=0.05)


def test_minutes_buy_steps_by_what_a_step_costs():
    config = config_of(Settings(), MSG, 0, "cifar10", 12, images_per_half=25_000)
    assert networks_of(config, "weight") == 2
    steps = steps_of(Budget(minutes=2.0), MSG, config, Rates(alpha_s=0.01, weight_s=0.05))
    assert steps == int(120 / (0.05 + 0.7 * 0.01))
    with pytest.raises(ConfigError, match="too small"):
        steps_of(Budget(minutes=0.001), MSG, config, Rates(0.01, 0.05))


def test_many_images_are_seen_in_more_epochs_few_in_no_less_than_the_schedules_need():
    few = config_of(Settings(), MSG, 0, "cifar10", 120, images_per_half=25_000)
    many = config_of(Settings(), MSG, 0, "cifar10", 100_000, images_per_half=25_000)
    longer = config_of(Settings(), VARIANTS["msg"], 0, "cifar10", 120, images_per_half=25_000)
    assert (few.epochs, few.limit, few.warmup) == (12, 320, 4) and longer.epochs == 80
    assert many.epochs == 128 and many.limit == 24_992


def test_a_search_is_a_row_once_and_the_same_row_again(bench, tmp_path):
    out = tmp_path / "rows.jsonl"
    (row,) = run(bench, [MSG], [1], [TINY_BUDGET], out)
    assert row["accuracy"] == pytest.approx(bench.table.test_200[row["index"]])
    assert row["sample_passes"] == pytest.approx(TINY_BUDGET.passes, rel=0.4)
    assert row["cpu_s_is_whole"] and row["cpu_s"] > 0
    # Losses on other images, so another order of the cells.
    assert -1 <= row["tau"] <= 1 and -1 <= row["tau_training"] <= 1 and row["tau_training"] != row["tau"]
    assert len(row["skips"]) == row["config"]["epochs"] and row["config"]["seed"] == 1
    assert row["settings"]["space"] == "nasbench201-conv-skip"
    assert str(tmp_path) not in json.dumps(row) and row["config"]["data"] == "jpeg-npz"
    assert "none" not in row["arch"] and "avg_pool" not in row["arch"]
    written = out.read_text()
    (again,) = run(bench, [MSG], [1], [TINY_BUDGET], out)
    assert out.read_text() == written and again == json.loads(written)


def test_a_stopped_search_goes_on_and_finds_the_same(bench, tmp_path):
    whole = bench.row(MSG, 2, TINY_BUDGET)
    bench.runs = tmp_path / "stopped"
    metrics = bench.runs / TINY.space / f"msg-{TINY_BUDGET.label}-seed2" / "metrics.jsonl"

    def stop() -> None:
        while not (metrics.exists() and b'"kind": "step"' in metrics.read_bytes()):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(InterruptedSearchError):
        bench.row(MSG, 2, TINY_BUDGET)
    thread.join()
    resumed = bench.row(MSG, 2, TINY_BUDGET)
    same = ("arch", "tau", "val_accuracy", "sample_passes", "skips", "cpu_s_is_whole")
    assert [resumed[name] for name in same] == [whole[name] for name in same]


def test_rates_are_timed_once(bench):
    torch.set_num_threads(1)
    both = bench.rates([MSG, VARIANTS["gdas"]])
    assert all(rates.weight_s > 0 and rates.alpha_s > 0 for rates in both) and both[0] != both[1]
    assert bench.rates([VARIANTS["gdas"], MSG]) == both[::-1]


def test_the_table_holds_means_beside_what_needs_no_search(table):
    rows = [
        {
            "kind": "quality", "method": method, "seed": seed, "budget_minutes": 2.0, "budget_passes": None,
            "accuracy": accuracy + seed / 10, "regret": 1.0, "tau": 0.3, "tau_of_parameters": 0.6, "cpu_s": 120.0,
            **({"tau_training": 0.45} if method == "msg" else {}),
        }
        for method, accuracy in (("msg", 93.0), ("darts", 90.0)) for seed in range(3)
    ]  # fmt: skip
    text = table_text(table, rows, "msg")
    assert "93.10 +- 0.10 (n=3, 93.00 to 93.20)" in text and "93.76" in text and "93.20" in text
    darts = next(line for line in text.splitlines() if line.startswith("darts"))
    assert " 3 of  3 " in darts and darts.split()[-4:] == ["0.30", "-", "0.60", "120"]
    ours = next(line for line in text.splitlines() if line.startswith("msg "))
    assert ours.split()[-4:] == ["0.30", "0.45", "0.60", "120"]
    assert "msg - darts: +3.00" in text


def test_an_unknown_method_is_named(shared_data, images):
    words = ["--table", str(shared_data / "nasbench201_cifar10.csv.gz"), "--data", images, "--methods", "random-walk"]
    with pytest.raises(ConfigError, match="random-walk"):
        quality.main(words)


def test_a_changed_variant_has_the_keys_and_says_so():
    other = changed(MSG, ["alpha_half=w", "layers=3"])
    assert other.name == "msg+alpha_half=w,layers=3" and other.warmup_share == MSG.warmup_share
    assert dict(other.overrides) == {**MSG.overrides, "alpha_half": "w", "layers": 3}
    config = config_of(Settings(), other, 0, "cifar10", 120, images_per_half=25_000)
    assert (config.alpha_half, config.layers, config.k) == ("w", 3, 2)
    assert changed(MSG, []) is MSG


@pytest.mark.parametrize(
    ("pair", "words"), [("alpha_half", "KEY=VALUE"), ("alpha_hlf=w", "alpha_half"), ("layers=many", "wrong type")]
)
def test_a_pair_that_is_none_is_named(pair, words):
    with pytest.raises(ConfigError, match=words):
        changed(MSG, [pair])


def test_a_report_is_of_the_searches_that_were_asked_for(shared_data, images, tmp_path, capsys):
    row = {
        "kind": "quality", "method": "msg", "seed": 0, "budget_minutes": 2.0, "budget_passes": None, "accuracy": 92.5,
        "regret": 1.0, "tau": 0.3, "tau_of_parameters": 0.6, "cpu_s": 120.0,
    }  # fmt: skip
    rows = [
        {**row, "settings": asdict(Settings(least_epochs=epochs, layers=layers)), "accuracy": accuracy}
        for epochs, layers, accuracy in ((12, 3, 92.5), (100, 3, 91.5), (12, 9, 90.5))
    ]
    out = tmp_path / "rows.jsonl"
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--table", str(shared_data / "nasbench201_cifar10.csv.gz"), "--data", images, "--seeds", "0"]
    words += ["--only-report", "--json", "--out", str(out)]
    asked = (((12, 3), "92.5"), ((100, 3), "91.5"), ((12, 9), "90.5"))
    for (epochs, layers), accuracy in asked:
        assert quality.main([*words, "--least-epochs", str(epochs), "--layers", str(layers)]) == 0
        printed = capsys.readouterr().out
        assert f'"accuracy": {accuracy}' in printed and printed.count('"accuracy"') == 1
