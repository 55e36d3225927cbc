"""Cells that read their sample on the device, against ordinary autograd in fp64; computed by the kernels' twins.

The kernels themselves are held against the twins in tests/kernels, and one small network runs on them here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from msgdas.engine.errors import ConfigError
from msgdas.engine.settings.config import build
from msgdas.engine.settings.recipes import demo
from msgdas.engine.spaces.space import DARTS, SPACES, search_skeleton
from msgdas.engine.supernet.branch_table import branches_of, table_rows
from msgdas.engine.supernet.fused_cell import FusedCall
from msgdas.engine.supernet.implementation import resolve
from msgdas.engine.supernet.operation import Drop
from msgdas.engine.supernet.ops import DARTS_TABLE, DepthwiseSeparable, ModuleOperation
from msgdas.engine.supernet.paths import fixed_paths
from msgdas.engine.supernet.supernet import SuperNet
from msgdas.kernels import backend
from msgdas.kernels import branches as codes
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from networks import gradients, sampler_of, worst_error

TOLERANCE = 1e-12
CPU = torch.device("cpu")


@pytest.fixture
def twins(monkeypatch):
    """Plain PyTorch in place of the kernels, which the interpreter would run for minutes."""
    monkeypatch.setattr(backend, "interpreting", lambda: False)


@pytest.mark.parametrize("policy", ["all", "bn", "nodes", "min", "min,bn,all"])
@pytest.mark.parametrize(
    ("space", "k", "mode"),
    [("darts", 2, "union"), ("darts", 8, "union"), ("darts", 2, "subgraphs"), ("nasbench201", 3, "union")],
)
def test_fused_cells(twins, space, k, mode, policy):
    sampler = sampler_of(space, k=k, mode=mode)
    loss, oracle = gradients(sampler, "autograd")
    our_loss, ours = gradients(sampler, policy, impl="triton")
    assert our_loss == pytest.approx(loss, abs=1e-12)
    assert worst_error(ours, oracle) <= TOLERANCE


@pytest.mark.parametrize("policy", ["bn", "min"])
@pytest.mark.parametrize(("weights", "alpha"), [(True, False), (False, True)])
def test_a_fused_step_computes_only_its_own_gradients(twins, policy, weights, alpha):
    sampler = sampler_of(k=2, mode="union")
    _, oracle = gradients(sampler, "autograd", weights=weights, alpha=alpha)
    _, ours = gradients(sampler, policy, weights=weights, alpha=alpha, impl="triton")
    assert worst_error(ours, oracle) <= TOLERANCE
    for name, grad in ours.items():
        if name.startswith("alpha.") != alpha:
            assert grad is None, name


@pytest.mark.parametrize("kind", ["dropblock", "dropout"])
def test_fused_cells_meet_the_same_masks(twins, kind):
    sampler = sampler_of(k=4, mode="union")
    drop = Drop(kind, torch.tensor(0.4), torch.tensor([9, 3]))
    _, oracle = gradients(sampler, "autograd", drop=drop)
    _, ours = gradients(sampler, "min", drop=drop, impl="triton")
    # The kernels' scale is an fp32 number.
    assert worst_error(ours, oracle) <= 1e-6
    _, without = gradients(sampler, "min", impl="triton")
    assert worst_error(without, oracle) > 1e-3


def test_the_imagenet_stem_and_a_derived_network(twins):
    sampler = sampler_of(k=2, mode="union", stem="imagenet")
    _, oracle = gradients(sampler, "autograd", stem="imagenet", image=64)
    _, ours = gradients(sampler, "min", stem="imagenet", image=64, impl="triton")
    assert worst_error(ours, oracle) <= TOLERANCE
    # Two edges into each node, nothing on the others.
    rows = tuple((4 + row % 4,) if row in (0, 1, 2, 3, 5, 6, 9, 10) else () for row in range(14))
    paths = fixed_paths(DARTS, {"normal": rows, "reduce": rows}, CPU)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    nets = [
        SuperNet(DARTS, channels=4, layers=3, classes=5, dtype=torch.float64, **options)
        for options in ({"policy": ["autograd"]}, {"impl": "triton"})
    ]
    torch.testing.assert_close(nets[0](x, paths), nets[1](x, paths))


def test_on_the_kernels_themselves():
    if not backend.interpreting():
        pytest.skip("runs on a GPU in `make gpu`")
    sampler = sampler_of(k=2, mode="union")
    options = {"channels": 4, "image": 4, "batch": 2, "layers": 3}
    _, oracle = gradients(sampler, "autograd", **options)
    _, ours = gradients(sampler, "bn,min,min", impl="triton", **options)
    # Reductions leave maps of one pixel, whose BatchNorms over two samples magnify rounding.
    assert worst_error(ours, oracle) <= 100 * TOLERANCE


def test_bf16_maps_follow_fp32_ones(twins):
    sampler = sampler_of(k=2, mode="union", dtype=torch.float32)
    loss, truth = gradients(sampler, "min", impl="triton", dtype=torch.float32, channels=16)
    our_loss, ours = gradients(sampler, "min", impl="triton", dtype=torch.bfloat16, channels=16)
    assert our_loss == pytest.approx(loss, rel=2e-2)
    weight = "stems.0.0"
    assert ours[weight].dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(ours[weight].flatten(), truth[weight].flatten(), dim=0)
    assert cosine > 0.95


def test_groups_cover_a_node_once_and_are_no_larger_than_asked():
    layer = search_skeleton(DARTS, channels=4, layers=3, stem="cifar").layers[0]
    call = FusedCall(layer, 0, 3, True, (), "min", None)
    rows = []
    for node in range(4):
        for first, last in call.groups(node, 4):
            assert 0 < last - first <= 4
            rows += range(first, last)
    assert rows == list(range(14 * 3))


def test_the_branch_table_names_every_weight_once():
    layer = search_skeleton(DARTS, channels=4, layers=3, stem="cifar").layers[1]
    table = table_rows(layer, DARTS.operations, DARTS_TABLE)
    assert table.shape == (14, 9, codes.COLUMNS)
    used = [set(), set()]
    for row in table.view(-1, codes.COLUMNS).tolist():
        for stage in range(codes.STAGES.get(row[codes.CODE], 0)):
            side = codes.SIDE[row[codes.CODE]]
            taps = set(range(row[codes.TAPS0 + stage], row[codes.TAPS0 + stage] + side * side))
            assert not taps & used[0] and row[codes.POINT0 + stage] not in used[1]
            used[0] |= taps
            used[1].add(row[codes.POINT0 + stage])
    assert used[0] == set(range(14 * 2 * (9 + 25) + 14 * (9 + 25)))
    # The reducing cell's skip-connects from its inputs have a slot too: FactorizedReduce.
    assert len(used[1]) == 14 * 6 and max(used[1]) == 14 * 6 + 8 - 1
    nothing = branches_of(table, torch.full((14, 2), -1))
    assert (nothing[:, codes.CODE] == codes.NONE).all() and (nothing[:, codes.GATE] == -1).all()


@pytest.mark.parametrize("operation", [ModuleOperation(nn.Identity), DepthwiseSeparable(7, 1, 1)])
def test_an_operation_without_a_kernel_is_refused_by_name(operation):
    table = {**DARTS_TABLE, "dil_conv_5x5": operation}
    with pytest.raises(ConfigError, match="dil_conv_5x5"):
        SuperNet(SPACES["darts"], channels=4, layers=1, classes=2, operations=table, impl="triton")


def config_of(**overrides):
    return demo(**overrides)


def test_fault_29_what_was_asked_for_is_what_runs_or_an_error(twins):
    assert resolve(config_of(impl="reference"), CPU) == ("reference", None)
    with pytest.raises(ConfigError, match="Triton needs a CUDA device"):
        resolve(config_of(impl="triton"), CPU)
    for dtype in ("bfloat16", "float16"):
        impl, reason = resolve(config_of(dtype=dtype), CPU)
        assert impl == "reference" and f"float32 maps, not {dtype}" in reason
    with pytest.raises(ConfigError, match="CPU tensors"):
        resolve(config_of(impl="native"), torch.device("cuda"))
    impl, reason = resolve(config_of(gate="recompute"), torch.device("cuda"))
    assert impl == "reference" and "gate recompute" in reason


def test_fault_29_without_the_library_a_cpu_falls_back_and_says_why(twins, monkeypatch):
    monkeypatch.setattr(backend, "why_not_native", lambda: "the C++ kernels are not built")
    assert resolve(config_of(), CPU) == ("reference", "cells run in plain PyTorch: the C++ kernels are not built")
    with pytest.raises(ConfigError, match="not built"):
        resolve(config_of(impl="native"), CPU)
    assert build({}, {"impl": "auto"}).impl == "auto"
