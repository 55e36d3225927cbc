"""A recorded step: the phases are the step's own, live tensors have the tracker's peak, the step stays the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgdas.engine.learning.steps import Learner, Moment
from msgdas.engine.memory.recording import Recording
from msgdas.engine.report.memory import memory_html
from msgdas.engine.report.timeline import TimelineFile, last_timeline, save_timeline, timeline_figure
from msgdas.engine.run.history import History
from msgdas.engine.supernet.supernet import SuperNet

sys.path.insert(0, str(Path(__file__).parent))
from networks import sampler_of
from runs import rows, small_demo, write_run

CPU = torch.device("cpu")
MOMENT = Moment(step=0, tau=1.0, lr=0.05, drop_rate=0.1, guided=False)


def learner_of(**overrides) -> Learner:
    sampler = sampler_of(dtype=torch.float32, policy="all", k=2, teacher="none", **overrides)
    net = SuperNet(sampler.space, channels=4, layers=3, classes=5, policy=["all"], dtype=torch.float32)
    return Learner(sampler.config, net, sampler)


def record(learner: Learner, folder: Path) -> tuple[dict, list]:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 5
    results = []
    with Recording(learner, CPU) as recording:
        for take in (learner.alpha_step, learner.weight_step):
            results.append(recording.measure(lambda take=take: take(images, labels, MOMENT)))
    recording.save(folder, 1)
    return json.loads((folder / "timeline-1.json").read_text()), results


def test_phases_are_those_of_the_step_in_their_order(tmp_path):
    found, results = record(learner_of(), tmp_path)
    names = [name for name, _, _ in found["phases"]]
    passes = ["forward", "backward"] * 2
    assert names == [
        "alpha draw", *(f"alpha {part}" for part in passes), "optimizer", "W draw", *(f"W {part}" for part in passes),
        "optimizer",
    ]  # fmt: skip
    ends = [bound for _, start, end in found["phases"] for bound in (start, end)]
    assert ends == sorted(ends)
    learner = learner_of()
    peaks = [peak.bytes for _, peak in results]
    assert max(found["live_bytes"]) > max(peaks) > 0
    assert found["peak_bytes"] > 1 << 20 and found["rate_hz"] > 0 and found["source"] == "process memory"
    times = np.array(found["live_times_ms"])
    inside = {name: (times >= start) & (times <= end) for name, start, end in found["phases"]}
    top = int(np.argmax(found["live_bytes"]))
    assert any(inside[name][top] for name in ("W forward", "W backward"))
    assert learner.passes.enter("nobody listens") is None


def test_a_recorded_step_is_the_same_step(tmp_path):
    recorded, plain = learner_of(), learner_of()
    _, results = record(recorded, tmp_path)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 5
    assert [result for result, _ in results] == [
        plain.alpha_step(images, labels, MOMENT), plain.weight_step(images, labels, MOMENT),
    ]  # fmt: skip
    for ours, theirs in zip(recorded.net.parameters(), plain.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_error_inside_leaves_nobody_listening(tmp_path):
    learner = learner_of()
    unheard = learner.passes.enter
    with pytest.raises(ValueError, match="inside"), Recording(learner, CPU):
        raise ValueError("inside")
    assert learner.passes.enter is unheard


def test_figure_shades_every_phase_and_marks_both_peaks(tmp_path):
    found, _ = record(learner_of(), tmp_path)
    figure = timeline_figure(TimelineFile.of(found))
    live, sampled = figure.axes
    assert live.get_ylabel() == "live tensors (MiB)" and sampled.get_ylabel() == "process memory (MiB)"
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {name for name, _, _ in found["phases"]}
    for axes, peak in ((live, max(found["live_bytes"])), (sampled, found["peak_bytes"])):
        assert axes.texts[0].get_text() == f"peak {peak / 2**20:,.1f} MiB"
        assert len(axes.patches) == len(found["phases"])
    assert [path.stat().st_size > 1000 for path in save_timeline(TimelineFile.of(found), tmp_path)] == [True, True]


def test_report_says_what_the_sampling_could_see(tmp_path):
    run = write_run(tmp_path / "run", small_demo(epochs=1, warmup=0))
    record(learner_of(), run)
    (run / "timeline-9.json").write_text("{")
    config = small_demo(epochs=1, warmup=0)
    text = memory_html(run, History.of(config, list(rows(config))))
    assert "Memory during step 1" in text and "samples/s achieved, largest gap" in text
    assert "W backward" in text
    assert last_timeline(tmp_path) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)
NUMBERS = st.lists(st.integers(-5, 1 << 50) | st.floats(), min_size=1, max_size=4)
KEYS = ("step", "source", "thread", "peak_bytes", "rate_hz", "largest_gap_ms", "phases", "by_phase", "live_times_ms")


@given(
    st.fixed_dictionaries(
        {"times_ms": NUMBERS | JSON, "bytes": NUMBERS | JSON}, optional=dict.fromkeys(KEYS, NUMBERS | JSON)
    )
    | JSON
)
@settings(max_examples=300, deadline=None)
def test_no_file_can_break_the_reading(values):
    found = TimelineFile.of(values)
    if found is not None:
        assert len(found.times_ms) == len(found.bytes) > 0
        assert np.isfinite(found.times_ms).all() and np.isfinite(found.peak_bytes)
