"""`msgdas latency`: measure, fit, keep and print a device's latencies."""

from __future__ import annotations

from pathlib import Path

import torch

from ..atomic import write_atomically
from ..errors import ConfigError
from ..report.sizes import size_of
from ..run.rundir import GENOTYPE
from ..search.evaluate import random_cells
from ..spaces.genotype import Genotype
from ..spaces.genotype_text import load_any
from ..spaces.latency_table import Latencies
from ..spaces.space import FAMILIES, StemKind, space_named
from .latency import measure_networks, measure_table, with_fit

SEED = 0


def latency(
    target: str | None, space_name: str, *, channels: int | None, layers: int | None, image: int | None,
    classes: int | None, stem: StemKind | None, networks: int, repeats: int, threads: int, device: str,
    out: Path | None, as_json: bool,
) -> str:  # fmt: skip
    """What `msgdas latency` prints.

    Args:
        target: a genotype or run to predict and measure too, as `msgdas show` takes it.
        space_name: whose operations are measured where there is no target.
        channels, layers, image, classes, stem: of the derived network, by default as `msgdas show`.
        networks: random cells that the predictor is fitted to, 0 for none, else 8 or more.
        repeats, threads: rounds, and threads of torch.
        device: cpu or cuda.
        out: where the table is kept.
        as_json: whether to return the table's JSON.

    Raises:
        GenotypeError: for a target that is none.
        ConfigError: for a size that the network cannot have, or a file that cannot be written.
    """
    for name, value, least in (("repeats", repeats, 1), ("threads", threads, 1), ("networks", networks or 8, 8)):
        if value < least:
            raise ConfigError(f"{name} is too small", got=value, allowed=f"{least} or more", next=f"--{name} {least}")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError("no such device here", got=device, allowed="cpu, or cuda with a GPU", next="--device cpu")
    genotype = None
    if target is not None:
        genotype = load_any(Path(target) / GENOTYPE if Path(target).is_dir() else target)
    space = space_named(space_name) if genotype is None else FAMILIES[genotype.space]
    size = size_of(space.family, channels, layers, image, classes, stem)
    where = torch.device(device)
    table = measure_table(space, size, repeats=repeats, threads=threads, device=where)
    cells = [*random_cells(space, SEED, networks), *([] if genotype is None else [genotype])]
    measured_ms = measure_networks(cells, size, repeats=repeats, threads=threads, device=where)
    if networks:
        table = with_fit(table, cells[:networks], measured_ms[:networks])
    if out is not None:
        _keep(table, out)
    if as_json:
        return table.to_json()
    lines = _lines(table)
    if genotype is not None:
        lines.append(f"the network of {target}: {measured_ms[-1]:.3f} ms measured, {_predicted(table, genotype)}")
    if out is not None:
        lines.append(f"search within it: --target-latency ...ms --set device_table={out}")
    return "\n".join(lines)


def _keep(table: Latencies, out: Path) -> None:
    try:
        write_atomically(out, table.to_json())
    except OSError as error:
        raise ConfigError(
            f"cannot write the device table {out}", got=error.strerror, allowed="a writable place",
            next="another --out",
        ) from None  # fmt: skip


def _predicted(table: Latencies, genotype: Genotype) -> str:
    text = f"{table.costs(lookup=True).of(genotype):.3f} ms by the table"
    return text if table.fitted is None else f"{text}, {table.costs().of(genotype):.3f} ms by the fitted model"


def _lines(table: Latencies) -> list[str]:
    size, facts = table.size, table.provenance
    lines = [
        f"{table.space}: C={size.channels}, {size.layers} layers, {size.image} px, {size.classes} classes, "
        f"{size.stem} stem; batch 1, fp32",
        f"{facts['device']}, {facts['threads']} thread(s), {facts['clock']} of {facts['repeats']}",
        f"{'operation':16} {'channels':>9} {'side':>5} {'stride':>6} {'ms':>9} {'spread':>7}",
    ]
    for part in table.parts:
        place = part.place
        channels = f"{place.channels_in}-{place.channels}" if place.channels_in != place.channels else place.channels
        lines.append(f"{place.name:16} {channels:>9} {place.side:5} {place.stride:6} {part.ms:9.4f} {part.spread:7.1%}")
    lines.append(f"stem, preprocessing, sums and classifier: {table.rest_ms:.4f} ms")
    if table.fit is not None:
        lines.append(
            f"mean relative error on {table.fit['held_out']} random networks: {table.fit['lookup_error']:.1%} by the "
            f"table's sum, {table.fit['error']:.1%} by the model fitted to {table.fit['networks']} others"
        )
    return lines
