"""Predicted against real peaks, by the CPU allocator's own events; scratch of the kernels against their launchers."""

from __future__ import annotations

import itertools

import pytest
import torch
from msgdas.engine.learning.sampler import Sampler
from msgdas.engine.learning.steps import Moment
from msgdas.engine.memory.prediction import QuickProbe, SearchProbe, Target, choices_of, dearest
from msgdas.engine.settings.recipes import demo
from msgdas.engine.spaces.space import space_named
from msgdas.kernels import backend
from msgdas.kernels.scratch import scratch_sizes
from msgdas.profiles.predictor import Recorder, Speed
from msgdas.profiles.trace import Run

from .allocations import DRAW, TAU, measured_peak_bytes, real_learner

TOLERANCE = 0.005
SPEEDS = {dtype: Speed(1e10, 1e11, 1e-6) for dtype in ("float32", "float64", "bfloat16")}
SMALL = {"channels": 8, "layers": 3, "image": 16, "batch": 8, "mode": "union", "dbi": "off", "k": 2}
SUBGRAPHS = {"mode": "subgraphs", "execution": "sequential"}
TOGETHER = {"mode": "subgraphs", "execution": "co-resident"}
IMAGENET = {"stem": "imagenet", "image": 64}
# (implementation, changes of SMALL)
CELLS = [
    *((impl, {"policy": policy}) for impl in ("native", "reference") for policy in ("all", "bn", "nodes", "min")),
    ("native", {"policy": "min,all,bn"}),
    ("native", {"policy": "nodes,min,all", "k": 4, "batch": 16}),
    ("native", {"policy": "min", "k": 1}),
    ("native", {"policy": "bn", "k": 4, "batch": 3}),
    ("native", {"policy": "all", "k": 8, "batch": 24}),
    ("native", {"policy": "min", "channels": 16, "image": 32}),
    ("native", {"policy": "all", "dtype": "float64", "channels": 4, "batch": 2}),
    *(("native", {"policy": policy, **mode}) for policy in ("min", "all") for mode in (SUBGRAPHS, TOGETHER)),
    ("reference", {"policy": "bn", "k": 3, **SUBGRAPHS}),
    ("reference", {"policy": "all", "k": 3, **TOGETHER}),
    ("native", {"policy": "min", "space": "nasbench201"}),
    ("native", {"policy": "bn", "space": "nasbench201", "k": 3, "batch": 12}),
    ("reference", {"policy": "all", "space": "nasbench201", **SUBGRAPHS}),
    ("native", {"policy": "min", **IMAGENET}),
    ("reference", {"policy": "all", "batch": 5, **IMAGENET}),
    ("native", {"policy": "min", "method": "darts", "k": 8}),
    ("reference", {"policy": "all", "method": "darts", "k": 8, "batch": 4}),
    ("native", {"policy": "nodes", "method": "gdas", "k": 1, "mode": "subgraphs"}),
    ("native", {"policy": "min", "teacher": "supernet"}),
    ("native", {"policy": "bn", "teacher": "ema"}),
    ("native", {"policy": "min", "teacher": "none", "k": 3, **SUBGRAPHS}),
    ("native", {"policy": "min", "dbi": "dropblock", "k": 4}),
    ("reference", {"policy": "all", "dbi": "dropout", "k": 4}),
    ("native", {"policy": "min", "gate": "recompute"}),
    ("native", {"policy": "min", "gate": "score", **SUBGRAPHS}),
    ("native", {"policy": "min", "method": "proxyless", "k": 1}),
    ("native", {"policy": "bn", "method": "proxyless-two", "k": 2}),
    ("reference", {"policy": "all", "method": "snas", "k": 8, "batch": 4}),
    ("native", {"policy": "bn", "edge_norm": True}),
    ("native", {"policy": "min", "method": "fairdarts", "k": 7}),
    ("native", {"policy": "min", "method": "pdarts", "k": 8, "dbi": "dropout"}),
    ("native", {"policy": "min", "method": "darts2", "k": 8}),
    ("native", {"policy": "bn", "method": "random", "k": 1}),
    ("reference", {"policy": "min", "method": "tf-nas", "k": 8, "batch": 4}),
    ("native", {"policy": "bn", "method": "drnas", "k": 7, "alpha_kl": 1e-3}),
]
PLAIN = [
    {"k": 2},
    {"k": 2, "layout": "nchw", "batch": 20},
    {"k": 1, "method": "gdas", "mode": "subgraphs"},
    {"k": 8, "method": "darts"},
    {"k": 2, "space": "nasbench201", **TOGETHER},
    {"k": 8, "method": "pc-darts", "layout": "nchw"},
    {"k": 2, "partial": 2, "batch": 6},
]
CASES = [*CELLS, *(("reference", {"policy": "autograd", **changes}) for changes in PLAIN)]


def config_of(**changes):
    return demo(**{**SMALL, **changes})


def probe_of(config, impl="native", *, cuda=False, **options):
    return SearchProbe(config, Target("here", cuda, impl, cuda, SPEEDS), **options)


def drawn(config):
    return choices_of(Sampler(space_named(config.space), config), DRAW, TAU)


def ask(probe, config):
    return probe(config.k, config.batch, config.policy, config.mode, config.dtype)


@pytest.mark.parametrize(("impl", "changes"), CASES, ids=str)
def test_predicted_against_real_peak(impl, changes):
    config = config_of(**changes)
    dropped = config.dbi != "off"
    predicted = ask(probe_of(config, impl, dropped=dropped, choices=drawn(config)), config)
    real_bytes = measured_peak_bytes(config, impl, guided=True, dropped=dropped)
    assert predicted.peak.bytes == pytest.approx(real_bytes, rel=TOLERANCE)
    assert sum(predicted.peak.split_bytes.values()) == predicted.peak.bytes


@pytest.mark.skipif(not backend.interpreting(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("policy", ["min", "bn"])
def test_a_step_of_the_kernels_allocates_what_is_predicted(policy):
    config = config_of(space="nasbench201", policy=policy, channels=4, image=8, batch=2)
    probe = probe_of(config, "triton", cuda=True)
    for _ in range(2):  # the second time from what is known of each call
        predicted = probe.trace(config)
    learner = real_learner(config, "triton")
    images = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    feed = learner.feed(images, torch.zeros(2, dtype=torch.int64), Moment(0, TAU, 0.1, 0.3, False), DRAW)
    states = [value for state in learner.alpha_optimizer.state.values() for value in state.values()]
    before = [*learner.net.parameters(), *learner.net.buffers(), *learner.sampler.parameters(), *states]
    with Recorder(scratch=scratch_sizes) as recorder:
        recorder.adopt("parameters", [*before, *learner.weight_optimizer.buffers, images, feed.labels_B, feed.clock])
        with recorder.section("weight"):
            learner.weight_update(feed, guided=False, dropped=False)
        with recorder.section("alpha"):
            learner.alpha_update(feed, dropped=False)
        real = recorder.trace()
    for section in ("weight", "alpha"):
        sizes = [_sizes(trace, section) for trace in (predicted, real)]
        assert max(sizes[0]) == pytest.approx(max(sizes[1]), rel=TOLERANCE)
        assert sum(size > 0 for size in sizes[0]) == pytest.approx(sum(size > 0 for size in sizes[1]), rel=0.02)


def _sizes(trace, section):
    """Bytes alive after each event, more or less than at the start."""
    signed = [trace.sizes_bytes[abs(event) - 1] * (1 if event > 0 else -1) for event in trace.sections[section].events]
    return list(itertools.accumulate(signed))


def test_the_peak_is_split_by_what_the_tensors_are():
    config = config_of(policy="bn")
    split = ask(probe_of(config), config).peak.split_bytes
    net = real_learner(config, "native").net
    weight_bytes = sum(weight.nbytes for weight in net.parameters())
    table_bytes = sum(buffer.nbytes for buffer in net.buffers())
    assert weight_bytes + table_bytes <= split["parameters"] <= 1.01 * (weight_bytes + table_bytes)
    assert weight_bytes <= split["optimizer"] <= 1.01 * weight_bytes
    assert split["images"] >= 8 * 3 * 16 * 16 * 4
    assert split["kept"] > 0 and split["transient"] > 0
    only_w = trace_of_weights(config)
    assert 0 < only_w["gradients"] <= weight_bytes + 1024


def trace_of_weights(config):
    """The split of a W step alone."""
    probe = probe_of(config)
    return probe.trace(config).peak([Run("state"), Run("weight")]).split_bytes


def test_there_are_at_least_thirty_configurations():
    assert len({str(case) for case in CASES}) >= 30


@pytest.mark.parametrize("changes", [{}, {"policy": "all", "k": 4}, {"policy": "bn", **TOGETHER}, IMAGENET], ids=str)
@pytest.mark.parametrize("batch", [61, 128])
def test_one_trace_serves_all_batches(changes, batch):
    exact, scaled = _both(batch, **{"policy": "min", **changes})
    assert scaled.peak.bytes == pytest.approx(exact.peak.bytes, rel=1e-4)
    assert scaled.samples_per_s == pytest.approx(exact.samples_per_s, rel=2e-2)


def test_one_trace_is_never_below_a_stem_that_runs_in_chunks():
    exact, scaled = _both(181, policy="min", **IMAGENET)
    assert exact.peak.bytes < scaled.peak.bytes < 1.05 * exact.peak.bytes


def _both(batch, **changes):
    """By its own trace, and by the one for all batches."""
    config = config_of(**changes)
    probe = probe_of(config)
    setting = (config.k, batch, config.policy, config.mode, config.dtype)
    return probe(*setting), QuickProbe(probe)(*setting)


def test_the_dearest_sample_takes_the_most():
    config = config_of(policy="all", k=2)
    worst = ask(probe_of(config, dropped=False), config).peak.bytes
    others = [ask(probe_of(config, dropped=False, choices=choice), config).peak.bytes for choice in _some(config)]
    assert all(other <= worst for other in others)
    assert min(others) < worst
    assert dearest(space_named("darts"), config)[0]["normal"][0][0] != 0


def _some(config):
    sampler = Sampler(space_named(config.space), config)
    return [choices_of(sampler, draw, TAU) for draw in range(3)]
