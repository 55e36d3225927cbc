"""What is drawn for an image: windows as torchvision's, flips, colours, all of them functions of the words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgdas.engine.images.crops import RATIO, SCALE, TRIES, colour_maps, random_views, resized_windows, uniform
from numpy.typing import NDArray
from torchvision.transforms import RandomResizedCrop


def test_windows_are_those_of_torchvision() -> None:
    """The same algorithm on other random numbers: area, ratio and place have the same distribution."""
    torch.manual_seed(0)
    sizes = np.tile(np.array([[261, 300]]), (4000, 1))
    ours = resized_windows(sizes, uniform(np.arange(4000), 2 * TRIES + 2, 0, "test"))
    empty = torch.empty(3, 261, 300)
    theirs = np.array([RandomResizedCrop.get_params(empty, list(SCALE), list(RATIO)) for _ in range(4000)])
    for one, other in (
        (ours.prod(1, where=[False, False, True, True]), theirs.prod(1, where=[False, False, True, True])),
        *zip(ours.T, theirs.T, strict=True),
    ):
        quantiles = [np.quantile(part, np.linspace(0.05, 0.95, 19)) for part in (one, other)]
        assert np.abs(quantiles[0] - quantiles[1]).max() < 0.05 * max(one.max(), other.max())


@pytest.mark.parametrize("size", [(20, 900), (900, 20)])
def test_where_no_window_fits_it_is_torchvisions_central_one(size: tuple[int, int]) -> None:
    theirs = RandomResizedCrop.get_params(torch.empty(3, *size), list(SCALE), list(RATIO))
    ours = resized_windows(np.array([size]), uniform(np.arange(1), 2 * TRIES + 2, 0, "test"))
    assert ours.tolist() == [list(theirs)]


def test_half_of_the_images_are_mirrored() -> None:
    views = random_views(np.full((4000, 2), 90), np.arange(4000), seed=0, stream="w", epoch=0)
    assert abs(views.flips_B.mean() - 0.5) < 0.03


@given(
    sizes=st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_windows_lie_within_the_image(sizes: list[tuple[int, int]], seed: int) -> None:
    sizes_B2 = np.array(sizes)
    indices_B = np.arange(len(sizes)) * 7919
    views = random_views(sizes_B2, indices_B, seed=seed, stream="w", epoch=2)
    top_B, left_B, height_B, width_B = views.windows_B4.T
    assert (views.windows_B4[:, :2] >= 0).all() and (views.windows_B4[:, 2:] > 0).all()
    assert (top_B + height_B <= sizes_B2[:, 0]).all() and (left_B + width_B <= sizes_B2[:, 1]).all()
    alone = random_views(sizes_B2[-1:], indices_B[-1:], seed=seed, stream="w", epoch=2)
    assert (alone.windows_B4[0] == views.windows_B4[-1]).all()


def test_draws_belong_to_the_words_and_are_uniform() -> None:
    drawn = uniform(np.arange(5000), 8, 1, "w")
    assert drawn.min() >= 0 and drawn.max() < 1
    assert np.abs(drawn.mean(0) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(drawn.T) - np.eye(8)).max() < 0.06
    assert not np.isin(uniform(np.arange(50), 8, 2, "w"), drawn).any()


def test_colour_maps_are_the_identity_without_strength_and_keep_gray_gray() -> None:
    draws_B4: NDArray[np.float64] = uniform(np.arange(20), 4, 0)
    none = colour_maps(draws_B4, (0, 0, 0, 0))
    np.testing.assert_allclose(none[:, :, :3], np.broadcast_to(np.eye(3), (20, 3, 3)), atol=1e-5)
    np.testing.assert_allclose(none[:, :, 3], 0, atol=1e-3)
    gray = colour_maps(draws_B4, (0.4, 0.4, 0.4, 0.2)) @ np.array([90, 90, 90, 1.0])
    assert np.ptp(gray, axis=1).max() < 0.01
    assert np.ptp(gray[:, 0]) > 10
