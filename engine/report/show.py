"""`msgdas show`: the cells, alpha and the cost of the derived network, as text or JSON, and the cells' pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, EngineError, RunFolderError
from ..run.checkpoint_files import damaged
from ..run.rundir import GENOTYPE, METRICS, RunFolder, is_training, read_metrics
from ..settings.config import from_json
from ..settings.resources import limits_at
from ..spaces.constrained import most_probable
from ..spaces.costs import NetworkSize
from ..spaces.counting import Cost, count
from ..spaces.derive import skip_count
from ..spaces.genotype import CHAINS, Genotype
from ..spaces.genotype_text import load_any
from ..spaces.quantities import LIMITS
from ..spaces.space import CHAIN, FAMILIES, NASBENCH201, SearchSpace, StemKind, space_named
from .cost import MeasuredCost
from .draw import save_cells
from .sizes import size_of, size_text
from .subject import TrainRun, read_run

SVG, PNG = "cells.svg", "cells.png"
NOT_MEASURED = "  latency and peak memory on this machine: the same command with --measure"
KEPT = "  of cost.json, from the end of the training; on this machine now: the same command with --measure"


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is shown: a genotype, with alpha where a run tells it, and the folder for its pictures.

    Attributes:
        training: the run that it was trained in, where the target is a training's run folder.
    """

    genotype: Genotype
    folder: Path
    epoch: int | None = None
    alpha: Mapping[str, list[list[float]]] | None = None
    training: TrainRun | None = None


def show(
    target: str,
    *,
    channels: int | None = None,
    layers: int | None = None,
    image: int | None = None,
    classes: int | None = None,
    stem: StemKind | None = None,
    limits: Mapping[str, str] | None = None,
    device_table: str = "",
    out: Path | None = None,
    as_json: bool = False,
    measured: Callable[[Genotype, NetworkSize], MeasuredCost] | None = None,
) -> str:
    """What `msgdas show` prints; writes cells.svg and cells.png.

    Args:
        target: a run folder, a genotype file as `load_any` reads it, or `FILE:NAME`.
        channels, layers, image, classes, stem: of the derived network. Without them that of a training's run folder
            is counted as it was trained. Of all else DARTS cells are counted at
            C=36, 20 layers, 32 px, 10 classes, NAS-Bench-201 cells at C=16, 15 layers, and chains at their published
            widths, 224 px, 1000 classes; the stem is ImageNet's from 64 px on, but for NAS-Bench-201.
        limits: as `limits_at` takes them; a run's alpha is derived again within them.
        device_table: file of the latencies that a limit is of.
        out: folder for the pictures, made where missing; otherwise the run folder or the file's folder.
        as_json: whether to return JSON.
        measured: measures the derived network on this machine; without it nothing is measured and no torch needed, and
            what a training's cost.json holds is shown where it is of the same size.

    Raises:
        GenotypeError: where the target is missing or not a genotype.
        RunFolderError: for a run folder without a genotype, or an `out` that cannot be written to.
        ConfigError: for a size that the network cannot have.
    """
    subject = _subject(target)
    training = subject.training
    trained = None if training is None else training.size
    size = size_of(subject.genotype.space, channels, layers, image, classes, stem, trained)
    if limits:
        subject = replace(subject, genotype=_within(subject, size, limits, device_table))
    cost = count(subject.genotype, **asdict(size))
    kept = None if training is None or size != trained else training.measured
    found = kept if measured is None else measured(subject.genotype, size)
    faults = damaged(Path(target))
    told = {
        "damaged_checkpoints": faults,
        "trained_at": None if trained is None else asdict(trained),
        "measured": None if found is None else found.to_json_dict(),
        "measured_by": None if found is None else "cost.json" if measured is None else "this command",
    }
    pictures, trouble = _save_pictures(subject, out)
    if as_json:
        return json.dumps(_as_dict(subject, size, cost, pictures) | told, indent=2)
    where = f"pictures: {pictures['svg']}, {pictures['png']}" if pictures else f"no pictures: {trouble}; --out DIR"
    costs = [*_cost_lines(size, cost, _size_note(training, size)), *([] if found is None else found.lines())]
    if measured is None:
        costs.append(NOT_MEASURED if found is None else KEPT)
    return "\n".join([*_cell_lines(subject), *_alpha_lines(subject), *costs, *faults, where])


def genotype_of(target: str) -> Genotype:
    """The genotype of a run folder, of a file as `load_any` reads it, or of that name. Raises as `show`."""
    return _subject(target).genotype


def _subject(target: str) -> _Subject:
    path = Path(target)
    if not path.is_dir():
        own = path if path.exists() else Path(target.rpartition(":")[0])
        return _Subject(load_any(target), own.parent)
    training = _training(path)
    if training is not None:
        epoch = None if training.last is None else training.last.number - 1
        return _Subject(training.genotype, path, epoch, training=training)
    rows = [row for row in read_metrics(path / METRICS) if row.get("kind") == "epoch"]
    last: dict[str, Any] = rows[-1] if rows else {}
    if (path / GENOTYPE).exists():
        genotype = load_any(path / GENOTYPE)
    elif "genotype" in last:
        genotype = Genotype.from_json_dict(last["genotype"])
    else:
        raise RunFolderError(
            f"{path} holds no genotype yet",
            got=f"neither {GENOTYPE} nor an epoch in {METRICS}",
            allowed="a run folder with one finished epoch",
            next=f"msgdas search --resume {path}",
        )
    epoch = last.get("epoch")
    return _Subject(
        genotype, path, epoch if isinstance(epoch, int) else None, _known_alpha(genotype, last.get("alpha"))
    )


def _training(path: Path) -> TrainRun | None:
    """The training in a run folder; None for a search, or where the folder cannot be read as a run."""
    try:
        run = read_run(path) if is_training(path) else None
    except EngineError:
        return None
    return run if isinstance(run, TrainRun) else None


def _size_note(training: TrainRun | None, size: NetworkSize) -> str:
    """Which size is counted, for a training."""
    if training is None:
        return ""
    if training.size != size:
        return f", not as it was trained: {size_text(training.size)}, {training.size.stem} stem"
    return ", as it was trained" + ("" if training.classes else "; its number of classes is not known")


def _within(subject: _Subject, size: NetworkSize, texts: Mapping[str, str], device_table: str) -> Genotype:
    """The most probable genotype of the last epoch's alpha within the limits."""
    if subject.alpha is None:
        raise ConfigError(
            "only a run tells the alpha that limits are kept with", got="a genotype, or a run without an epoch",
            allowed="a run folder with one finished epoch", next="msgdas show RUN --max-macs 600M",
        )  # fmt: skip
    config = RunFolder.open(subject.folder, from_json).config
    if config.edge_norm:
        raise ConfigError(
            "the run's learned edge weights are not among its rows", got="edge_norm true", allowed="edge_norm false",
            next="set the limits in the search",
        )  # fmt: skip
    # What is no candidate has probability 0 there.
    weights = {kind: [[value or -1.0 for value in row] for row in rows] for kind, rows in subject.alpha.items()}
    limits = limits_at(config.space, size, {**dict.fromkeys(LIMITS, ""), **texts}, device_table)
    return most_probable(space_named(config.space), weights, limits)


def _known_alpha(genotype: Genotype, alpha: object) -> dict[str, list[list[float]]] | None:
    """The epoch row's probabilities, or None where they are not a table of the genotype's space."""
    space = FAMILIES[genotype.space]
    if not isinstance(alpha, dict) or set(alpha) != {spec.kind for spec in space.cells}:
        return None
    for spec in space.cells:
        rows = alpha[spec.kind]
        if not isinstance(rows, list) or len(rows) != len(spec.edges):
            return None
        if not all(_is_row(space, row) for row in rows):
            return None
    return alpha


def _is_row(space: SearchSpace, row: object) -> bool:
    return (
        isinstance(row, list)
        and len(row) == space.num_operations
        and all(type(value) in (int, float) and 0 <= value <= 1 for value in row)
    )


def _save_pictures(subject: _Subject, out: Path | None) -> tuple[dict[str, str] | None, str]:
    """The files written and "", or None and why; a folder that the user named must take them."""
    folder = subject.folder if out is None else out
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        save_cells(subject.genotype, folder / SVG, folder / PNG)
    except OSError as error:
        if out is None:
            return None, f"cannot write to {folder} ({error.strerror})"
        raise RunFolderError(
            f"cannot write the pictures to {out}",
            got=error.strerror,
            allowed="a writable folder",
            next="another --out",
        ) from None
    return {"svg": str(folder / SVG), "png": str(folder / PNG)}, ""


def _cell_lines(subject: _Subject) -> list[str]:
    genotype, skips = subject.genotype, skip_count(subject.genotype)
    if genotype.space in CHAINS:
        return _chain_lines(genotype, skips[CHAIN])
    lines = [genotype.arch] if genotype.space == NASBENCH201.name else []
    for kind in genotype.kinds:
        spec = genotype.spec(kind)
        lines.append(f"{kind} (output {', '.join(map(str, spec.concat))}; skip-connects {skips[kind]})")
        for node, pairs in enumerate(genotype.node_pairs(kind), start=spec.inputs):
            terms = " + ".join(f"{operation}({source})" for operation, source in pairs)
            lines.append(f"  {node} = {terms}")
    return lines


def _chain_lines(genotype: Genotype, skips: int) -> list[str]:
    chain = FAMILIES[genotype.space].chain
    assert chain is not None
    lines = [f"{CHAIN} ({len(genotype.layers)} layers; {skips} left out)"]
    for number, (layer, name) in enumerate(zip(chain.layers, genotype.layers, strict=True), start=1):
        ends = "stride 2" if layer.stride == 2 else "shortcut" if layer.shortcut else ""
        lines.append(f"  {number:2} {chain.stages[layer.stage][0]:4} channels  {name:12} {ends}".rstrip())
    return lines


def _alpha_lines(subject: _Subject) -> list[str]:
    if subject.alpha is None:
        return []
    space = FAMILIES[subject.genotype.space]
    width = max(map(len, space.operations))
    lines = []
    for spec in space.cells:
        lines.append(f"alpha of {spec.kind} after epoch {subject.epoch} (probabilities)")
        lines.append("  edge   " + " ".join(f"{operation:>{width}}" for operation in space.operations))
        for edge, row in zip(spec.edges, subject.alpha[spec.kind], strict=True):
            lines.append(f"  {edge.source} -> {edge.target} " + " ".join(f"{value:>{width}.3f}" for value in row))
    return lines


def _cost_lines(size: NetworkSize, cost: Cost, note: str) -> list[str]:
    head = "" if cost.params_with_aux is None else f" ({cost.params_with_aux:,} with the auxiliary head)"
    return [
        f"derived network: {size_text(size)}, {size.stem} stem{note}",
        f"  parameters {cost.params:,}{head}",
        f"  MACs {cost.macs:,} (convolutions and classifier, one image)",
        f"  FLOPs {cost.flops:,} (= 2 x MACs)",
    ]


def _as_dict(subject: _Subject, size: NetworkSize, cost: Cost, pictures: dict[str, str] | None) -> dict[str, Any]:
    return {
        "space": subject.genotype.space,
        "genotype": subject.genotype.to_json_dict(),
        "skips": skip_count(subject.genotype),
        "epoch": subject.epoch,
        "alpha": subject.alpha,
        "network": asdict(size),
        **asdict(cost),
        "flops": cost.flops,
        "pictures": pictures,
    }
