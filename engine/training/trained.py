"""What a training has left in its run folder: its configuration and its newest good checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import CheckpointError
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
