"""Numbers, tables and command lines of the report, as text and HTML."""

from __future__ import annotations

import dataclasses
import html
import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..settings.config import FIELDS, SearchConfig
from ..settings.recipes import RECIPES, demo


def escaped(value: object) -> str:
    """The value as HTML text, quotes included."""
    return html.escape(str(value))


def quantity(value: float, unit: str, digits: int = 1) -> str:
    return f"{value:,.{digits}f} {unit}".rstrip() if math.isfinite(value) else "not measured"


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


def config_table(config: SearchConfig) -> str:
    base = dataclasses.asdict(_recipe_base(config))
    rows = []
    for name, value in dataclasses.asdict(config).items():
        changed, instead = "", ""
        if value != base[name]:
            changed, instead = ' class="changed"', f' <span class="faint">recipe: {escaped(base[name])}</span>'
        rows.append(
            f'<tr{changed}><th scope="row">{name}</th><td>{escaped(value)}{instead}</td>'
            f'<td class="help">{escaped(FIELDS[name].metadata["help"])}</td></tr>'
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


def reproduction(config: SearchConfig, run_path: Path, commit: object) -> str:
    """The command lines that search again and that look at this run."""
    # An absolute path would tell whoever gets the mail about its sender's disk.
    folder = run_path.name if run_path.is_absolute() else str(run_path)
    at = f" at commit <code>{escaped(commit)}</code>" if commit else ""
    lines = f"{search_command(config)}\n{shlex.join(['msgdas', 'show', folder])}"
    return f"<p>The same search{at}, and a look at this one:</p><pre>{escaped(lines)}</pre>"


def _recipe_base(config: SearchConfig) -> SearchConfig:
    """The recipe of that name, or the demo where it is none, with the configuration's method."""
    return RECIPES.get(config.recipe, demo)(method=config.method)


def search_command(config: SearchConfig) -> str:
    """A command line that gives this configuration: its recipe, then every key that differs from it."""
    base = dataclasses.asdict(_recipe_base(config))
    recipe = config.recipe if config.recipe in RECIPES else "demo"
    plain = dataclasses.asdict(RECIPES[recipe]())
    words = ["msgdas", "search", recipe]
    for name, value in dataclasses.asdict(config).items():
        if value == (plain if name == "method" else base)[name]:
            continue
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        flag = FIELDS[name].metadata["flag"]
        words += [f"--{name.replace('_', '-')}={shown}"] if flag else ["--set", f"{name}={shown}"]
    return shlex.join(words)
