"""The mobile chains against ordinary autograd of the same network, and as any other space of a search."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from msgdas.engine.errors import ConfigError
from msgdas.engine.learning.assembly import build_learner
from msgdas.engine.learning.sampler import Sampler
from msgdas.engine.learning.steps import Moment
from msgdas.engine.memory.prediction import SearchProbe, Target, choices_of
from msgdas.engine.search.evaluate import derived, genotype_paths, random_cells
from msgdas.engine.settings.config import build
from msgdas.engine.settings.method import METHODS
from msgdas.engine.settings.recipes import demo, imagenet_fbnet, imagenet_mobile
from msgdas.engine.spaces.chain import FBNET, MOBILE
from msgdas.engine.spaces.space import CHAIN, search_skeleton, space_named
from msgdas.engine.supernet.operation import Drop
from msgdas.engine.supernet.supernet import SuperNet
from msgdas.profiles.predictor import Speed

sys.path.insert(0, str(Path(__file__).parent))
from allocations import DRAW, TAU, measured_peak_bytes
from networks import gradients, sampler_of, worst_error

TOLERANCE = 1e-12
LAYERS = {"imagenet-mobile": 21, "imagenet-fbnet": 22}
SMALL = {"channels": 4, "image": 16, "batch": 6, "device": "cpu"}


def compared(space, policies, *, drop=None, **overrides):
    sampler = sampler_of(space, layers=LAYERS[space], **overrides)
    size = {"channels": 4, "layers": LAYERS[space], "image": 32, "drop": drop}
    loss, oracle = gradients(sampler, "autograd", **size)
    for policy in policies:
        our_loss, ours = gradients(sampler, policy, **size)
        assert our_loss == pytest.approx(loss, abs=1e-12)
        yield worst_error(ours, oracle), ours, oracle


@pytest.mark.parametrize("space", LAYERS)
@pytest.mark.parametrize(("k", "mode"), [(1, "subgraphs"), (2, "union"), (2, "subgraphs")])
def test_gradients_of_every_policy(space, k, mode):
    for error, _, _ in compared(space, ("all", "bn", "nodes", "min"), k=k, mode=mode):
        assert error <= TOLERANCE


def test_layers_with_more_candidates_than_others_in_the_dense_mixture():
    for error, ours, _ in compared("imagenet-mobile", ("min",), method="darts"):
        assert error <= TOLERANCE
        assert torch.isfinite(ours["alpha.chain"]).all()


@pytest.mark.parametrize("mode", ["subgraphs", "union"])
def test_dropblock_identity_acts_on_the_shortcut_where_the_layer_is_left_out(mode):
    drop = Drop("dropblock", torch.tensor(0.4), torch.tensor([9, 3]))
    sampler = sampler_of("imagenet-mobile", layers=21, k=2, mode=mode)
    zero = sampler.space.operations.index("zero")
    with torch.no_grad():
        sampler.alpha[CHAIN][:, zero] += 3000.0
    size = {"channels": 4, "layers": 21, "image": 32}
    _, without = gradients(sampler, "min", **size)
    _, oracle = gradients(sampler, "autograd", drop=drop, **size)
    _, ours = gradients(sampler, "min", drop=drop, **size)
    assert worst_error(ours, oracle) <= TOLERANCE
    assert worst_error(without, oracle) > 1e-3
    with torch.no_grad():
        sampler.alpha[CHAIN][:, zero] = -1e4
    sampler.k = 1
    _, never = gradients(sampler, "min", **size)
    _, dropped = gradients(sampler, "min", drop=drop, **size)
    assert worst_error(dropped, never) == 0.0


def test_a_chain_of_left_out_layers_is_its_first_layers():
    net = SuperNet(space_named("imagenet-mobile"), channels=4, layers=21, classes=3, dtype=torch.float64)
    sampler = sampler_of("imagenet-mobile", layers=21, k=1, mode="union")
    with torch.no_grad():
        sampler.alpha[CHAIN].zero_()[:, -1] = 60.0
    paths = sampler.draw(0, 1.0, grad=False).networks[0]
    ran = [space_named("imagenet-mobile").operations[columns[0]] for columns in paths[CHAIN].operations]
    shortcuts = [layer.shortcut for layer in MOBILE.layers]
    assert [name == "zero" for name in ran] == shortcuts
    assert torch.isfinite(net(torch.randn(2, 3, 32, 32, dtype=torch.float64), paths)).all()


def test_published_widths():
    assert [sum(not layer.shortcut for layer in chain.layers) for chain in (MOBILE, FBNET)] == [6, 6]
    skeleton = search_skeleton(space_named("imagenet-mobile"), channels=32, layers=21, stem="imagenet")
    assert [layer.channels for layer in skeleton.layers] == [16] + [24] * 4 + [40] * 4 + [80] * 4 + [96] * 4 + [
        192
    ] * 4 + [320]
    assert (skeleton.stride, skeleton.head_in, skeleton.channels_out) == (32, 320, 1280)
    wide = search_skeleton(space_named("imagenet-mobile"), channels=44, layers=21, stem="imagenet")
    assert [layer.channels for layer in wide.layers][:6:5] == [24, 56] and wide.channels_out == 1760


@pytest.mark.parametrize("space", LAYERS)
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("pc-darts", "darts2")])
def test_every_method_takes_steps_and_derives_a_chain(space, method):
    config = build({**SMALL, "space": space, "method": method, "stem": "cifar"}, {})
    learner, _, _ = build_learner(config, torch.device("cpu"), 3)
    images, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    moment = Moment(0, tau=1.0, lr=0.01, drop_rate=0.3, guided=True)
    before = learner.sampler.alpha[CHAIN].detach().clone()
    learner.alpha_step(images, labels, moment)
    learner.weight_step(images, labels, moment)
    assert not torch.equal(before, learner.sampler.alpha[CHAIN])
    genotype = derived(learner.sampler)
    allowed = space_named(space).names_of(CHAIN)
    assert all(name in names for name, names in zip(genotype.layers, allowed, strict=True))


@pytest.mark.parametrize("space", LAYERS)
def test_random_chains_run(space):
    found = random_cells(space_named(space), 3, 2)
    assert found[0] != found[1]
    net = SuperNet(space_named(space), channels=4, layers=LAYERS[space], classes=3)
    for genotype in found:
        paths = genotype_paths(space_named(space), genotype, torch.device("cpu"))
        with torch.no_grad():
            assert net(torch.randn(4, 3, 32, 32), paths).shape == (4, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "pc-darts"}, "partial channels"),
        ({"layers": 20}, "allowed 21"),
        ({"image": 24}, "a multiple of 16"),
        ({"k": 7}, "k 1 to 6"),
        ({"k": 7, "mode": "union"}, "k 1 to 6"),
        ({"k": 8}, "1 to 7"),
        ({"edges_per_node": 2, "k": 1}, "one incoming edge"),
    ],
)
def test_settings_that_no_chain_has(change, words):
    with pytest.raises(ConfigError, match=words):
        build({}, {"space": "imagenet-mobile", "image": 32, **change})


@pytest.mark.parametrize(
    ("impl", "changes"),
    [
        ("native", {"policy": "min"}),
        ("native", {"policy": "bn", "space": "imagenet-fbnet", "mode": "subgraphs"}),
        ("reference", {"policy": "all", "dbi": "dropblock"}),
        ("reference", {"policy": "autograd", "space": "imagenet-fbnet"}),
        ("native", {"policy": "min", "method": "darts", "stem": "imagenet", "image": 64}),
    ],
    ids=str,
)
def test_predicted_against_real_peak(impl, changes):
    size = {"space": "imagenet-mobile", "channels": 8, "image": 32, "batch": 8, "dbi": "off", "mode": "union"}
    config = demo(**{**size, **changes})
    target = Target("here", False, impl, False, {"float32": Speed(1e10, 1e11, 1e-6)})
    choices = choices_of(Sampler(space_named(config.space), config), DRAW, TAU)
    probe = SearchProbe(config, target, dropped=config.dbi != "off", choices=choices)
    predicted = probe(config.k, config.batch, config.policy, config.mode, config.dtype)
    real_bytes = measured_peak_bytes(config, impl, guided=True, dropped=config.dbi != "off")
    assert predicted.peak.bytes == pytest.approx(real_bytes, rel=0.005)


def test_a_step_of_min_takes_a_fifth_of_plain_autograd_per_image():
    found = {}
    for policy, impl in (("autograd", "reference"), ("min", "native")):
        peaks = []
        for batch in (8, 16):
            config = demo(
                space="imagenet-mobile", stem="imagenet", channels=16, image=64, batch=batch, policy=policy,
                mode="union", dbi="off",
            )  # fmt: skip
            probe = SearchProbe(config, Target("here", False, impl, False, {"float32": Speed(1e10, 1e11, 1e-6)}))
            peaks.append(probe(config.k, batch, policy, config.mode, config.dtype).peak.bytes)
        found[policy] = peaks[1] - peaks[0]
    assert 5 * found["min"] <= found["autograd"]


def test_recipes_are_the_published_protocols():
    mobile, fbnet = imagenet_mobile(), imagenet_fbnet()
    assert (mobile.k, mobile.layers, mobile.label_smoothing, mobile.alpha_every) == (2, 21, 0.1, 5)
    assert (fbnet.layers, fbnet.num_classes, fbnet.alpha_lr) == (22, 100, 1e-2)


def test_label_smoothing_is_in_the_weights_loss_alone():
    images, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    moment = Moment(0, tau=1.0, lr=0.01, drop_rate=0.0, guided=False)
    weights, alphas = [], []
    for smoothing in (0.0, 0.2):
        config = build({**SMALL, "space": "imagenet-mobile", "label_smoothing": smoothing, "alpha_beta1": 0.0}, {})
        learner, _, _ = build_learner(config, torch.device("cpu"), 3)
        learner.alpha_step(images, labels, moment)
        alphas.append(learner.sampler.alpha[CHAIN].detach().clone())
        learner.weight_step(images, labels, moment)
        weights.append(learner.net.classifier.weight.detach().clone())
    assert torch.equal(*alphas) and not torch.equal(*weights)
