"""The report's part on the plan: what plan.json and probe.json say is shown, and nothing in them breaks the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgdas.engine.report.plan import plan_html

PLAN: dict[str, Any] = {
    "machine": {"name": "a <machine>", "memory_bytes": 4 << 30}, "budget": "1GiB", "budget_bytes": 1 << 30,
    "margin": 0.05,
    "plan": {
        "k": 2, "batch": 81, "policy": "bn", "mode": "union", "dtype": "float32", "needed_bytes": 700 << 20,
        "samples_per_s": 1234.5, "split_bytes": {"kept": 3 << 20, "transient": None},
        "why": ["K=2: the largest <that>"],
    },
    "stages": [{"k": 1, "needed_bytes": 500 << 20}, {"k": 2, "needed_bytes": 700 << 20}],
    "spread_bytes": [1 << 20, 2 << 20, 3 << 20],
}  # fmt: skip
PROBE = {
    "predicted_bytes": 1 << 20, "measured_bytes": 2 << 20, "tolerance": 0.005, "source": "<b>",
    "predicted_split_bytes": {"kept": 5}, "measured_split_bytes": {"kept": "x"},
}  # fmt: skip


def written(folder: Path, **files: object) -> str:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return plan_html(folder)


def test_the_plan_is_told(tmp_path: Path) -> None:
    text = written(tmp_path, plan=PLAN)
    assert "For a &lt;machine&gt; and a budget of 1GiB (1,024.0 MiB), of which 5.0% stay free" in text
    assert "k 2, batch 81, policy bn, mode union, dtype float32" in text
    assert "Predicted: 700.0 MiB, at most 1,234 images/s" in text and "the largest &lt;that&gt;" in text
    assert ">3.00<" in text and "K schedule: 500.0 MiB with 1, 700.0 MiB with 2." in text
    assert "3 samples from the first alpha take 1.0 MiB to 3.0 MiB" in text


def test_a_search_without_a_budget_had_no_plan(tmp_path: Path) -> None:
    assert "No budget was given" in plan_html(tmp_path) and "Predicted and measured" not in plan_html(tmp_path)


def test_a_missed_prediction_is_an_alarm(tmp_path: Path) -> None:
    text = written(tmp_path, probe=PROBE)
    assert "-50.00%" in text and 'class="alarm"' in text and "<b>)" not in text
    close = written(tmp_path, probe={**PROBE, "predicted_bytes": (2 << 20) - 1})
    assert 'class="alarm"' not in close
    assert "no &lt;memory&gt;" in written(tmp_path, probe={"measured_bytes": None, "reason": "no <memory>"})


@pytest.mark.parametrize("name", ["plan", "probe"])
def test_a_cut_file_counts_as_none(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.json").write_text('{"plan": {"k": 2')
    assert plan_html(tmp_path) == plan_html(tmp_path / "nothing")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


@given(*(st.fixed_dictionaries({}, optional=dict.fromkeys(names, JSON)) for names in (PLAN, PLAN["plan"], PROBE)))
@settings(max_examples=200, deadline=None)
def test_nothing_in_the_files_can_break_the_page(tmp_path_factory: Any, made: Any, chosen: Any, probe: Any) -> None:
    folder = tmp_path_factory.mktemp("run")
    assert written(folder, plan=made if "plan" in made else {**made, "plan": chosen}, probe=probe).startswith("<p")
