"""The split, and batches as a function of the step."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgdas.engine.errors import DataError
from msgdas.engine.images.batches import PADDING, Batches, Shard, generator, split_halves
from msgdas.engine.images.images import Images, Statistics


def numbered(count: int = 40, *, image: int = 16, classes: int = 4) -> Images:
    """Images of random pixels."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, image, image, 3), dtype=np.uint8)
    labels = np.arange(count) % classes
    names = [f"class {number}" for number in range(classes)]
    statistics = Statistics((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    return Images.of("numbered", pixels, labels, names, image=image, statistics=statistics)


def batches(data: Images, *, count: int | None = None, **changes: Any) -> Batches:
    keywords: dict[str, Any] = {"batch": 6, "seed": 3, "stream": "w", "augment": True}
    indices = torch.arange(len(data.labels) if count is None else count)
    return Batches(data, indices, **(keywords | changes))


def normalised(data: Images, indices: torch.Tensor) -> torch.Tensor:
    pixels = data.pixels_NCHW[indices].double() / 255
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (data.statistics.mean, data.statistics.std))
    return ((pixels - mean) / std).float()


@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=6),
    seed=st.integers(0, 2**40),
    limit=st.integers(0, 60),
)
def test_halves_are_disjoint_equal_and_stratified(counts: list[int], seed: int, limit: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    weights, alpha = split_halves(labels, seed=seed, limit=limit)
    whole = sum(count // 2 for count in counts)
    assert len(weights) == len(alpha) == (min(limit, whole) if limit else whole)
    assert len(set(weights.tolist()) | set(alpha.tolist())) == 2 * len(weights)
    got = labels[weights].bincount(minlength=len(counts))
    assert torch.equal(got, labels[alpha].bincount(minlength=len(counts)))
    shares = [(part - 0.5, part + 0.5, count // 2) for part, count in zip(got.tolist(), counts, strict=True)]
    assert max(low / size for low, _, size in shares) <= min(high / size for _, high, size in shares)


def test_halves_of_balanced_classes_are_balanced_in_every_prefix() -> None:
    labels = torch.arange(200) % 10
    weights, alpha = split_halves(labels, seed=1, limit=70)
    for half in (weights, alpha):
        for end in range(10, 71, 10):
            assert labels[half[:end]].bincount().tolist() == [end // 10] * 10


def test_halves_are_a_function_of_the_seed() -> None:
    labels = torch.arange(100) % 5
    torch.manual_seed(1)
    first = split_halves(labels, seed=7)
    torch.manual_seed(2)
    again, other = split_halves(labels, seed=7), split_halves(labels, seed=8)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert set(first[0].tolist()) != set(other[0].tolist())
    assert torch.equal(split_halves(labels, seed=7, limit=10)[0], first[0][:10])


def test_a_class_with_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"class number 2 cannot be split.*got 1 image"):
        split_halves(torch.tensor([0, 0, 1, 1, 2]), seed=0)


def test_a_batch_is_a_function_of_its_step() -> None:
    data = numbered()
    forward = batches(data, cutout=4)
    expected = [forward.at(step) for step in range(15)]
    backward = batches(data, cutout=4)
    torch.manual_seed(99)
    for step in (14, 3, 3, 0, 7):
        batch = backward.at(step)
        assert torch.equal(batch.images_BCHW, expected[step].images_BCHW)
        assert torch.equal(batch.labels_B, expected[step].labels_B)
        assert torch.equal(batch.indices_B, expected[step].indices_B)


def test_fault_40_an_epoch_holds_each_image_once_and_the_next_one_another_order() -> None:
    data = numbered(42)
    loader = batches(data)
    assert loader.per_epoch == 7
    epochs = [torch.cat([loader.at(epoch * 7 + step).indices_B for step in range(7)]).tolist() for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(42))
    assert epochs[0] != epochs[1]


def test_fault_40_what_does_not_fill_a_batch_is_dropped() -> None:
    loader = batches(numbered(40))
    seen = torch.cat([loader.at(step).indices_B for step in range(loader.per_epoch)])
    assert loader.per_epoch == 6
    assert len(set(seen.tolist())) == 36


def test_labels_and_images_belong_to_their_indices() -> None:
    data = numbered()
    batch = batches(data, augment=False).at(4)
    assert torch.equal(batch.labels_B, data.labels[batch.indices_B])
    torch.testing.assert_close(batch.images_BCHW, normalised(data, batch.indices_B))
    assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert batches(data, dtype=torch.float64).at(4).images_BCHW.dtype == torch.float64


def test_streams_and_seeds_are_unrelated() -> None:
    data = numbered()
    orders = [batches(data, **changes).at(0).indices_B.tolist() for changes in ({}, {"stream": "alpha"}, {"seed": 4})]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_augmentation_follows_the_image_not_its_place() -> None:
    """The same images, listed in another order, are at other places and look the same."""
    data = numbered(24)
    straight = Batches(data, torch.arange(24), batch=6, seed=3, stream="w", augment=True, cutout=5)
    turned = Batches(data, torch.arange(24).flip(0), batch=6, seed=3, stream="w", augment=True, cutout=5)
    looks: list[dict[int, torch.Tensor]] = []
    for loader in (straight, turned):
        made = [loader.at(step) for step in range(4)]
        looks.append({int(i): x for batch in made for i, x in zip(batch.indices_B, batch.images_BCHW)})
    assert straight.at(0).indices_B.tolist() != turned.at(0).indices_B.tolist()
    assert all(torch.equal(looks[0][number], looks[1][number]) for number in range(24))
    later = {int(i): x for i, x in zip(straight.at(4).indices_B, straight.at(4).images_BCHW)}
    assert all(not torch.equal(image, looks[0][number]) for number, image in later.items())


def test_crops_and_flips_are_those_of_the_padded_image() -> None:
    """Every augmented image is one of the 2 * 9 * 9 crops, and over many images most of them occur."""
    data = numbered(300, image=8)
    loader = batches(data, batch=300)
    batch = loader.at(0)
    pixels = (
        batch.images_BCHW * torch.tensor(data.statistics.std).view(3, 1, 1)
        + torch.tensor(data.statistics.mean).view(3, 1, 1)
    ).mul(255).round().to(torch.uint8)  # fmt: skip
    padded = torch.nn.functional.pad(data.pixels_NCHW, (PADDING,) * 4)
    met = set()
    for number, image in zip(batch.indices_B.tolist(), pixels, strict=True):
        windows = padded[number].unfold(1, 8, 1).unfold(2, 8, 1)
        for flipped in (False, True):
            target = image.flip(-1) if flipped else image
            hits = (windows == target[:, None, None]).all(-1).all(-1).all(0).nonzero().tolist()
            met.update((row, column, flipped) for row, column in hits)
    assert len(met) > 120
    assert {row for row, _, _ in met} == {column for _, column, _ in met} == set(range(9))


def test_cutout_leaves_one_square_of_zeros() -> None:
    data = numbered(60)
    plain, cut = (batches(data, batch=60, cutout=side).at(0) for side in (0, 5))
    zeros = (cut.images_BCHW == 0).all(1)
    assert torch.equal(cut.images_BCHW, torch.where(zeros[:, None], torch.zeros(()), plain.images_BCHW))
    areas = zeros.sum((1, 2))
    assert areas.max() == 25
    assert areas.min() >= 9
    assert (zeros.any(2).sum(1) * zeros.any(1).sum(1)).tolist() == areas.tolist()


def test_prefetching_changes_nothing() -> None:
    data = numbered()
    plain = batches(data)
    with batches(data, prefetch=1) as ahead:
        for step in (0, 1, 2, 9, 10, 4, 5, 6, 7):
            assert torch.equal(ahead.at(step).images_BCHW, plain.at(step).images_BCHW)
    assert torch.equal(ahead.at(8).images_BCHW, plain.at(8).images_BCHW)


def test_sequential_covers_each_index_once_as_it_is() -> None:
    data = numbered(40)
    loader = batches(data)
    made = list(loader.sequential())
    assert [len(batch.labels_B) for batch in made] == [6] * 6 + [4]
    assert torch.cat([batch.indices_B for batch in made]).tolist() == list(range(40))
    torch.testing.assert_close(made[6].images_BCHW, normalised(data, torch.arange(36, 40)))
    assert [len(batch.labels_B) for batch in loader.sequential(13)] == [6, 6]
    assert [len(batch.labels_B) for batch in loader.sequential(14)] == [6, 6, 2]


def test_fault_40_fewer_images_than_a_batch_is_an_error() -> None:
    with pytest.raises(DataError, match=r"half w of numbered.*got 5 images for batch 6.*--batch 5"):
        batches(numbered(), count=5)


def test_the_generator_is_the_documented_hash() -> None:
    seed = int.from_bytes(hashlib.blake2b(b"(3, 'w', 0, 'order')", digest_size=8).digest(), "little")
    expected = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.randperm(9, generator=generator(3, "w", 0, "order")), expected)


def test_shards_are_the_parts_of_the_batch_in_order() -> None:
    data = numbered()
    whole = batches(data)
    for step in (0, 4, 9):
        parts = [batches(data, shard=Shard(rank, 3)).at(step) for rank in range(3)]
        assert torch.equal(torch.cat([part.indices_B for part in parts]), whole.at(step).indices_B)
        assert torch.equal(torch.cat([part.images_BCHW for part in parts]), whole.at(step).images_BCHW)
