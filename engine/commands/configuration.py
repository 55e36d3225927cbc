"""Recipe, file, keys and flags of a configuration, as several commands take them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..settings.config import KEYS, SearchConfig, read_toml
from ..settings.keys import KeySet
from ..settings.recipes import RECIPES, recipe_named


def add_configuration(command: Any, keys: KeySet = KEYS, recipes: Mapping[str, Any] = RECIPES) -> None:
    """Recipe, file, keys and flags."""
    command.add_argument("recipe", nargs="?", help=f"one of {', '.join(recipes)} (default: demo)")
    command.add_argument("--config", type=Path, metavar="FILE.toml", help="a TOML file of configuration keys")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key that --keys lists")
    for name, field in keys.fields.items():
        if field.metadata["flag"]:
            allowed = keys.choices(name)
            command.add_argument(
                f"--{name.replace('_', '-')}", default=argparse.SUPPRESS,
                metavar="{" + ",".join(allowed) + "}" if allowed else type(field.default).__name__.upper(),
                help=field.metadata["help"].replace("%", "%%"),
            )  # fmt: skip


def config_of(arguments: argparse.Namespace) -> SearchConfig:
    """Recipe, TOML file, flags and --set, in this order.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    recipe, overrides = given(arguments)
    return recipe_named(recipe)(**overrides)


def given(arguments: argparse.Namespace, keys: KeySet = KEYS) -> tuple[str, dict[str, Any]]:
    """The recipe's name, and the keys that the user gave."""
    overrides: dict[str, Any] = read_toml(arguments.config) if arguments.config else {}
    recipe = overrides.pop("recipe", "demo")
    if not isinstance(recipe, str):
        raise ConfigError(
            "recipe has the wrong type", got=repr(recipe), allowed="a recipe's name",
            next=f"msgdas {keys.command} --help",
        )  # fmt: skip
    values = vars(arguments)
    for name in keys.fields:
        if name in values and name != "recipe":
            overrides[name] = keys.parse(name, values[name])
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(
                "--set takes KEY=VALUE", got=text, allowed="KEY=VALUE", next=f"msgdas {keys.command} --keys"
            )
        overrides[name.strip()] = keys.parse(name.strip(), value.strip())
    return arguments.recipe or recipe, overrides


def refuse_beside_resume(arguments: argparse.Namespace, keys: KeySet = KEYS) -> None:
    """Raise ConfigError where anything but the run folder is given with --resume."""
    values = vars(arguments)
    extra = [name for name in keys.fields if name in values and name != "recipe"]
    extra += [name for name in ("target", "recipe", "config", "out", "set") if values.get(name)]
    if extra:
        raise ConfigError(
            "--resume goes on with the run folder's own configuration", got=", ".join(extra),
            allowed="--resume RUN alone", next=f"msgdas {keys.command} --resume {arguments.resume}",
        )  # fmt: skip
