"""Recipe, file, keys and flags of a search's configuration, as several commands take them."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ..config import FIELDS, SearchConfig, choices, parse_value, read_toml
from ..errors import ConfigError
from ..recipes import RECIPES, demo, recipe_named


def add_configuration(command: Any) -> None:
    """Recipe, file, keys and flags of a search's configuration."""
    command.add_argument("recipe", nargs="?", help=f"one of {', '.join(RECIPES)} (default: demo)")
    command.add_argument("--config", type=Path, metavar="FILE.toml", help="a TOML file of configuration keys")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key that --keys lists")
    for name, field in FIELDS.items():
        if field.metadata["flag"]:
            if field.default is True:
                command.add_argument(
                    f"--no-{name}", dest=name, action="store_const", const="false", default=argparse.SUPPRESS,
                    help="do not " + field.metadata["help"],
                )  # fmt: skip
                continue
            allowed = choices(name)
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


def given(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The recipe's name, and the keys that the user gave."""
    overrides: dict[str, Any] = read_toml(arguments.config) if arguments.config else {}
    recipe = overrides.pop("recipe", "demo")
    if not isinstance(recipe, str):
        raise ConfigError(
            "recipe has the wrong type", got=repr(recipe), allowed=", ".join(RECIPES), next="msgdas search demo"
        )
    values = vars(arguments)
    for name in FIELDS:
        if name in values and name != "recipe":
            overrides[name] = parse_value(name, values[name])
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError("--set takes KEY=VALUE", got=text, allowed="KEY=VALUE", next="msgdas search --keys")
        overrides[name.strip()] = parse_value(name.strip(), value.strip())
    return arguments.recipe or recipe, overrides


def keys() -> str:
    """All configuration keys with the demo's values, as a TOML file that --config takes."""
    lines = []
    for name, value in dataclasses.asdict(demo()).items():
        text = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
        lines.append(f"# {FIELDS[name].metadata['help']}\n{name} = {text}")
    return "\n".join(lines)
