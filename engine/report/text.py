"""Numbers, tables and command lines of the report, as text and HTML."""

from __future__ import annotations

import dataclasses
import html
import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..settings.config import KEYS, SearchConfig
from ..settings.keys import KeySet
from ..settings.recipes import RECIPES, demo
from ..settings.train_config import KEYS as TRAIN_KEYS
from ..settings.train_config import RECIPES as TRAIN_RECIPES
from ..settings.train_config import TrainConfig, recipe_values


def escaped(value: object) -> str:
    """The value as HTML text, quotes included."""
    return html.escape(str(value))


def quantity(value: float, unit: str, digits: int = 1) -> str:
    return f"{value:,.{digits}f} {unit}".rstrip() if math.isfinite(value) else "not measured"


def number_text(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else "none"


def percent(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else "not measured"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def nothing(reason: str) -> str:
    return f'<p class="faint">{escaped(reason)}</p>'


def config_table(config: SearchConfig | TrainConfig) -> str:
    """Every key with its value; a training's genotype is not among them, since it is drawn."""
    keys, base = _keys_and_base(config)
    rows = []
    for name, value in dataclasses.asdict(config).items():
        if name == "genotype":
            continue
        changed, instead = "", ""
        if value != base[name]:
            changed, instead = ' class="changed"', f' <span class="faint">recipe: {escaped(base[name])}</span>'
        rows.append(
            f'<tr{changed}><th scope="row">{name}</th><td>{escaped(value)}{instead}</td>'
            f'<td class="help">{escaped(keys.fields[name].metadata["help"])}</td></tr>'
        )
    head = '<tr><th scope="col">key</th><th scope="col">value</th><th scope="col" class="help">meaning</th></tr>'
    caption = "<caption>Resolved; where it differs from the recipe, both are given.</caption>"
    return f"<table>{caption}<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def environment_table(environment: Mapping[str, Any]) -> str:
    if not environment:
        return nothing("environment.json is missing or cannot be read.")
    rows = (
        f'<tr><th scope="row">{escaped(name)}</th><td>{escaped(value)}</td></tr>'
        for name, value in _flat("", environment)
    )
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(f"{prefix}[{index}]", inner)
    elif isinstance(value, list):
        yield prefix, " ".join(map(str, value)) or "none"
    elif prefix.endswith("memory_bytes") and isinstance(value, int):
        yield prefix, f"{value} ({value / 2**30:.1f} GiB)"
    else:
        yield prefix, "none" if value is None else str(value)


def reproduction(config: SearchConfig | TrainConfig, run_path: Path, commit: object) -> str:
    """The command lines that make this run again and that look at it."""
    # An absolute path would tell whoever gets the mail about its sender's disk.
    folder = run_path.name if run_path.is_absolute() else str(run_path)
    at = f" at commit <code>{escaped(commit)}</code>" if commit else ""
    if isinstance(config, TrainConfig):
        again, look = train_command(config, f"{folder}/genotype.json"), ["msgdas", "eval", folder]
    else:
        again, look = search_command(config), ["msgdas", "show", folder]
    lines = f"{again}\n{shlex.join(look)}"
    what = "training" if isinstance(config, TrainConfig) else "search"
    return f"<p>The same {what}{at}, and a look at this one:</p><pre>{escaped(lines)}</pre>"


def _keys_and_base(config: SearchConfig | TrainConfig) -> tuple[KeySet, dict[str, Any]]:
    """The keys, and their values in the recipe of that name, or in the demo where it is none."""
    if isinstance(config, TrainConfig):
        return TRAIN_KEYS, recipe_values(config.recipe)
    return KEYS, dataclasses.asdict(RECIPES.get(config.recipe, demo)(method=config.method))


def search_command(config: SearchConfig) -> str:
    """A command line that gives this configuration: its recipe, then every key that differs from it."""
    keys, base = _keys_and_base(config)
    recipe = config.recipe if config.recipe in RECIPES else "demo"
    base["method"] = RECIPES[recipe]().method
    return shlex.join(["msgdas", "search", recipe, *_options(keys, dataclasses.asdict(config), base)])


def train_command(config: TrainConfig, target: str) -> str:
    """As `search_command`, for the genotype in a file."""
    keys, base = _keys_and_base(config)
    recipe = config.recipe if config.recipe in TRAIN_RECIPES else "demo"
    values = dataclasses.asdict(config) | {"genotype": base["genotype"]}
    return shlex.join(["msgdas", "train", target, recipe, *_options(keys, values, base)])


def _options(keys: KeySet, values: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """Those values that differ from the base, as words of a command line."""
    words = []
    for name, value in values.items():
        if value == base[name]:
            continue
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        flag = keys.fields[name].metadata["flag"]
        words += [f"--{name.replace('_', '-')}={shown}"] if flag else ["--set", f"{name}={shown}"]
    return words
