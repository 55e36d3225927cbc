"""What a chain stands for: its genotype, its cost, its network and its picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from msgdas.engine.errors import GenotypeError
from msgdas.engine.network.network import Network
from msgdas.engine.report.draw import draw_cells
from msgdas.engine.report.show import show
from msgdas.engine.search.evaluate import random_cells
from msgdas.engine.spaces.costs import NetworkSize, counted
from msgdas.engine.spaces.counting import count
from msgdas.engine.spaces.derive import derive, skip_count
from msgdas.engine.spaces.genotype import Genotype, from_layers
from msgdas.engine.spaces.genotype_text import load_any
from msgdas.engine.spaces.space import CHAIN, space_named
from torch import nn

SIZES = {
    "imagenet-mobile": [(32, "imagenet", 224, 1000), (8, "cifar", 32, 10), (44, "imagenet", 64, 3)],
    "imagenet-fbnet": [(16, "imagenet", 224, 1000), (6, "cifar", 32, 10)],
}
LAYERS = {"imagenet-mobile": 21, "imagenet-fbnet": 22}
# FBNet-B of maskrcnn-benchmark's fbnet_modeldef.py.
FBNET_B = (
    "k3_e1", "k3_e6", "k5_e1", "k3_e1", "k3_e1", "k5_e6", "k5_e3", "k3_e6", "k5_e6", "k5_e6", "k5_e1",
    "skip", "k5_e3", "k5_e6", "k3_e1", "k5_e1", "k5_e3", "k5_e6", "k5_e1", "k5_e6", "k5_e6", "k3_e6",
)  # fmt: skip


def built_and_counted(network: Network, image: int) -> tuple[int, int]:
    """Parameters, and MACs by hooks on convolutions and classifier."""
    macs = 0

    def add(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        positions = output.numel() if isinstance(module, nn.Conv2d) else 1
        macs += positions * (module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.weight.numel())

    for one in network.modules():
        if isinstance(one, nn.Conv2d | nn.Linear):
            one.register_forward_hook(add)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, image, image, device=next(network.parameters()).device))
    return sum(weight.numel() for weight in network.parameters()), macs


@pytest.mark.parametrize(("space", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes])
def test_cost_is_that_of_the_built_network(space, size):
    channels, stem, image, classes = size
    for genotype in random_cells(space_named(space), 5, 3):
        cost = count(genotype, channels=channels, layers=LAYERS[space], image=image, classes=classes, stem=stem)
        with torch.device("meta"):
            network = Network(genotype, channels=channels, layers=LAYERS[space], classes=classes, stem=stem)
        assert (cost.params, cost.macs) == built_and_counted(network, image)
        assert cost.params_with_aux is None


def test_fbnet_b_costs_what_its_authors_say():
    """295M FLOPs, theirs multiply-accumulates (Wu et al. 2019, abstract), and 4.8M parameters in their model zoo."""
    cost = count(from_layers("fbnet", FBNET_B), channels=16, layers=22, image=224, classes=1000, stem="imagenet")
    assert cost.macs == pytest.approx(295e6, rel=0.01) and cost.params == pytest.approx(4.8e6, rel=0.01)


@pytest.mark.parametrize("space", LAYERS)
def test_a_chain_of_skips_passes_its_input_on(space):
    chain = space_named(space).chain
    skip = space_named(space).operations[-1]
    names = [skip if layer.shortcut else space_named(space).operations[0] for layer in chain.layers]
    genotype = from_layers(space_named(space).family, names)
    assert skip_count(genotype) == {CHAIN: sum(layer.shortcut for layer in chain.layers)}
    network = Network(genotype, channels=8, layers=len(names), classes=3, stem="cifar").eval()
    first = next(n for n, layer in enumerate(chain.layers) if layer.shortcut) + bool(chain.fixed)
    x = torch.randn(2, network.layers[first].spec.inputs * 8, 4, 4)
    torch.testing.assert_close(network.layers[first]([x], None), x)
    assert network.num_paths == 0


def test_a_skip_without_a_shortcut_is_no_layer_left_out():
    chain = space_named("imagenet-fbnet").chain
    everywhere = from_layers("fbnet", ["skip"] * len(chain.layers))
    assert skip_count(everywhere) == {CHAIN: sum(layer.shortcut for layer in chain.layers)}


@pytest.mark.parametrize("space", LAYERS)
def test_json_round_trip_and_text(space, tmp_path: Path):
    genotype = random_cells(space_named(space), 7, 1)[0]
    genotype.save(tmp_path / "g.json")
    assert load_any(tmp_path / "g.json") == genotype
    assert Genotype.from_json_dict(json.loads(json.dumps(genotype.to_json_dict()))) == genotype
    shown = show(str(tmp_path / "g.json"))
    assert all(name in shown for name in genotype.layers)
    assert "224 px, 1000 classes, imagenet stem" in shown
    assert (tmp_path / "cells.svg").stat().st_size > 1000


@pytest.mark.parametrize("space", LAYERS)
def test_the_picture_names_every_layer(space):
    genotype = random_cells(space_named(space), 11, 1)[0]
    texts = [text.get_text() for text in draw_cells(genotype).axes[0].texts]
    shortcuts = [layer.shortcut for layer in space_named(space).chain.layers]
    left_out = sum(name in ("zero", "skip") and has for name, has in zip(genotype.layers, shortcuts, strict=True))
    assert texts.count("left out") == left_out
    assert len([text for text in texts if text[:2] in ("mb", "k3", "k5", "sk")]) == len(shortcuts) - left_out


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("zero", "lists the operation"),
        (["mbconv3_3x3"] * 20, "21 operations"),
        (["zero"] * 21, "layer 1"),
        (["mbconv3_3x3"] * 20 + ["zero"], "layer 21"),
        (["mbconv3_3x3"] * 20 + ["mbconv3_9x9"], "layer 21"),
        ([["mbconv3_3x3", 0]] * 21, "layer 1"),
        ([None] * 21, "layer 1"),
        ({"0": "zero"}, "lists the operation"),
    ],
)
def test_fault_48_hostile_genotypes(names, words):
    with pytest.raises(GenotypeError, match=words):
        Genotype.from_json_dict({"mobile": names})
    with pytest.raises(GenotypeError):
        Genotype.from_json_dict({"mobile": ["mbconv3_3x3"] * 21, "arch": "|"})
    with pytest.raises(GenotypeError):
        Genotype.from_json_dict({"mobile": ["mbconv3_3x3"] * 21, "fbnet": []})


def test_argmax_never_leaves_out_a_layer_without_a_shortcut():
    space = space_named("imagenet-mobile")
    alpha = {CHAIN: [[0.0] * 5 + [1.0, 9.0]] * 21}
    layers = derive(space, alpha).layers
    assert [name == "zero" for name in layers] == [layer.shortcut for layer in space.chain.layers]
    assert set(layers) == {"zero", "mbconv6_7x7"}


@pytest.mark.parametrize("space", LAYERS)
def test_costs_add_up_layer_by_layer(space):
    size = NetworkSize(8, LAYERS[space], 32, 10, "cifar")
    tables = counted(space_named(space), size)
    for genotype in random_cells(space_named(space), 2, 3):
        cost = count(genotype, channels=8, layers=LAYERS[space], image=32, classes=10, stem="cifar")
        assert (tables["params"].of(genotype), tables["macs"].of(genotype)) == (cost.params, cost.macs)
