"""`python -m msgdas.bench loaders`: what an image of a random-resized crop costs the processor, loader by loader.

torchvision's ImageFolder (Pillow, transforms v2, a DataLoader in this process) and the project's own loaders make the
same number of normalised float32 batches of the same tree, in turn in one process; ratios are taken pass by pass. CPU
time is that of all threads. ImageFolder uses one core here, the others as many as they have threads: images/s say what
each delivers, CPU time what it costs.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ..engine.errors import ConfigError
from ..engine.images import dali
from ..engine.images.batches import ALONE, Batches
from ..engine.images.crops import Views, random_views
from ..engine.images.decoding import Decoder, open_picture
from ..engine.images.feeding import Feed
from ..engine.images.images import FolderImages, Statistics
from ..engine.settings.config import build
from . import command
from .gate import Gate
from .results import Row, provenance, row, show_and_keep

PIL = "ImageFolder, PIL"
# ImageNet's, as every recipe has them; they change nothing of the time.
STATISTICS = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Gray levels by which the mean pixel of a crop may differ from Pillow's decoder and torchvision's resize.
ALLOWED_LEVELS = 1.0
COMPARED = 32
CPU = torch.device("cpu")

Pass = Callable[[], None]


class Contest:
    """The loaders on one tree.

    Args:
        root: of class folders.
        image, batch, threads: of all loaders.
        batches: of a pass.
    """

    def __init__(self, root: Path, *, image: int, batch: int, threads: int, batches: int) -> None:
        self.root, self.image, self.batch, self.threads = root, image, batch, threads
        self.data = FolderImages(str(root), root, image=image, statistics=STATISTICS)
        most = len(self.data.labels) // batch
        if most < 2:
            raise ConfigError(
                f"{root} has too few images for two batches", got=f"{len(self.data.labels)} images, batch {batch}",
                allowed=f"a batch of {max(1, len(self.data.labels) // 2)} or less", next="--batch 16",
            )  # fmt: skip
        self.batches = min(batches, most)
        self.loaders = ("torch", *(["dali"] if dali.why_not(CPU) is None else []))

    def feed(self, loader: str) -> Feed:
        config = build(
            {"data": f"imagefolder:{self.root}", "image": self.image, "batch": self.batch, "loader": loader,
             "workers": self.threads, "crop": "resized"},
            {},
        )  # fmt: skip
        return Feed(self.data, config, ALONE, CPU)

    def gate(self) -> Gate:
        """Both decoders against Pillow's decoder and torchvision's resize, on the same windows."""
        pictures = [open_picture(self.data.read(n), self.data.name_of(n)) for n in range(min(COMPARED, self.batch))]
        sizes_B2 = np.array([(picture.height, picture.width) for picture in pictures])
        views = random_views(sizes_B2, np.arange(len(pictures)), seed=0, stream="gate", epoch=0)
        truth_BHWC = torch.stack([self._by_pillow(number, views) for number in range(len(pictures))])
        errors = {}
        for loader in self.loaders:
            feed = self.feed(loader)
            decoder: Decoder = feed.source("gate").decoder
            levels = (decoder.decode(pictures, views).float() - truth_BHWC).abs().mean((1, 2, 3))
            errors[loader] = levels.max().item()
            feed.close()
        return Gate(
            max(errors.values()) <= ALLOWED_LEVELS, errors,
            f"mean gray levels of a crop that differ from Pillow and torchvision, {ALLOWED_LEVELS:g} allowed",
        )  # fmt: skip

    def _by_pillow(self, number: int, views: Views) -> Tensor:
        from PIL import Image

        with Image.open(self.data.paths[number]) as opened:
            pixels = functional.pil_to_tensor(opened.convert("RGB"))
        size = [self.image, self.image]
        shown = functional.resized_crop(pixels, *views.windows_B4[number].tolist(), size=size, antialias=True)
        return (shown.flip(2) if views.flips_B[number] else shown).permute(1, 2, 0).float()

    def passes(self, stack: ExitStack) -> Mapping[str, Pass]:
        """A pass of each loader: that many batches, the next ones with every call."""
        made: dict[str, Pass] = {PIL: _pass(self._image_folder(), self.batches)}
        for loader in self.loaders:
            feed = self.feed(loader)
            stack.callback(feed.close)
            batches = stack.enter_context(
                Batches(
                    self.data, torch.arange(len(self.data.labels)), batch=self.batch, seed=0, stream="bench",
                    augment=True, source=feed.source("bench"),
                )
            )  # fmt: skip
            made[loader] = _pass(map(batches.at, itertools.count()), self.batches)
        return made

    def _image_folder(self) -> Iterator[Any]:
        change = v2.Compose(
            [
                v2.RandomResizedCrop(self.image, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True), v2.Normalize(STATISTICS.mean, STATISTICS.std),
            ]
        )  # fmt: skip
        loader = DataLoader(ImageFolder(str(self.root), change), self.batch, shuffle=True, drop_last=True)
        while True:
            yield from loader


def _pass(batches: Iterator[Any], count: int) -> Pass:
    def run() -> None:
        for _ in range(count):
            next(batches)

    return run


def measured(passes: Mapping[str, Pass], images: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Figures of each loader over `rounds` passes in turn, after one that warms up.

    Returns:
        By loader: cpu_ms per image, images_per_s, and `less`: ImageFolder's CPU time over its own in the same round.
    """
    found: dict[str, dict[str, list[float]]] = {
        name: {"cpu_ms": [], "images_per_s": [], "less": []} for name in passes
    }  # fmt: skip
    for number in range(rounds + 1):
        names = list(passes) if number % 2 else list(passes)[::-1]
        for name in names:
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            passes[name]()
            if number:
                found[name]["cpu_ms"].append(1e3 * (time.process_time() - cpu_s) / images)
                found[name]["images_per_s"].append(images / (time.perf_counter() - wall_s))
    for figures in found.values():
        pairs = zip(found[PIL]["cpu_ms"], figures["cpu_ms"], strict=True)
        figures["less"] = [theirs / ours for theirs, ours in pairs]
    return found


def line(found: Row) -> str:
    """A row of the table."""
    median = {name: figure["median"] for name, figure in found["figures"].items()}
    spread = found["figures"]["less"]
    return (
        f"{found['name']:18} {median['cpu_ms']:14.3f} {median['images_per_s']:10.0f} {median['less']:8.2f}x "
        f"({spread['min']:.2f} to {spread['max']:.2f})"
    )


def header(config: Mapping[str, Any]) -> str:
    return (
        f"random-resized crops of {config['image']} px, float32, {config['threads']} threads, medians of rounds\n"
        f"{'loader':18} {'CPU ms/image':>14} {'images/s':>10} {'less CPU time':>9}"
    )


def table(rows: Sequence[Row]) -> str:
    return "\n".join([header(rows[0]["config"]), *map(line, rows)])


def main(argv: Sequence[str]) -> int:
    made = command.parser("loaders", __doc__)
    made.add_argument("--data", type=Path, required=True, metavar="DIR", help="a tree of class folders")
    made.add_argument("--batches", type=int, default=10, help="batches of a round (default: 10)")
    command.add_sizes(made, image=224, batch=50, rounds=5, threads=2)
    arguments = made.parse_args(argv)
    torch.set_num_threads(1)
    contest = Contest(
        arguments.data, image=arguments.image, batch=arguments.batch, threads=arguments.threads,
        batches=arguments.batches,
    )  # fmt: skip
    gate = contest.gate()
    with ExitStack() as stack:
        images = contest.batches * contest.batch
        found = measured(contest.passes(stack), images, arguments.rounds)
    config = {"image": arguments.image, "batch": arguments.batch, "images": images, "threads": arguments.threads}
    facts = provenance(command.again("loaders", _nameless(argv)), threads=arguments.threads)
    if not arguments.json:
        print(header(config))
    rows = (row("loaders", name, config, figures, gate, facts) for name, figures in found.items())
    show_and_keep(rows, line, as_json=arguments.json, out=arguments.out)
    return 0


def _nameless(argv: Sequence[str]) -> list[str]:
    """The words without the folder of the one who measured."""
    return ["DIR" if before == "--data" else word for before, word in zip(["", *argv], argv, strict=False)]


if __name__ == "__main__":
    sys.exit(command.answer(main))
