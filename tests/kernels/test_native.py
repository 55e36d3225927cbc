"""The C++ kernels against torch's own: sizes, slices, threads, instruction sets, and values that are not numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from msgdas.kernels import native
from msgdas.kernels.primitives import Native, Reference, primitives
from msgdas.kernels.reference import batchnorm
from msgdas.kernels.reference.separable import Separable

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
CHANNELS = (3, 16, 20, 24, 48, 64)
SIZES = ((9, 8), (1, 1), (1, 4), (3, 2))
BATCH = 3
REFERENCE, KERNELS = Reference(), Native()


@pytest.fixture(params=range(len(native.SETS)), ids=native.SETS)
def instruction_set(request):
    """Every set that this CPU has, on 1 and 2 threads in turn."""
    if native.limit_instruction_set(request.param) != native.SETS[request.param]:
        pytest.skip(f"this CPU has no {native.SETS[request.param]}")
    before = torch.get_num_threads()
    torch.set_num_threads(1 + request.param % 2)
    yield
    torch.set_num_threads(before)
    native.limit_instruction_set(len(native.SETS))


def maps(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nchw(x):
    return x.permute(0, 3, 1, 2)


def sliced(x):
    """(x as the middle third of a wider map, that map)."""
    wide = torch.cat([torch.full_like(x, 7.0), x, torch.full_like(x, 9.0)], -1)
    return wide[..., x.shape[-1] : 2 * x.shape[-1]], wide


def around_is_untouched(wide):
    channels = wide.shape[-1] // 3
    return bool((wide[..., :channels] == 7.0).all() and (wide[..., 2 * channels :] == 9.0).all())


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_weight_gradient(channels, side, dilation, stride):
    for height, width in SIZES:
        x = maps(BATCH, height, width, channels)
        w = maps(channels, 1, side, side, seed=1).requires_grad_()
        y = F.conv2d(nchw(x), w, None, stride, dilation * (side // 2), dilation, channels)
        g = maps(*y.permute(0, 2, 3, 1).shape, seed=2)
        (expected,) = torch.autograd.grad(y, w, nchw(g))
        found = native.depthwise_weight_grad(g, x, side, dilation, stride)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def separable(channels, side, dilation, stages, *, stride=1, dtype=torch.float32):
    """A convolution whose depthwise weights lie as in a cell's arena."""
    weights = []
    for stage in range(stages):
        weights += [
            maps(side, side, channels, seed=10 + stage).permute(2, 0, 1).unsqueeze(1) / side,
            maps(channels, channels, seed=20 + stage) / channels**0.5,
        ]
    return Separable([weight.to(dtype) for weight in weights], dilation, stride)


def places_of(one):
    """Where the weights' gradients go."""
    return [torch.full_like(weight, torch.nan) for weight in one.weights]


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("side", "dilation", "stages"), [(3, 1, 2), (5, 1, 2), (3, 2, 1), (5, 2, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_separable_convolutions_and_their_gradients(channels, side, dilation, stages, stride):
    close = {"rtol": 2e-4, "atol": 2e-4, "check_dtype": False}
    for height, width in ((9, 8), (6, 4)):
        values = maps(BATCH, height, width, channels)
        x, _ = sliced(values)
        exact = separable(channels, side, dilation, stages, stride=stride, dtype=torch.float64)
        one = separable(channels, side, dilation, stages, stride=stride)
        shape = BATCH, -(-height // stride), -(-width // stride), channels
        theirs = REFERENCE.separable(exact, values.double())
        stats = batchnorm.batch_stats(theirs)
        expected = 1 + 0.7 * (theirs - stats[0]) * stats[1]
        dy, _ = sliced(maps(*shape, seed=1))
        dws = places_of(exact)
        gate_grad, dx = REFERENCE.separable_backward(
            exact, values.double(), dy.double(), theirs, stats, dy.double().sum((0, 1, 2)), 0.7, None, dws, need_x=True
        )

        out, wide = sliced(torch.ones(shape))
        z, found, constant = KERNELS.accumulate_separable_(out, one, x, 0.7)
        assert constant is None and around_is_untouched(wide) and len(one.inner_stats) == stages - 1
        torch.testing.assert_close(out, expected, **close)
        one.release()
        assert torch.equal(KERNELS.separable(one, x), z), "made again by the statistics of the first pass"
        grad, wide = sliced(torch.ones_like(values))
        written = places_of(one)
        ours = KERNELS.separable_backward(one, x, dy, z, found, None, 0.7, grad, written, need_x=True)
        assert ours[1] is grad and around_is_untouched(wide)
        torch.testing.assert_close(grad, 1 + dx, **close)
        assert ours[0] == pytest.approx(gate_grad.item(), rel=1e-3, abs=1e-3)
        for got, wanted in zip(written, dws, strict=True):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


def test_a_separable_convolution_computes_only_what_is_asked_for():
    x, dy = maps(2, 6, 6, 8), maps(2, 6, 6, 8, seed=1)
    for need_x, need_w in ((True, False), (False, True), (False, False)):
        one = separable(8, 3, 1, 2)
        z, stats, _ = KERNELS.accumulate_separable_(torch.zeros_like(dy), one, x, 0.5)
        dws = places_of(one)
        places = dws if need_w else []
        gate, dx = KERNELS.separable_backward(one, x, dy, z, stats, None, 0.5, None, places, need_x=need_x)
        assert isinstance(gate, float) and (dx is not None) == need_x
        assert all(dw.isnan().all() != need_w for dw in dws) and not one.inner_zs


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rows", [(3, 8, 8), (1, 3, 5), (2, 31, 33)])
def test_batchnorm_and_gate(channels, rows):
    z = maps(*rows, channels).mul(2).add(3).requires_grad_()
    gate = torch.tensor(0.7, requires_grad=True)
    dy = maps(*rows, channels, seed=1)
    normal = F.batch_norm(nchw(z).double(), None, None, training=True, eps=batchnorm.EPSILON)
    close = {"rtol": 1e-4, "atol": 2e-5, "check_dtype": False}

    out, wide = sliced(torch.ones_like(z))
    stats, constant = KERNELS.accumulate_(out, z.detach(), 0.7)
    assert constant is None and around_is_untouched(wide)
    torch.testing.assert_close(nchw(out), 1 + 0.7 * normal.detach(), **close)
    given = KERNELS.stats(z.detach())
    assert all(torch.equal(a, b) for a, b in zip(stats, given, strict=True))

    expected, d_gate = torch.autograd.grad(gate * normal, (z, gate), nchw(dy).double())
    strided, wide = sliced(dy)
    dz, found = KERNELS.norm_backward(strided, z.detach().clone(), given, None, 0.7)
    assert around_is_untouched(wide) and torch.equal(strided, dy)
    torch.testing.assert_close(dz, expected, **close)
    assert found == pytest.approx(d_gate.item(), rel=1e-4, abs=2e-4 * dy.numel() ** 0.5)


def test_statistics_of_a_map_far_from_zero_and_of_a_constant_one():
    z = maps(4, 16, 16, 20).add(1e3)
    mean, rstd = KERNELS.stats(z)
    torch.testing.assert_close(mean.double(), z.double().mean((0, 1, 2)))
    exact = torch.rsqrt(z.double().var((0, 1, 2), unbiased=False) + batchnorm.EPSILON)
    torch.testing.assert_close(rstd.double(), exact, rtol=1e-5, atol=0)
    constant = torch.full((2, 5, 5, 20), 0.3)
    out = torch.zeros_like(constant)
    KERNELS.accumulate_(out, constant, 1.0)
    assert out.abs().max() < 1e-4


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", ["max", "ties", "avg"])
def test_pools_and_their_gradients(channels, stride, kind):
    for height, width in SIZES:
        values = maps(BATCH, height, width, channels)
        x = (values.round() if kind == "ties" else values).requires_grad_()
        if kind == "avg":
            y = F.avg_pool2d(nchw(x), 3, stride, 1, count_include_pad=False)
            forward, add_grad = KERNELS.avg_pool, KERNELS.add_avg_pool_grad
        else:
            y = F.max_pool2d(nchw(x), 3, stride, 1)
            forward, add_grad = KERNELS.max_pool, KERNELS.add_max_pool_grad
        strided, _ = sliced(x.detach())
        torch.testing.assert_close(nchw(forward(strided, stride)), y.detach())
        g = maps(*y.permute(0, 2, 3, 1).shape, seed=2)
        (expected,) = torch.autograd.grad(y, x, nchw(g))
        torch.testing.assert_close(add_grad(None, g, strided, stride), expected, rtol=1e-5, atol=1e-6)
        grad, wide = sliced(torch.ones_like(values))
        assert add_grad(grad, g, strided, stride) is grad
        torch.testing.assert_close(grad, 1 + expected, rtol=1e-5, atol=1e-5)
        assert around_is_untouched(wide)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("channels", CHANNELS)
def test_gradient_of_relu_where_x_is_positive(channels):
    x, da, before = (maps(BATCH, 7, 5, channels, seed=seed) for seed in range(3))
    x[0, 0, 0] = 0.0
    grad, wide = sliced(before)
    KERNELS.add_relu_grad(grad, da.clone(), x, x.relu())
    assert torch.equal(grad, before + torch.where(x > 0, da, 0)) and around_is_untouched(wide)
    assert torch.equal(KERNELS.add_relu_grad(None, da.clone(), x, x.relu()), torch.where(x > 0, da, 0))


@pytest.mark.usefixtures("instruction_set")
def test_results_do_not_depend_on_the_number_of_threads():
    x, g = maps(19, 6, 10, 20), maps(19, 6, 10, 20, seed=1)

    def everything():
        stats = native.batch_stats(x, 1e-5)
        dz, gate = native.norm_backward_(g, x.clone(), stats, 0.3)
        grad = KERNELS.add_max_pool_grad(None, g, x, 1)
        xhat, found = KERNELS.prepare(x, [maps(20, 20, seed=2)], None)
        dx, dw = KERNELS.prepared_grads(g.clone(), xhat, x, [maps(20, 20, seed=2)], found, need_x=True, need_w=True)
        one = separable(20, 5, 1, 2)
        z, outer, _ = KERNELS.accumulate_separable_(torch.zeros_like(g), one, x, 0.3)
        dws = places_of(one)
        d_gate, d = KERNELS.separable_backward(one, x, g, z, outer, None, 0.3, None, dws, need_x=True)
        gates = torch.tensor([gate, d_gate])
        return [native.depthwise_weight_grad(g, x, 5, 2, 1), stats, dz, gates, grad, xhat, dx, *dw, *outer, d, *dws]

    before, found = torch.get_num_threads(), []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(everything())
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("channels", [3, 20, 64])
def test_what_is_not_a_number_does_not_get_lost(channels):
    x = maps(2, 6, 6, channels)
    x[0, 2, 3], x[1, 0, 0] = float("nan"), float("inf")
    for stride in (1, 2):
        expected = F.max_pool2d(nchw(x), 3, stride, 1)
        torch.testing.assert_close(nchw(native.max_pool(x, stride)), expected, equal_nan=True)
    mean, rstd = KERNELS.stats(x)
    assert mean.isnan().all() and rstd.isnan().all()
    z = KERNELS.separable(separable(channels, 3, 1, 1), torch.where(x.isinf(), 0.0, x))
    assert z[0].isnan().any() and not z[1].isnan().any()
    grad = torch.zeros_like(x)
    infinite = torch.full_like(x, float("inf"))
    native.add_where_positive_(grad, infinite, torch.full_like(x, -1.0))
    assert (grad == 0).all(), "an infinite gradient behind a dead ReLU is none"


def test_maps_that_the_kernels_do_not_take_go_through_plain_pytorch():
    for x in (maps(2, 6, 8, 4).double(), nchw(maps(2, 4, 6, 8)), maps(2, 12, 8, 4)[:, ::2], maps(2, 6, 8, 8)[..., ::2]):
        assert native.pixel_stride(x) is None
        one = separable(x.shape[-1], 3, 1, 2, dtype=x.dtype)
        torch.testing.assert_close(KERNELS.separable(one, x), REFERENCE.separable(one, x))
        g = torch.ones_like(x)
        for stride in (1, 2):
            torch.testing.assert_close(KERNELS.max_pool(x, stride), REFERENCE.max_pool(x, stride))
            torch.testing.assert_close(KERNELS.avg_pool(x, stride), REFERENCE.avg_pool(x, stride))
        stats = KERNELS.stats(x.contiguous())
        ours = KERNELS.norm_backward(x, g.contiguous(), stats, KERNELS.node_sum(x), 0.5)
        theirs = REFERENCE.norm_backward(x, g.contiguous(), stats, REFERENCE.node_sum(x), 0.5)
        torch.testing.assert_close(ours[0], theirs[0])
        out = [kernels.accumulate_(x.clone(), x, 0.5) for kernels in (KERNELS, REFERENCE)]
        torch.testing.assert_close(out[0][0], out[1][0])


def test_strides_of_sides_of_one_pixel_are_not_looked_at():
    wide = maps(2, 1, 1, 12)
    assert native.pixel_stride(wide[..., 4:8]) == 12
    assert native.pixel_stride(maps(3, 4, 5, 12)[..., 4:8]) == 12
    assert native.pixel_stride(torch.empty_strided((2, 1, 1, 4), (12, 1, 1, 1))) == 12
    assert native.pixel_stride(torch.empty_strided((1, 1, 1, 4), (9, 9, 9, 1))) == 4
    assert native.pixel_stride(torch.zeros(1, 1, 1, 1).expand(2, 3, 3, 4)) is None


def test_a_cells_inputs_are_prepared_alike():
    x, d = maps(2, 8, 8, 12), maps(2, 8, 8, 20, seed=1)
    for weights in ([maps(20, 12, seed=2)], [maps(10, 12, seed=3), maps(10, 12, seed=4)]):
        size = d[:, :: len(weights), :: len(weights)].contiguous()
        xhat, stats = KERNELS.prepare(x, weights, None)
        theirs, _ = REFERENCE.prepare(x, weights, None)
        torch.testing.assert_close(xhat, theirs, rtol=1e-4, atol=1e-5)
        for need_x, need_w in ((True, True), (True, False), (False, True)):
            ours = KERNELS.prepared_grads(size.clone(), xhat, x, weights, stats, need_x=need_x, need_w=need_w)
            plain = REFERENCE.prepared_grads(size.clone(), xhat, x, weights, stats, need_x=need_x, need_w=need_w)
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
            assert (ours[0] is not None) == need_x


def test_the_implementation_by_name():
    assert type(primitives("native")) is Native and type(primitives("reference")) is Reference
