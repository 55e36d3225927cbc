"""Convolutions, pools, BatchNorm and DropBlock masks against torch's own, forward and backward, in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from msgdas.kernels.reference import batchnorm, conv, dropblock, pooling
from torchvision.ops import drop_block2d

SIDES = (8, 7)


def maps(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def nchw(x):
    return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize("height", SIDES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("side", [3, 5, 7])
def test_depthwise_and_its_gradients(height, stride, dilation, side):
    x, w = maps(2, height, 10, 6).requires_grad_(), maps(6, 1, side, side, seed=1).requires_grad_()
    expected = F.conv2d(nchw(x), w, None, stride, dilation * (side // 2), dilation, 6)
    torch.testing.assert_close(nchw(conv.depthwise(x, w, dilation, stride)), expected)
    g = maps(*expected.permute(0, 2, 3, 1).shape, seed=2)
    dx, dw = torch.autograd.grad(expected, (x, w), nchw(g))
    ours = conv.depthwise_grads(g, x.detach(), w.detach(), dilation, stride, need_x=True, need_w=True)
    torch.testing.assert_close(ours[0], dx)
    torch.testing.assert_close(ours[1], dw)
    halves = [
        conv.depthwise_grads(g, x.detach(), w.detach(), dilation, stride, need_x=a, need_w=b)
        for a, b in ((True, False), (False, True))
    ]
    assert halves[0][1] is None and halves[1][0] is None
    torch.testing.assert_close(halves[0][0], dx)
    torch.testing.assert_close(halves[1][1], dw)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 3])
def test_dense_convolution(stride, side):
    x, w = maps(2, 6, 8, 4).requires_grad_(), maps(5, 4, side, side, seed=1).requires_grad_()
    expected = F.conv2d(nchw(x), w, None, stride, side // 2)
    torch.testing.assert_close(nchw(conv.conv(x, w, stride)), expected)
    g = maps(*expected.permute(0, 2, 3, 1).shape, seed=2)
    dx, dw = torch.autograd.grad(expected, (x, w), nchw(g))
    ours = conv.conv_grads(g, x.detach(), w.detach(), stride, need_x=True, need_w=True)
    torch.testing.assert_close(ours, (dx, dw))


def test_factorized_reduce_is_two_shifted_convolutions():
    x, w = maps(2, 6, 8, 4), (maps(3, 4, seed=1), maps(3, 4, seed=2))
    parts = [F.conv2d(nchw(x)[:, :, s:, s:], w[s][:, :, None, None], stride=2) for s in (0, 1)]
    torch.testing.assert_close(nchw(conv.factorized_reduce(x, w)), torch.cat(parts, 1))
    relu = conv.factorized_reduce(x, w, relu=True)
    torch.testing.assert_close(relu, conv.factorized_reduce(torch.relu(x), w))


@pytest.mark.parametrize("height", SIDES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("ties", [False, True])
def test_max_pool_and_its_gradient_with_torchs_tie_break(height, stride, ties):
    x = maps(2, height, 8, 3)
    x = (x.round() if ties else x).requires_grad_()
    expected = F.max_pool2d(nchw(x), 3, stride, 1)
    torch.testing.assert_close(nchw(pooling.max_pool(x.detach(), stride)), expected)
    g = maps(*expected.permute(0, 2, 3, 1).shape, seed=2)
    (dx,) = torch.autograd.grad(expected, x, nchw(g))
    torch.testing.assert_close(pooling.max_pool_input_grad(g, x.detach(), stride), dx)


@pytest.mark.parametrize("height", SIDES)
@pytest.mark.parametrize("stride", [1, 2])
def test_average_pool_leaves_the_padding_out(height, stride):
    x = maps(2, height, 8, 3).requires_grad_()
    expected = F.avg_pool2d(nchw(x), 3, stride, 1, count_include_pad=False)
    torch.testing.assert_close(nchw(pooling.avg_pool(x, stride)), expected)
    g = maps(*expected.permute(0, 2, 3, 1).shape, seed=2)
    (dx,) = torch.autograd.grad(expected, x, nchw(g))
    torch.testing.assert_close(pooling.avg_pool_input_grad(g, x.detach(), stride), dx)


def test_batchnorm_and_the_gate_gradient_that_comes_for_free():
    z, gate = (
        maps(3, 4, 5, 6).mul(2).add(1).requires_grad_(),
        torch.tensor(0.7, dtype=torch.float64, requires_grad=True),
    )
    out = gate * F.batch_norm(nchw(z), None, None, training=True, eps=batchnorm.EPSILON)
    dy = maps(3, 4, 5, 6, seed=1)
    dz, dgate = torch.autograd.grad(out, (z, gate), nchw(dy))
    stats = batchnorm.batch_stats(z.detach())
    s1 = batchnorm.sum_rows(dy)
    s2 = batchnorm.sum_dy_xhat(dy, z.detach(), stats, s1)
    torch.testing.assert_close(s2.sum(), dgate)
    for overwrite in (False, True):
        ours = batchnorm.input_grad(dy, z.detach().clone(), stats, s1, s2, 0.7, overwrite_z=overwrite)
        torch.testing.assert_close(ours, dz)
    xhat = batchnorm.normalize_(z.detach().clone(), stats)
    torch.testing.assert_close(batchnorm.input_grad_from_xhat_(0.7 * dy, xhat, stats[1]), dz)


def test_batchnorm_of_a_zero_map_is_zero():
    z = torch.zeros(2, 3, 3, 4)
    assert batchnorm.normalize_(z, batchnorm.batch_stats(z)).abs().max() == 0


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("side", [32, 28, 16, 8])
def test_dropblock_drops_as_much_as_torchvision(side, rate):
    torch.manual_seed(0)
    block = dropblock.block_side(side, side)
    theirs = torch.stack([drop_block2d(torch.ones(64, 16, side, side), rate, block) for _ in range(4)])
    keys = [dropblock.mask_key(0, draw, 0, 0) for draw in range(4)]
    ours = torch.stack([dropblock.block_mask(torch.ones(64, side, side, 16), rate, key) for key in keys])
    kept = (theirs > 0).float().mean().item()
    assert (ours > 0).float().mean().item() == pytest.approx(kept, abs=0.015)
    assert 1 - rate - 0.01 < kept, "overlapping blocks drop less than the rate"
    assert ours.mean().item() == pytest.approx(1, abs=1e-4)
    assert len(ours[0].unique()) == 2


def test_dropblock_drops_whole_blocks():
    mask = dropblock.block_mask(torch.ones(8, 16, 16, 4), 0.05, dropblock.mask_key(1, 0, 0, 0))
    dropped = nchw((mask == 0).double())
    opened = F.max_pool2d(-F.max_pool2d(-F.pad(dropped, [2] * 4), 5, 1), 5, 1, 2)
    assert torch.equal(opened[:, :, :16, :16] >= dropped, torch.ones_like(dropped, dtype=torch.bool))
    assert 0 < dropped.mean() < 0.2


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (14, 14), (8, 8), (7, 7), (2, 2), (1, 1), (4, 16)])
def test_block_side_is_odd_and_fits(height, width):
    block = dropblock.block_side(height, width)
    assert block % 2 == 1 and 1 <= block <= min(height, width)


@pytest.mark.parametrize("make", [dropblock.block_mask, dropblock.value_mask])
def test_masks_come_back_from_their_seed(make):
    x = torch.ones(4, 8, 8, 4)
    torch.manual_seed(1)
    first = make(x, 0.3, 42)
    torch.rand(10)
    assert torch.equal(first, make(x, 0.3, 42))
    assert not torch.equal(first, make(x, 0.3, 43))
