"""Facts about this machine."""

from __future__ import annotations

import mmap
import subprocess
import sys

import torch
from msgdas.profiles.device import cpu_facts, gpus, process_rss_bytes
from msgdas.profiles.meter import measure


def test_cpu():
    facts = cpu_facts()
    assert facts.cores >= 1 and facts.memory_bytes > 1 << 28 and facts.model


def test_gpus_or_a_reason():
    found = gpus()
    assert bool(found.devices) != bool(found.reason)


def test_rss_grows_with_what_is_touched():
    size_bytes = 16 << 20
    with mmap.mmap(-1, size_bytes) as fresh:
        before = process_rss_bytes()
        fresh.write(b"x" * size_bytes)
        assert process_rss_bytes() - before > size_bytes // 2


def test_measure_returns_the_result_and_the_peak():
    result, peak = measure(lambda: torch.ones(1000).add(1).sum().item(), torch.device("cpu"))
    assert result == 2000 and 4000 <= peak.bytes <= 8100 and peak.source == "storage tracker"


def test_device_facts_need_no_torch():
    code = "import sys, msgdas.profiles.device as d; d.gpus(); d.cpu_facts(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
