"""The probe: a real step of the dearest sample agrees with its prediction, and corrects it where it does not."""

from __future__ import annotations

import pytest
import torch
from msgdas.engine.learning.rung import Rung
from msgdas.engine.memory import probe as probes
from msgdas.engine.memory.guard import Forecast
from msgdas.engine.memory.measured import device_ratio, keep, key_of, known_ratio
from msgdas.engine.memory.prediction import choices_of, dearest
from msgdas.engine.memory.probe import ProbeResult, dearest_learner, measure_dearest, probe
from msgdas.engine.settings.recipes import demo
from msgdas.engine.spaces.space import space_named
from msgdas.profiles.store import Key
from msgdas.profiles.trace import CATEGORIES

CPU = torch.device("cpu")
CONFIGS = {
    "union, all": {"policy": "all"},
    "sub-graphs, teacher": {"mode": "subgraphs", "policy": "bn", "dbi": "off"},
    "micro-batches, score": {"accumulate": 4, "gate": "score"},
    "autograd": {"policy": "autograd"},
}


def config_of(**changes):
    return demo(space="nasbench201", channels=4, layers=3, image=16, batch=8, impl="reference", **changes)


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_prediction_is_within_the_tolerance_of_a_real_step(changes):
    config = config_of(**changes)
    forecast, rung = Forecast(config, classes=10, impl="reference", cuda=False, graph=False), Rung.of(config)
    predicted_bytes, peak = forecast.plain(rung)
    found = measure_dearest(forecast.config_on(rung), CPU, 10)
    assert found["bytes"] == pytest.approx(predicted_bytes - forecast.rest_bytes(rung), rel=probes.TOLERANCES["cpu"])
    assert sum(found["split_bytes"].values()) == found["bytes"] and set(found["split_bytes"]) == set(CATEGORIES)
    for name in ("parameters", "optimizer", "images"):
        assert found["split_bytes"][name] == pytest.approx(peak.split_bytes[name], rel=0.01)


@pytest.mark.parametrize("mode", ["union", "subgraphs"])
def test_every_draw_is_the_dearest(mode):
    config = demo(mode=mode, k=3, channels=4, layers=3, image=16, batch=4, impl="reference", policy="min")
    learner = dearest_learner(config, CPU, 10)
    expected = dearest(space_named(config.space), config)
    for draw in range(5):
        for found, wanted in zip(choices_of(learner.sampler, draw, 1.0)["alpha"], expected, strict=True):
            for kind, rows in wanted.items():
                assert [set(row) for row in found[kind]] == [set(row) for row in rows]


def test_fault_21_a_process_of_its_own_measures_and_a_failure_is_told():
    config = config_of(policy="all")
    found = probe(config, CPU, classes=10, predicted_bytes=1000, split_bytes={})
    assert found.measured_bytes == pytest.approx(measure_dearest(config, CPU, 10)["bytes"], rel=0.005)
    assert found.missed and found.ratio > 10 and not found.reason and "over the tolerance" in found.line()
    failed = probe(config, CPU, classes=-1, predicted_bytes=1000, split_bytes={})
    assert failed.measured_bytes is None and failed.ratio == 1 and not failed.missed
    assert failed.reason in failed.line() and "\n" not in failed.line()


def test_fault_25_a_measurement_corrects_what_comes_after(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = config_of()
    key = key_of(config, CPU, "reference")
    assert known_ratio(key) == 1
    keep(key, predicted_bytes=1000, measured_bytes=1004)
    assert known_ratio(key) == 1.004
    assert device_ratio(key.device, key.driver, 0.005) == 1, "within the tolerance"
    keep(key, predicted_bytes=1000, measured_bytes=1250)
    assert known_ratio(key) == 1.25
    keep(key_of(config_of(k=1), CPU, "reference"), predicted_bytes=1000, measured_bytes=900)
    assert device_ratio(key.device, key.driver, 0.005) == 1.25
    assert device_ratio("another", key.driver, 0.005) == device_ratio(key.device, "another", 0.005) == 1
    assert known_ratio(key_of(config_of(seed=5, epochs=7), CPU, "reference")) == 1.25
    assert known_ratio(key_of(config_of(policy="all"), CPU, "reference")) == 1
    assert known_ratio(Key("another", *list(vars_of(key))[1:])) == 1


def vars_of(key: Key) -> tuple[str, ...]:
    return key.device, key.driver, key.torch, key.triton, key.config


@pytest.mark.parametrize(
    ("measured", "missed"), [(1000, False), (1004, False), (1010, True), (990, True), (None, False)]
)
def test_fault_25_a_miss_to_either_side_is_flagged(measured, missed):
    assert ProbeResult(1000, {}, measured, {}, 0.005, "test", "").missed == missed
