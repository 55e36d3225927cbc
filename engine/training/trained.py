"""What a training has left in its run folder: its configuration and its newest good checkpoint."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError, ConfigError, DataError
from ..run import checkpoint
from ..run.rundir import RunFolder
from ..settings.train_config import TrainConfig, from_json


def trained(run: Path) -> tuple[TrainConfig, checkpoint.Checkpoint]:
    """Configuration and newest good checkpoint; a warning on stderr for each damaged one that is passed over.

    Raises:
        RunFolderError, ConfigError: no run folder of a training.
        CheckpointError: no checkpoint, or none that is whole and of this genotype and configuration.
    """
    config = RunFolder.open(run, from_json).config
    found = checkpoint.load(run, config)
    if found is None:
        raise CheckpointError(
            f"{run} has no checkpoint yet", got="none", allowed="a training with one finished epoch",
            next=f"msgdas train --resume {run}",
        )  # fmt: skip
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return config, found


@contextmanager
def data_for(classes: int, *, options: tuple[str, ...], next: str) -> Iterator[None]:
    """Where data are read for a finished network: what `load` advises is of options of search and train.

    Args:
        classes: of the network.
        options: those of the command that reads.
        next: said instead of advice that names another option.

    Raises:
        ConfigError: for data of fewer classes than the training drew.
        DataError: as `data.load`.
    """
    try:
        yield
    except DataError as error:
        if "num_classes" in error.next:
            raise ConfigError(
                "the network was trained for another number of classes", got=error.got, allowed=f"{classes} or more",
                next=next,
            ) from None  # fmt: skip
        if error.next.startswith("msgdas ") or set(re.findall(r"--[a-z]+", error.next)) <= {*options}:
            raise
        raise DataError(error.what, got=error.got, allowed=error.allowed, next=next) from None
