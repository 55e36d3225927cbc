"""`python -m msgdas.bench memory`: peak of live memory of a search step per image, for methods and policies.

A figure per image is the slope between two batches, so that what does not grow with the batch (gradients of the
sampled weights) stands apart. Kept is what lives between forward and backward of one network of a W step; the peak is
that of a whole step, alpha and weights, above what lives between steps. Counted storage by storage
(profiles/tracker.py), after a step that makes the optimizers' state.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch

from ..engine.errors import ConfigError
from ..profiles.tracker import LiveBytes
from . import command
from .gate import Gate, gates_of
from .results import Row, provenance, row, show_and_keep
from .step import Step, build_step
from .variants import BASE, Variant, of_methods, sampled, size_of, sweep, title

MIB = 1 << 20
# Peaks under plain autograd are straight lines from batch 2 on; those of recomputing policies move until batch 8.
BATCHES, PLAIN_BATCHES = (8, 16), (2, 3)
# The step that makes the optimizers' state needs few images, and few pixels of the last map.
WARM_IMAGES, WARM_PIXELS = 2, 2
MOST_WORKERS = 4


@dataclass(frozen=True, slots=True)
class Slope:
    """Peak bytes of a step as fixed_bytes + batch * per_sample_bytes, from two batches; what is kept likewise."""

    per_sample_bytes: float
    fixed_bytes: float
    kept_per_sample_bytes: float


def peak_bytes(step: Step) -> int:
    """The peak of live bytes of one whole step above what lives between steps; the step leaves alpha as it was."""
    learner = step.learner
    learner.drop_gradients()
    before = learner.alpha_state()
    with LiveBytes() as tracker:
        step.step()
    learner.drop_gradients()
    learner.put_back(before)
    return tracker.peak_bytes


def kept_bytes(step: Step) -> int:
    """Live bytes between forward and backward of the first network of a W step's draw."""
    with LiveBytes() as tracker:
        # The loss holds the graph.
        loss = step.forward(networks=1)
        kept = tracker.live_bytes
        del loss
    return kept


def slopes(batches: tuple[int, int], draws: int = 1, **options: Any) -> list[Slope]:
    """The lines through the peaks at two batches, one for each of the first draws.

    A method that runs every candidate needs the same at every draw and is measured at one.
    """
    low, high = batches
    whole = build_step(batch=high, **options)
    whole.cut(WARM_IMAGES, min(whole.config.image, WARM_PIXELS * whole.net.skeleton.stride)).step()
    found = []
    for draw in range(1, 2 if whole.config.k >= whole.sampler.num_alive else draws + 1):
        small, large = whole.cut(low), whole.cut(high)
        small.number = large.number = draw
        kept = kept_bytes(large) - kept_bytes(small)
        low_bytes, high_bytes = peak_bytes(small), peak_bytes(large)
        per_sample = (high_bytes - low_bytes) / (high - low)
        found.append(Slope(per_sample, low_bytes - low * per_sample, kept / (high - low)))
    return found


def slope(batches: tuple[int, int], **options: Any) -> Slope:
    """That of the first draw."""
    return slopes(batches, **options)[0]


def variants(methods: Sequence[str], space: str) -> Iterator[Variant]:
    """The lines of the table."""
    own = [
        *sweep(space),
        *(sampled(2, policy) for policy in ("nodes", "all")),
        *(sampled(k, "min", mode="subgraphs") for k in (2, 4)),
    ]
    return of_methods(methods, own)


def rows(
    lines: Sequence[Variant], size: dict[str, Any], batches: tuple[int, int] | None, draws: int, shown: str,
    workers: int = 1,
) -> Iterator[Row]:  # fmt: skip
    """A row for each line, in their order, once all gates are green; a line that its method does not have is left out.

    Args:
        batches: of the slopes; None takes `BATCHES`, and `PLAIN_BATCHES` under plain autograd.
        draws: of a method that samples.
        shown: the command that measures the same again.
        workers: processes that measure; bytes are counted, so that they do not disturb each other's figures.

    Raises:
        GateError: for a method whose gradients are wrong; there is no row then.
    """
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        waiting = []
        for line in lines:
            used = batches or (PLAIN_BATCHES if line.plain else BATCHES)
            options = {**size, "method": line.method, **line.options}
            waiting.append((line, used, options, pool.submit(_measured, used, draws, options)))
        try:
            gates = gates_of(lines, size["space"])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        yield from _rows(waiting, gates, provenance(shown))


def _measured(batches: tuple[int, int], draws: int, options: dict[str, Any]) -> list[Slope] | str:
    """The slopes, or why there are none."""
    try:
        return slopes(batches, draws, **options)
    except ConfigError as error:
        return str(error)


def _rows(
    waiting: Sequence[tuple[Variant, tuple[int, int], dict[str, Any], Future[list[Slope] | str]]],
    gates: Mapping[Any, Gate], facts: Mapping[str, Any],
) -> Iterator[Row]:  # fmt: skip
    for line, used, options, future in waiting:
        found = future.result()
        if isinstance(found, str):
            print(f"left out: {line.name}: {found}", file=sys.stderr)
            continue
        figures = {
            "kept_per_image_bytes": [one.kept_per_sample_bytes for one in found],
            "peak_per_image_bytes": [one.per_sample_bytes for one in found],
            "fixed_bytes": [one.fixed_bytes for one in found],
        }
        yield row("memory", line.name, {**options, "batches": list(used)}, figures, gates[line.key], facts)


def table(found: Sequence[Row], size: Mapping[str, Any]) -> str:
    """What people read of rows of one size."""
    bases = [one["figures"]["peak_per_image_bytes"]["median"] for one in found if one["name"] == BASE]
    lines = [table_line(one, bases[0] if bases else None) for one in found]
    return "\n".join([table_title(size), *lines])


def table_title(size: Mapping[str, Any]) -> str:
    """The lines above the rows."""
    columns = "".join(f" {name:>8}" for name in ("kept", "peak", "least", "most", "fixed"))
    head = f"{'step (alpha and weights)':40}{columns} {'times less':>10}"
    return f"{title(size)}; MiB per image, fixed in MiB\n{head}"


def table_line(one: Row, base: float | None) -> str:
    """MiB per image, the last but one column in MiB; how many times less than `base` bytes the peak is."""
    figures = one["figures"]
    peak = figures["peak_per_image_bytes"]
    cells = (figures["kept_per_image_bytes"]["median"], peak["median"], peak["min"], peak["max"],
             figures["fixed_bytes"]["median"])  # fmt: skip
    less = "" if base is None else f"{base / peak['median']:6.1f}x"
    return f"{one['name']:40}" + "".join(f" {value / MIB:8.2f}" for value in cells) + f" {less:>10}"


def main(argv: Sequence[str]) -> int:
    made = command.parser("memory", __doc__ or "")
    command.add_methods(made, "all")
    made.add_argument("--imagenet", action="store_true", help="224 px, C=48, 1000 classes instead of 32 px, C=16, 10")
    made.add_argument("--batches", type=int, nargs=2, metavar=("LOW", "HIGH"),
                      help="default: 8 16, and 2 3 under plain autograd")  # fmt: skip
    made.add_argument("--draws", type=int, default=3, help="draws of a method that samples (default: 3)")
    made.add_argument("--only", default="", metavar="TEXT", help="lines whose name holds this text")
    arguments = made.parse_args(argv)
    methods, size = command.methods_listed(arguments.methods), size_of(arguments.space, imagenet=arguments.imagenet)
    batches = None if arguments.batches is None else (arguments.batches[0], arguments.batches[1])
    if (batches is not None and not 2 <= batches[0] < batches[1]) or arguments.draws < 1:
        raise ConfigError(
            "a slope needs two batches and a draw", got=f"--batches {batches} --draws {arguments.draws}",
            allowed="2 <= LOW < HIGH, 1 draw or more", next="--batches 8 16 --draws 3",
        )  # fmt: skip
    lines = [one for one in variants(methods, arguments.space) if arguments.only in one.name]
    if not arguments.json:
        print(table_title(size), flush=True)
    # Dense rows of ImageNet's size take gigabytes each.
    workers = 1 if arguments.imagenet else min(os.cpu_count() or 1, MOST_WORKERS)
    base: dict[str, float] = {}

    def text(one: Row) -> str:
        if one["name"] == BASE:
            base["bytes"] = one["figures"]["peak_per_image_bytes"]["median"]
        return table_line(one, base.get("bytes"))

    found = rows(lines, size, batches, arguments.draws, command.again("memory", argv), workers)
    show_and_keep(found, text, as_json=arguments.json, out=arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(command.answer(main))
