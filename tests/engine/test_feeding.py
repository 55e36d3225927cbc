"""Random-resized crops as batches: the same for every loader, thread and process, and close between decoders."""

from __future__ import annotations

import io
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from msgdas.engine.errors import ConfigError, DataError
from msgdas.engine.images import dali
from msgdas.engine.images.batches import ALONE, Batches, Shard
from msgdas.engine.images.crops import random_views
from msgdas.engine.images.decoding import Picture, TurboDecoder, open_picture, pixels_of
from msgdas.engine.images.feeding import Feed, Watch, changed_feeder
from msgdas.engine.images.images import FolderImages, Statistics
from msgdas.engine.images.sources import Meter, ResizedCrops
from msgdas.engine.images.workers import Workers, processors
from msgdas.engine.memory.prediction import SearchProbe, Target
from msgdas.engine.search.halves import open_halves
from msgdas.engine.settings.config import SearchConfig, build
from msgdas.engine.settings.inputs import device_pool_bytes
from msgdas.profiles.predictor import Speed
from PIL import Image

from ..loaders import LOADERS, needs_dali

CPU = torch.device("cpu")
GREY = Statistics((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def scene(seed: int, height: int, width: int) -> Image.Image:
    """Smooth colours: what two decoders and two resizers may differ in is little there."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 files of every kind that a photograph comes in, in two classes."""
    root = tmp_path_factory.mktemp("photographs")
    turned = Image.Exif()
    turned[274] = 6
    for number in range(16):
        path = root / "ab"[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        picture, kind = scene(number, 60 + 7 * number, 150 - 5 * number), number % 8
        if kind == 1:
            picture.convert("L").save(path)
        elif kind == 2:
            picture.save(path, quality=95, exif=turned)
        elif kind == 3:
            picture.save(path.with_suffix(".png"))
        elif kind == 4:
            picture.convert("CMYK").save(path)
        elif kind == 5:
            picture.save(path, progressive=True)
        elif kind == 6:
            picture.save(path, "PNG")
        else:
            picture.save(path)
    return root


def folder(root: Path, image: int = 32) -> FolderImages:
    return FolderImages("photographs", root, image=image, statistics=GREY)


def config_of(kind: str, **changes: object) -> SearchConfig:
    keys = {"data": "imagefolder:x", "image": 32, "crop": "resized", "batch": 4, "loader": kind, "workers": 2}
    return build(keys, changes)


def epoch_of(
    root: Path, loader: str, *, shard: Shard = ALONE, count: int = 16, **changes: object
) -> list[torch.Tensor]:
    """The images of the first epoch and a step of the next."""
    config, data = config_of(loader, **changes), folder(root)
    feed = Feed(data, config, shard, CPU)
    with Batches(
        data, torch.arange(count), batch=config.batch, seed=3, stream="w", augment=True, prefetch=config.prefetch,
        shard=shard, source=feed.source("w"),
    ) as batches:  # fmt: skip
        found = [batches.at(step).images_BCHW for step in range(batches.per_epoch + 1)]
    feed.close()
    return found


@pytest.mark.parametrize("loader", LOADERS)
def test_a_batch_is_the_same_for_any_threads_prefetch_and_shards(tree: Path, loader: str) -> None:
    straight = epoch_of(tree, loader, workers=1, prefetch=0)
    for images in straight:
        assert images.shape == (4, 3, 32, 32) and images.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(straight[0], straight[-1])
    for changes in ({"workers": 3, "prefetch": 3}, {"workers": 2, "prefetch": 1}):
        for one, other in zip(straight, epoch_of(tree, loader, **changes), strict=True):
            assert torch.equal(one, other)
    parts = [epoch_of(tree, loader, shard=Shard(rank, 2)) for rank in range(2)]
    for whole, first, second in zip(straight, *parts, strict=True):
        assert torch.equal(whole, torch.cat([first, second]))


@pytest.mark.parametrize("loader", LOADERS)
def test_any_step_can_be_asked_for_first(tree: Path, loader: str) -> None:
    """A search that goes on in mid-epoch asks for a later step of a new loader."""
    straight = epoch_of(tree, loader)
    config, data = config_of(loader), folder(tree)
    feed = Feed(data, config, ALONE, CPU)
    arguments = {"batch": 4, "seed": 3, "stream": "w", "augment": True, "prefetch": 2, "source": feed.source("w")}
    with Batches(data, torch.arange(16), **arguments) as batches:
        for step in (3, 1, 4, 1):
            assert torch.equal(batches.at(step).images_BCHW, straight[step])
    feed.close()


@needs_dali
@pytest.mark.parametrize("jitter", ["", "0.4,0.4,0.4,0.2"])
def test_both_decoders_show_the_same(tree: Path, jitter: str) -> None:
    """In gray levels of 255: a mean of 1 per image for two resizers and two ways to round; CMYK goes through Pillow."""
    for ours, theirs in zip(epoch_of(tree, "torch", jitter=jitter), epoch_of(tree, "dali", jitter=jitter), strict=True):
        levels = (ours - theirs).abs() * 255 * 0.25
        assert levels.mean((1, 2, 3)).max() < 1
        assert levels.max() < 16


@pytest.mark.parametrize("loader", LOADERS)
def test_evaluation_shows_the_middle_upright(tree: Path, loader: str) -> None:
    """As `FolderImages.gather` does by Pillow, which is what the other loader of folders takes."""
    config, data = config_of(loader), folder(tree)
    feed = Feed(data, config, ALONE, CPU)
    # 15 images by 7: batches larger than a pipeline's, and a last one of a single image, which is left out.
    arguments = {"batch": 4, "seed": 3, "stream": "w", "augment": True, "prefetch": 2, "source": feed.source("w")}
    with Batches(data, torch.arange(15), **arguments) as batches:
        found = list(batches.sequential(size=7))
    feed.close()
    assert [len(batch.labels_B) for batch in found] == [7, 7]
    theirs = (data.gather(torch.arange(14)) / 255.0 - 0.5) / 0.25
    levels = (torch.cat([batch.images_BCHW for batch in found]) - theirs).abs() * 255 * 0.25
    # Windows are whole pixels here and a sixteenth of the shorter side there: up to half a pixel apart.
    assert levels.mean((1, 2, 3)).max() < 6


def test_a_large_jpeg_is_decoded_smaller_and_shows_the_same_window() -> None:
    stored = io.BytesIO()
    scene(0, 700, 900).save(stored, "JPEG")
    picture = open_picture(stored.getvalue(), "large")
    whole = Picture("large", 700, 900, None, pixels_of(stored.getvalue(), "large"))
    views = random_views(np.array([[700, 900]] * 6), np.arange(6), seed=0, stream="w", epoch=0)
    workers = Workers(1)
    decoder = TurboDecoder(32, workers)
    small, full = (decoder.decode([one] * 6, views).float() for one in (picture, whole))
    workers.close()
    # A window is rounded to whole pixels of the smaller picture.
    assert 0 < (small - full).abs().mean((1, 2, 3)).max() < 5


def test_colours_are_cut_off_and_the_same_on_a_device(tree: Path) -> None:
    data, workers = folder(tree), Workers(2)
    source = ResizedCrops(
        data, seed=0, stream="w", jitter=(1, 1, 1, 0.5), dtype=torch.float32, decoder=TurboDecoder(32, workers),
        workers=workers,
    )  # fmt: skip
    images_BCHW = source.images(torch.arange(16), 0)
    assert images_BCHW.aminmax() == (-2, 2)
    pictures = [open_picture(data.read(number), str(number)) for number in range(16)]
    sizes_B2 = np.array([(picture.height, picture.width) for picture in pictures])
    views = random_views(sizes_B2, np.arange(16), seed=0, stream="w", epoch=0, jitter=(1, 1, 1, 0.5))
    theirs_BHWC = source._on_device(source.decoder.decode(pictures, views), views.colours_B34)
    workers.close()
    torch.testing.assert_close(images_BCHW, theirs_BHWC.permute(0, 3, 1, 2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "missing"])
def test_fault_34_an_image_that_cannot_be_decoded_is_named_and_nothing_else_said(
    tmp_path: Path, loader: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):
        path = tmp_path / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        scene(number, 90, 80).save(path)
    bad, content = tmp_path / "a" / "4.jpg", (tmp_path / "a" / "4.jpg").read_bytes()
    if damage == "missing":
        data = folder(tmp_path)
        bad.unlink()
    else:
        bad.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"not an image"}[damage])
        data = folder(tmp_path)
    config = config_of(loader)
    feed = Feed(data, config, ALONE, CPU)
    errors = []
    with Batches(data, torch.arange(8), batch=4, seed=3, stream="w", augment=True, source=feed.source("w")) as batches:
        for step in range(2):
            try:
                assert batches.at(step).images_BCHW.isfinite().all()
            except DataError as error:
                errors.append(str(error))
    feed.close()
    assert len(errors) == 1
    assert capfd.readouterr() == ("", "")
    assert re.match(rf"cannot read the image {re.escape(str(bad))}; got .+\. Next: ", errors[0])


@pytest.mark.parametrize("loader", LOADERS)
def test_stray_bytes_are_no_damage(tmp_path: Path, loader: str) -> None:
    """Pillow, and so ImageFolder, takes them; so does every loader here."""
    for name in "ab":
        stored = io.BytesIO()
        scene(1, 90, 80).save(stored, "JPEG")
        content = stored.getvalue()
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(content[:600] + bytes(50) + content[600:])
    assert epoch_of(tmp_path, loader, count=2, batch=2)[0].isfinite().all()


def test_fault_38_a_file_that_never_comes_is_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        scene(1, 40, 40).save(tmp_path / name / "1.jpg")
    os.mkfifo(tmp_path / "b" / "2.jpg")
    data, workers = folder(tmp_path), Workers(2, stall_s=0.3)
    feed = Feed(data, config_of("torch"), ALONE, CPU)
    source = ResizedCrops(
        data, seed=0, stream="w", jitter=None, dtype=torch.float32, decoder=feed.source("w").decoder, workers=workers
    )
    with pytest.raises(DataError, match=rf"reading {re.escape(str(tmp_path / 'b' / '2.jpg'))} hangs; got nothing for"):
        source.images(torch.arange(3), None)
    # The thread may end.
    with open(tmp_path / "b" / "2.jpg", "wb"):
        pass
    workers.close()
    feed.close()


def test_closing_waits_for_threads_that_still_work() -> None:
    workers, done = Workers(1, stall_s=0.05), threading.Event()
    (thread,) = [thread for thread in threading.enumerate() if thread.name.startswith("images-")][-1:]
    with pytest.raises(DataError, match="hangs"):
        workers.map(lambda number: done.wait(), [0], str)
    assert thread.is_alive()
    threading.Timer(0.2, done.set).start()
    workers.close()
    assert not thread.is_alive()


def test_the_first_error_by_order_is_raised_and_threads_end() -> None:
    workers = Workers(3)

    def fail(number: int) -> int:
        if number in (5, 11):
            raise ValueError(number)
        return number * number

    assert workers.map(fail, range(5), str) == [0, 1, 4, 9, 16]
    assert workers.map(fail, [], str) == []
    with pytest.raises(ValueError, match=r"^5$"):
        workers.map(fail, range(12), str)
    mine = [thread for thread in threading.enumerate() if thread.name.startswith("images-")]
    workers.close()
    for thread in mine[-3:]:
        thread.join(5)
        assert not thread.is_alive()


def test_fault_41_dali_that_is_missing_or_of_another_cuda_is_said(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(dali.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(DataError, match=r"loader dali cannot run: DALI is not installed; .*msgdas\[dali\]"):
            Feed(folder(tree), config_of("dali"), ALONE, CPU)
        feed = Feed(folder(tree), config_of("auto"), ALONE, CPU)
        assert feed.name == "torch"
        assert feed.note.endswith("; DALI is not installed")
        feed.close()
    if dali.why_not(CPU) is None:
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        assert dali.why_not(torch.device("cuda")) == "DALI was built for CUDA 13, PyTorch runs CUDA 12"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "cifar10"}, "random-resized crops are cut from images that are decoded"),
        ({"crop": "pad"}, "loader torch makes random-resized crops"),
        ({"loader": "memory"}, "random-resized crops need a decoder"),
        ({"cutout": 4}, "cutout goes with padded crops"),
        ({"jitter": "0.4"}, "jitter is four strengths"),
        ({"jitter": "0.4,0.4,nan,0.2"}, "jitter is four strengths"),
        ({"jitter": "1,1,1,0.1", "crop": "pad", "loader": "auto"}, "jitter goes with random-resized crops"),
        ({"prefetch": -1}, "prefetch is out of range"),
    ],
)
def test_keys_that_do_not_go_together(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of("torch", **changes)


def test_processes_of_a_machine_share_its_cores(tree: Path) -> None:
    for beside, changes, threads in (
        (1, {}, processors()),
        (processors(), {}, 1),
        (999, {}, 1),
        (4, {"workers": 3}, 3),
    ):
        feed = Feed(folder(tree), config_of("torch", **({"workers": 0} | changes)), ALONE, CPU, beside=beside)
        assert feed.workers.count == threads
        feed.close()


def test_crops_follow_data_and_side(tree: Path) -> None:
    for image, feeder in ((32, "memory"), (64, "torch")):
        config = SearchConfig(data=f"imagefolder:{tree}", image=image, batch=2, workers=1)
        with open_halves(config) as halves:
            assert halves.feeder == (feeder if dali.why_not(CPU) or image == 32 else "dali")
            assert halves.w.at(0).images_BCHW.shape == (2, 3, image, image)
            assert halves.waited_s > 0


def test_steps_that_wait_name_the_input_pipeline() -> None:
    meter = Meter()
    with meter.making(100):
        pass
    slow, quick = Watch("torch", meter, 100), Watch("dali", meter, 3)
    lines = [slow.step(1.0, 0.5) for _ in range(40)]
    assert [number for number, line in enumerate(lines) if line] == [20]
    assert lines[20] is not None and re.match(
        r"the input pipeline is the bottleneck: loader torch makes \d+ images/s while it works, steps wait 50%",
        lines[20],
    )
    found = [line for line in (quick.step(1.0, 0.1) for _ in range(9)) if line]
    assert len(found) == 1 and "steps wait 10% of their time" in found[0]
    assert Watch("memory", None, 1).step(1.0, 0.0) is None


def test_another_loader_than_before_is_said() -> None:
    rows = [{"kind": "data", "loader": "dali"}, {"kind": "step"}]
    assert changed_feeder(rows, "dali") is None
    assert changed_feeder([], "torch") is None
    assert "loader torch feeds this search now, dali did before" in (changed_feeder(rows, "torch") or "")


def test_a_plan_for_cuda_counts_what_is_made_ahead_there() -> None:
    config = config_of("dali", image=64, batch=8, prefetch=3)
    ahead = 2 * 3 * 8 * 3 * 64 * 64 * 2
    found = device_pool_bytes(config, 8, 2)
    assert found > ahead
    assert found - device_pool_bytes(config_of("dali", image=64, batch=8, prefetch=2), 8, 2) == ahead // 3
    assert device_pool_bytes(config, 16, 2) == 2 * found
    assert device_pool_bytes(config_of("torch", image=64), 8, 2) == 0
    assert device_pool_bytes(SearchConfig(), 8, 2) == 0
    needed = {}
    for loader in ("dali", "torch"):
        small = config_of(loader, image=64, batch=8, channels=4, layers=3)
        for cuda in (True, False):
            speeds = {"float32": Speed(1e11, 1e12, 1e-5)}
            probe = SearchProbe(small, Target("a device", cuda, "reference", False, speeds))
            needed[loader, cuda] = probe(2, 8, "min", "union", "float32").needed_bytes
    assert needed["dali", True] - needed["torch", True] == device_pool_bytes(config_of("dali", image=64), 8, 4)
    assert needed["dali", False] == needed["torch", False]
