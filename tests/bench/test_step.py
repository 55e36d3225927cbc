"""build_step, and the memory that the project promises."""

from __future__ import annotations

import pytest
import torch
from msgdas.bench import build_step
from msgdas.bench.memory import MIB, kept_bytes, peak_bytes, slope, slopes
from msgdas.bench.variants import SIZES, published
from msgdas.engine.errors import ConfigError
from msgdas.profiles.tracker import LiveBytes

SMALL = {"channels": 4, "layers": 3, "batch": 2, "image": 16}


@pytest.mark.parametrize(
    ("options", "limit_mib"),
    [
        *(({"k": k, "policy": "min"}, 2.8) for k in (1, 2, 4, 8)),
        ({"k": 2, "policy": "min", "mode": "subgraphs"}, 2.9),
        ({"k": 4, "policy": "min", "mode": "subgraphs"}, 2.9),
        ({"k": 2, "policy": "bn"}, 10.0),
    ],
)
@pytest.mark.slow
def test_peak_per_sample_of_a_cifar_step(options, limit_mib):
    assert slope((8, 16), **SIZES["darts"], **options).per_sample_bytes / MIB <= limit_mib


@pytest.mark.slow
def test_peak_per_sample_at_imagenets_size():
    assert slope((8, 16), **SIZES["imagenet"], k=2, policy="min").per_sample_bytes / MIB <= 7.5


@pytest.mark.slow
def test_plain_dense_darts_costs_what_was_published():
    # quark0/darts at C=16, 8 layers keeps 119.70 MiB per sample for backward; its passes peak at 119.9.
    found = slope((2, 4), **SIZES["darts"], method="darts", **published("darts").options)
    assert found.kept_per_sample_bytes / MIB == pytest.approx(119.70, rel=0.001)
    assert found.per_sample_bytes / MIB == pytest.approx(119.9, rel=0.01)


def test_what_is_kept_is_what_autograd_saves():
    """The counter between forward and backward against the storages that autograd's own hooks are shown."""
    step = build_step(**{**SMALL, "batch": 8}, method="darts", policy="autograd", gradients="all")

    def saved_bytes(batch):
        part, sizes = step.cut(batch), {}
        own = [*step.net.parameters(), *step.sampler.parameters(), part.images_BCHW]
        mine = {tensor.untyped_storage()._cdata for tensor in own}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in mine:
                sizes[storage._cdata] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = part.forward()
        del loss
        return sum(size for size, _ in sizes.values())

    per_image = (saved_bytes(8) - saved_bytes(4)) / 4
    assert (kept_bytes(step) - kept_bytes(step.cut(4))) / 4 == pytest.approx(per_image, rel=0.002)


def test_slopes_differ_from_draw_to_draw_and_repeat():
    options = {**SMALL, "policy": "autograd", "gradients": "lazy"}
    del options["batch"]
    first = slopes((4, 8), draws=4, **options)
    assert len(set(first)) > 1
    assert slopes((4, 8), draws=4, **options) == first
    assert len(slopes((2, 4), draws=4, **options, method="darts")) == 1


def test_policies_are_ordered_in_memory():
    size = {name: value for name, value in SMALL.items() if name != "batch"}
    peaks = [
        slope((8, 16), **size, k=4, policy=policy).per_sample_bytes
        for policy in ("min", "nodes", "bn", "all", "autograd")
    ]
    assert peaks == sorted(peaks)
    assert peaks[-1] > 4 * peaks[0]


@pytest.mark.parametrize("method", ["msg", "darts", "gdas"])
@pytest.mark.parametrize("policy", ["min", "autograd"])
@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_every_method_takes_steps(method, policy, space):
    options = {**SMALL, "method": method, "policy": policy, "space": space}
    if method != "msg":
        options |= (
            {"k": 8 if space == "darts" else 5, "mode": "union"} if method == "darts" else {"k": 1, "mode": "subgraphs"}
        )
    step = build_step(**options)
    assert torch.isfinite(step.forward())
    step.step()
    step.step()
    assert step.number == 2


@pytest.mark.parametrize("mode", ["union", "subgraphs"])
def test_all_gradients_are_those_of_every_network(mode):
    """Sub-graphs share alpha's graph; what a W step throws away is still what alpha's step would get."""
    step = build_step(**SMALL, policy="autograd", mode=mode, gradients="all", dtype="float64")
    step.forward().backward()
    expected = [alpha.grad.clone() for alpha in step.sampler.parameters()]
    step.learner.drop_gradients()
    step.weight_step()
    for alpha, grad in zip(step.sampler.parameters(), expected, strict=True):
        assert torch.allclose(alpha.grad, grad, rtol=1e-10, atol=1e-14) and grad.any()


def test_same_seed_same_loss_in_every_policy_and_layout():
    losses = {
        (policy, layout): build_step(**SMALL, policy=policy, layout=layout, dtype="float64").forward().item()
        for policy, layout in (("min", "nhwc"), ("all", "nhwc"), ("autograd", "nhwc"), ("autograd", "nchw"))
    }
    assert max(losses.values()) - min(losses.values()) < 1e-12
    assert build_step(**SMALL, seed=1, dtype="float64").forward().item() != losses["min", "nhwc"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"impl": "cuda"}, "unknown value of impl"),
        ({"gradients": "some"}, "gradients"),
        ({"k": 0}, "1 to 8"),
        ({"k": 9}, "1 to 8"),
        ({"policy": "most"}, "policy"),
        ({"layout": "nchw"}, "channels_last"),
        ({"image": 30}, "multiple of"),
        ({"method": "pc-darts"}, "fixes the policy; got min; allowed autograd"),
        ({"method": "chance"}, "unknown method"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        build_step(**options)


def test_tracker_counts_births_and_deaths_and_no_views():
    outside = torch.zeros(1000)
    with LiveBytes() as tracker:
        a = torch.ones(256)
        b = a.view(16, 16).add_(1)
        outside.add_(1)
        del a
        assert tracker.live_bytes == 1024
        del b
        assert tracker.live_bytes == 0
        c = torch.empty(100) + outside[:100]
    assert tracker.peak_bytes == 1024
    assert c.shape == (100,)


def test_tracker_agrees_with_the_allocators_own_events():
    """The peak of a step against torch's profiler, which logs every allocation of the CPU allocator."""
    from torch.profiler import ProfilerActivity, profile

    step = build_step(**{**SMALL, "batch": 8, "channels": 8})
    step.step()
    step.learner.weight_optimizer.zero_grad()
    step.learner.alpha_optimizer.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step.step()
    live = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    step.number -= 1
    assert peak_bytes(step) == pytest.approx(peak, rel=0.05)
