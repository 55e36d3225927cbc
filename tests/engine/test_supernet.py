"""Sizes that are known from elsewhere: parameters and saved bytes of the DARTS super-net."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from msgdas.engine.spaces.space import DARTS, DARTS_OPERATIONS
from msgdas.engine.supernet.paths import fixed_paths
from msgdas.engine.supernet.supernet import SuperNet
from msgdas.profiles.tracker import LiveBytes

sys.path.insert(0, str(Path(__file__).parent))
from networks import sampler_of

BATCH = 4
MIB_OF_64_IN_GIB = 1024 / 64


def net_of(policy: str = "autograd", **options) -> SuperNet:
    sizes = {"channels": 16, "layers": 8, "classes": 10}
    return SuperNet(DARTS, policy=[policy], **{**sizes, **options})


def test_parameters_of_the_darts_supernet():
    count = sum(parameter.numel() for parameter in net_of().parameters())
    assert count == pytest.approx(1.931e6, abs=1e3)
    imagenet = net_of(stem="imagenet", classes=1000)
    assert sum(parameter.numel() for parameter in imagenet.parameters()) == pytest.approx(2.216e6, rel=0.01)


def saved_mib_per_image(paths) -> float:
    """Bytes that autograd saves for backward, by distinct storage and without parameters, per image."""
    net = net_of()
    own = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor):
        saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    images = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(net(images, paths), torch.zeros(BATCH, dtype=torch.int64))
    total = sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in own)
    del loss
    return total / BATCH / 2**20


@pytest.mark.parametrize(
    ("operation", "gib_at_64"),
    # Counted on quark0/darts' own modules at batch 64, C=16, 8 layers, the same operation on every edge.
    [
        ("none", 0.45),
        ("skip_connect", 0.44),
        ("avg_pool_3x3", 0.79),
        ("dil_conv_3x3", 1.22),
        ("max_pool_3x3", 1.25),
        ("sep_conv_3x3", 1.92),
    ],
)
def test_saved_bytes_of_one_operation_on_every_edge(operation, gib_at_64):
    column = DARTS_OPERATIONS.index(operation)
    paths = fixed_paths(DARTS, dict.fromkeys(("normal", "reduce"), ((column,),) * 14), torch.device("cpu"))
    for cell in paths.values():
        cell.gates_EO.requires_grad_()
    assert saved_mib_per_image(paths) == pytest.approx(gib_at_64 * MIB_OF_64_IN_GIB, rel=0.05)


def test_saved_bytes_of_dense_darts():
    paths = sampler_of(method="darts", dtype=torch.float32).draw(0, 1.0, grad=True).networks[0]
    assert saved_mib_per_image(paths) == pytest.approx(7.48 * MIB_OF_64_IN_GIB, rel=0.05)


def test_recomputed_gates_keep_no_more_than_the_sampled_paths():
    peaks = {}
    for gate in ("sampled", "recompute"):
        sampler = sampler_of(k=2, mode="union", gate=gate, dtype=torch.float32)
        net = net_of("min", channels=8, layers=3)
        images, labels = torch.randn(32, 3, 16, 16), torch.zeros(32, dtype=torch.int64)
        with net.frozen(), LiveBytes() as tracker:
            F.cross_entropy(net(images, sampler.draw(0, 1.0, grad=True).networks[0]), labels).backward()
        peaks[gate] = tracker.peak_bytes
    assert peaks["recompute"] < 1.05 * peaks["sampled"]


def test_a_pass_without_autograd_holds_one_cell_at_a_time():
    net = net_of("all", channels=8)
    sampler = sampler_of(k=2, dtype=torch.float32)
    images = torch.randn(8, 3, 32, 32)
    peaks = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad), LiveBytes() as tracker:
            net(images, sampler.mixture())
        peaks.append(tracker.peak_bytes)
    assert peaks[1] < peaks[0] / 5
