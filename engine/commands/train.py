"""`msgdas train`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..settings.train_config import KEYS, RECIPES, demo, recipe_named
from ..spaces.genotype import Genotype
from .configuration import add_configuration, given, refuse_beside_resume

EXAMPLE = "DARTS_V2"


def add(commands: Any) -> None:
    train = commands.add_parser(
        "train", help="train the network of a cell from scratch", allow_abbrev=False,
        description="Train a derived network. Values: a recipe's, those of --config over them, flags over both.",
    )  # fmt: skip
    train.add_argument(
        "target",
        nargs="?",
        metavar="RUN|GENOTYPE",
        help="a search's run folder, a genotype file, a name as DARTS_V2, or random:SEED",
    )
    add_configuration(train, KEYS, RECIPES)
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with a training's run folder")
    train.add_argument("--out", type=Path, metavar="RUN", help="the new run folder (default: runs/train-RECIPE-DATE)")
    train.add_argument("--keys", action="store_true", help="list all configuration keys and leave")


def run(arguments: argparse.Namespace) -> str:
    if arguments.keys:
        return KEYS.listing(demo(genotype=json.dumps(_genotype(EXAMPLE).to_json_dict())))
    if arguments.resume:
        refuse_beside_resume(arguments, KEYS)
        from ..training.trainer import resume

        return _summary(resume(arguments.resume))
    if not arguments.target:
        raise ConfigError(
            "nothing to train", allowed="a run folder, a genotype file or a name as DARTS_V2",
            next="msgdas train DARTS_V2 demo",
        )  # fmt: skip
    recipe, overrides = given(arguments, KEYS)
    overrides["genotype"] = json.dumps(_genotype(arguments.target).to_json_dict())
    config = recipe_named(recipe)(**overrides)
    from ..training.trainer import train

    return _summary(train(config, out=arguments.out))


def _genotype(target: str) -> Genotype:
    """That of `genotype_of`, or for `random:SEED` a DARTS cell drawn uniformly."""
    name, _, seed = target.partition(":")
    if name == "random" and seed.isdecimal():
        from ..search.evaluate import random_cells
        from ..spaces.space import DARTS

        return random_cells(DARTS, int(seed), 1)[0]
    from ..report.show import genotype_of

    return genotype_of(target)


def _summary(result: Any) -> str:
    return (
        f"accuracy after the last epoch: {result.accuracy:.2%} (the best epoch's: {result.best_accuracy:.2%})\n"
        f"largest measured peak of a step: {result.peak_bytes / 2**20:.1f} MiB\n"
        f"look at it: {result.path / 'report.html'}, or msgdas eval {result.path}"
    )
