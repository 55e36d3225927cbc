"""Which part of each image is shown, and how: windows, flips and colours, drawn for the image and not for the loader.

What is drawn for an image is a function of (seed, stream, epoch, number of the image). It depends neither on who
decodes it nor on when, so that every loader shows the same and a search goes on in mid-epoch without any state.

Shape suffixes: B images of a batch, D draws of an image, T tries.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# torchvision's RandomResizedCrop.
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10
# Evaluation shows the middle 7/8 of the shorter side, as 224 of 256 pixels.
CENTRE = 7 / 8
# Two a try, two for the place, one for the flip, four for the colours.
DRAWS = 2 * TRIES + 7
# From RGB to luma and chroma (NTSC's YIQ), in which a hue is an angle.
YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
MIDDLE_GRAY = 127.5

Strengths = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Views:
    """How the images of a batch are shown.

    Attributes:
        windows_B4: int64 top, left, height and width of the window, in pixels of the upright image.
        flips_B: bool, left to right.
        colours_B34: float32 [B, 3, 4]; a colour c of 0 to 255 becomes m[:, :3] c + m[:, 3], cut off to 0 to 255.
            None leaves colours as they are.
    """

    windows_B4: NDArray[np.int64]
    flips_B: NDArray[np.bool_]
    colours_B34: NDArray[np.float32] | None = None


def centre_views(sizes_B2: NDArray[np.int64]) -> Views:
    """The central square of 7/8 of the shorter side (height, width: `sizes_B2`), rounded to whole pixels."""
    side_B1 = np.maximum(1, np.rint(sizes_B2.min(1, keepdims=True) * CENTRE)).astype(np.int64)
    return Views(
        np.concatenate([(sizes_B2 - side_B1) // 2, side_B1, side_B1], 1), np.zeros(len(sizes_B2), dtype=np.bool_)
    )


def random_views(
    sizes_B2: NDArray[np.int64], indices_B: NDArray[np.int64], *, seed: int, stream: str, epoch: int,
    jitter: Strengths | None = None,
) -> Views:  # fmt: skip
    """Random-resized crops, flips with probability 1/2, and colours.

    Args:
        sizes_B2: height and width of the images.
        indices_B: their numbers in the data set.
        seed, stream, epoch: what is drawn belongs to these and to the number.
        jitter: strengths of brightness, contrast, saturation and hue, see `colour_maps`.
    """
    draws_BD = uniform(indices_B, DRAWS, seed, stream, epoch, "view")
    windows_B4 = resized_windows(sizes_B2, draws_BD[:, : 2 * TRIES + 2])
    colours_B34 = None if jitter is None else colour_maps(draws_BD[:, 2 * TRIES + 3 :], jitter)
    return Views(windows_B4, draws_BD[:, 2 * TRIES + 2] < 0.5, colours_B34)


def seed_of(*words: str | int) -> int:
    """The 64-bit BLAKE2b hash of `repr(words)`."""
    return int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=8).digest(), "little")


def uniform(indices_B: NDArray[np.int64], count: int, *words: str | int) -> NDArray[np.float64]:
    """`count` numbers of [0, 1) for each index, a function of it and the words alone; float64 [B, count].

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) at places index * count + 0, 1, ..., its seed the words'.
    """
    seed = seed_of(*words)
    place = indices_B.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(1, count + 1, dtype=np.uint64)
    z = np.asarray(np.uint64(seed) + place * np.uint64(0x9E3779B97F4A7C15), dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = (z ^ (z >> np.uint64(31))) >> np.uint64(11)
    return z.astype(np.float64) * 2.0**-53


def resized_windows(sizes_B2: NDArray[np.int64], draws_BD: NDArray[np.float64]) -> NDArray[np.int64]:
    """Windows as torchvision's RandomResizedCrop.get_params draws them: int64 [B, 4].

    The area is uniform in SCALE of the image's, the logarithm of width / height uniform in that of RATIO; the first of
    ten tries that lies within the image counts. Where none does, the largest central window of an allowed ratio.

    Args:
        sizes_B2: height and width.
        draws_BD: uniform in [0, 1): ten areas, ten ratios, the place from above and from the left.
    """
    height_B, width_B = sizes_B2.T
    area_BT = height_B[:, None] * width_B[:, None] * (SCALE[0] + draws_BD[:, :TRIES] * (SCALE[1] - SCALE[0]))
    low, high = np.log(RATIO)
    ratio_BT = np.exp(low + draws_BD[:, TRIES : 2 * TRIES] * (high - low))
    w_BT, h_BT = np.rint(np.sqrt(area_BT * ratio_BT)), np.rint(np.sqrt(area_BT / ratio_BT))
    inside_BT = (w_BT > 0) & (w_BT <= width_B[:, None]) & (h_BT > 0) & (h_BT <= height_B[:, None])
    rows, first_B = np.arange(len(sizes_B2)), inside_BT.argmax(1)
    found_B = inside_BT.any(1)
    shape = width_B / height_B
    fallback_h = np.where(shape < RATIO[0], np.rint(width_B / RATIO[0]), height_B)
    fallback_w = np.where(shape > RATIO[1], np.rint(height_B * RATIO[1]), width_B)
    h_B = np.where(found_B, h_BT[rows, first_B], fallback_h).astype(np.int64)
    w_B = np.where(found_B, w_BT[rows, first_B], fallback_w).astype(np.int64)
    top_B = np.where(found_B, draws_BD[:, -2] * (height_B - h_B + 1), (height_B - h_B) // 2).astype(np.int64)
    left_B = np.where(found_B, draws_BD[:, -1] * (width_B - w_B + 1), (width_B - w_B) // 2).astype(np.int64)
    return np.stack([top_B, left_B, h_B, w_B], 1)


def colour_maps(draws_B4: NDArray[np.float64], strengths: Strengths) -> NDArray[np.float32]:
    """Colour jitter as one affine map of RGB: float32 [B, 3, 4], see `Views`.

    Factors as torchvision's ColorJitter draws them: brightness, contrast and saturation uniform in
    [max(0, 1 - strength), 1 + strength], the turn of the hue in [-strength, strength] of a circle. They act in one
    order (hue, saturation, contrast, brightness), contrast is about middle gray and the hue turns in YIQ, as in DALI's
    color_twist: so the whole is one map that no loader has to compute pixel by pixel in steps.
    """
    strength_4 = np.array(strengths)
    low_3 = np.maximum(0, 1 - strength_4[:3])
    b, c, s = (low_3 + draws_B4[:, :3] * (1 + strength_4[:3] - low_3)).T
    angle = 2 * np.pi * strengths[3] * (2 * draws_B4[:, 3] - 1)
    turn_B33 = np.zeros((len(draws_B4), 3, 3))
    turn_B33[:, 0, 0] = 1
    turn_B33[:, 1, 1] = turn_B33[:, 2, 2] = s * np.cos(angle)
    turn_B33[:, 1, 2], turn_B33[:, 2, 1] = -s * np.sin(angle), s * np.sin(angle)
    linear_B33 = (b * c)[:, None, None] * (np.linalg.inv(YIQ) @ turn_B33 @ YIQ)
    shift_B31 = np.broadcast_to((b * (1 - c) * MIDDLE_GRAY)[:, None, None], (len(draws_B4), 3, 1))
    return np.concatenate([linear_B33, shift_B31], 2).astype(np.float32)
