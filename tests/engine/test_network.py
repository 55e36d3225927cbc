"""The derived network: what others counted, what DARTS' own code computes, and what training needs of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from msgdas.engine.errors import ConfigError
from msgdas.engine.network.native import takes
from msgdas.engine.network.network import Network, drop_path_factors
from msgdas.engine.network.ops import SeparableStage
from msgdas.engine.spaces.counting import count
from msgdas.engine.spaces.genotype import Genotype, from_arch
from msgdas.engine.spaces.genotype_text import load_any, parse_tuple_text, published
from msgdas.engine.spaces.space import StemKind
from msgdas.kernels import native
from torch import Tensor, nn

ARCH = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|skip_connect~2|"


def measured(network: Network, image: int) -> tuple[int, int, int]:
    """Parameters without and with the auxiliary head, and MACs by hooks on convolutions and classifier."""
    macs = 0

    def add(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            macs += output.numel() * module.weight[0].numel()
        else:
            macs += module.weight.numel()

    hooks = [one.register_forward_hook(add) for one in network.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, image, image, device=next(network.parameters()).device))
    for hook in hooks:
        hook.remove()
    total = sum(weight.numel() for weight in network.parameters())
    head = 0 if network.auxiliary is None else sum(weight.numel() for weight in network.auxiliary.parameters())
    return total - head, total, macs


def size_of(key: str) -> tuple[StemKind, int, int, int, int]:
    """Stem, channels, layers, classes and image of `imagenet_C48_L14_1000`."""
    stem, channels, layers, classes = key.split("_")
    kind: StemKind = "imagenet" if stem == "imagenet" else "cifar"
    return kind, int(channels[1:]), int(layers[1:]), int(classes), 224 if kind == "imagenet" else 32


def test_published_networks_have_the_parameters_and_macs_that_were_counted(shared_data: Path) -> None:
    entries = json.loads((shared_data / "genotypes.json").read_text())["genotypes"]
    for name, entry in entries.items():
        for key in ("cifar_C36_L20_10", "imagenet_C48_L14_1000"):
            stem, channels, layers, classes, image = size_of(key)
            with torch.device("meta"):
                network = Network(
                    load_any(name), channels=channels, layers=layers, classes=classes, stem=stem, auxiliary=True
                )
            wanted = entry["measured"][key]
            assert measured(network, image) == (wanted["params"], wanted["params_with_aux"], wanted["macs"]), name


@pytest.mark.parametrize("name", [*published(), ARCH])
def test_network_and_arithmetic_agree(name: str) -> None:
    genotype = from_arch(name) if name == ARCH else load_any(name)
    layers, channels = (6, 8) if name == ARCH else (3, 8)
    with torch.device("meta"):
        network = Network(genotype, channels=channels, layers=layers, classes=7, auxiliary=True)
    cost = count(genotype, channels=channels, layers=layers, image=16, classes=7, stem="cifar")
    params, with_head, macs = measured(network, 16)
    assert (params, macs) == (cost.params, cost.macs)
    assert with_head == (cost.params if cost.params_with_aux is None else cost.params_with_aux)


def test_published_names_are_those_of_the_sources(shared_data: Path) -> None:
    path = shared_data / "genotypes.json"
    names = json.loads(path.read_text())["genotypes"]
    assert set(names) < set(published())
    for name in names:
        assert load_any(name) == load_any(f"{path}:{name}")


def test_a_file_comes_before_a_published_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = load_any("PDARTS")
    other.save(tmp_path / "DARTS_V2")
    assert load_any("DARTS_V2") == other


def every_operation() -> Genotype:
    """Each operation of the DARTS space at stride 1 and, but for the dilated ones, at stride 2."""
    pairs = (
        "('sep_conv_3x3', 0), ('sep_conv_5x5', 1), ('dil_conv_3x3', 2), ('dil_conv_5x5', 0), ('skip_connect', 1), "
        "('conv_7x1_1x7', 0), ('max_pool_3x3', 0), ('avg_pool_3x3', 1), ('sep_conv_7x7', 1), ('none', 0)"
    )
    return parse_tuple_text(
        f"Genotype(normal=[{pairs}], normal_concat=[4, 5, 6], reduce=[{pairs}], reduce_concat=[3, 4, 5, 6])"
    )


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_every_operation_trains_and_evaluates(stem: StemKind) -> None:
    image = 16 if stem == "cifar" else 64
    network = Network(every_operation(), channels=4, layers=3, classes=5, stem=stem, auxiliary=True)
    images = torch.randn(4, 3, image, image, generator=torch.Generator().manual_seed(0))
    logits, auxiliary = network.train().training_logits(images)
    assert auxiliary is not None
    (F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(auxiliary, torch.arange(4))).backward()
    missing = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert not [name for name in missing if "edges" not in name], missing
    assert network.eval()(images).shape == (4, 5)


def test_channels_last_changes_nothing_but_the_layout() -> None:
    network = Network(load_any("DARTS_V2"), channels=4, layers=3, classes=5, auxiliary=True).double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    plain = network.eval()(images)
    last = network.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, last)


def test_drop_path_spares_identities_and_scales_the_others() -> None:
    """DARTS_V2's normal cell has 8 edges, 2 of them identities; its reduce cell 8, 3 of them identities."""
    network = Network(load_any("DARTS_V2"), channels=4, layers=3, classes=5)
    assert network.num_paths == 6 + 2 * 5
    images = torch.randn(2, 3, 8, 8)
    whole = network.training_logits(images)[0]
    ones = network.training_logits(images, torch.ones(network.num_paths, 2))[0]
    torch.testing.assert_close(whole, ones, rtol=0, atol=0)
    factors = drop_path_factors(network.num_paths, 2, 0.5, torch.Generator().manual_seed(1))
    assert set(factors.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(whole, network.training_logits(images, factors)[0])
    rate = drop_path_factors(100, 100, 0.2, torch.Generator().manual_seed(2))
    assert abs(float((rate == 0).float().mean()) - 0.2) < 0.02
    assert abs(float(rate.mean()) - 1) < 0.02


def test_a_seed_decides_the_weights_and_leaves_torchs_generator_alone() -> None:
    def weights(seed: int) -> Tensor:
        network = Network(load_any("DARTS_V2"), channels=4, layers=3, classes=5, seed=seed)
        return torch.cat([weight.flatten() for weight in network.parameters()])

    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = weights(1), weights(1), weights(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_parameter_names_stay() -> None:
    """Exported weights are read by these names."""
    names = list(Network(load_any("DARTS_V2"), channels=4, layers=3, classes=5, auxiliary=True).state_dict())
    assert names[:2] == ["stems.0.convs.0.weight", "stems.0.norms.0.weight"]
    for name in (
        "layers.0.preprocess.0.conv.weight", "layers.0.edges.0.stages.1.depthwise.weight",
        "layers.0.edges.0.stages.0.pointwise.weight", "layers.0.edges.0.stages.0.norm.running_var",
        "layers.2.preprocess.0.even.weight", "layers.2.preprocess.0.odd.weight", "auxiliary.reduce.weight",
        "auxiliary.classifier.bias", "classifier.weight",
    ):  # fmt: skip
        assert name in names


@pytest.mark.parametrize("change", [{"channels": 5}, {"layers": 0}])
def test_sizes_no_network_has(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Network(load_any("DARTS_V2"), **{"channels": 4, "layers": 3, "classes": 5, **change})


@pytest.mark.skipif(native.why_not() is not None, reason="the C++ kernels are not built")
@pytest.mark.parametrize(("size", "stride", "dilation"), [(3, 1, 1), (5, 2, 1), (3, 2, 2), (5, 1, 2)])
def test_a_stage_in_the_cpu_kernels_is_that_of_plain_autograd(size: int, stride: int, dilation: int) -> None:
    """In training, with weights of BatchNorm far from 1 and 0; running statistics too."""
    random = torch.Generator().manual_seed(4)
    plain = SeparableStage(12, size, stride, dilation).double()
    with torch.no_grad():
        plain.norm.weight.copy_(torch.randn(12, generator=random))
        plain.norm.bias.copy_(torch.randn(12, generator=random))
    ours = copy.deepcopy(plain).float().to(memory_format=torch.channels_last)
    x = torch.randn(3, 12, 8, 8, generator=random, dtype=torch.float64)
    x_last = x.float().contiguous(memory_format=torch.channels_last)
    assert takes(x_last, ours.depthwise.weight) and not takes(x.float(), ours.depthwise.weight)
    results = []
    for stage, given in ((plain, x), (ours, x_last)):
        given.requires_grad_()
        y = stage(given)
        weights = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
        grads = torch.autograd.grad((y * weights).sum(), [given, *stage.parameters()])
        results.append([y.detach(), *grads, *(one.double() for one in stage.buffers())])
    for truth, found in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), truth.double(), rtol=1e-4, atol=2e-4)
