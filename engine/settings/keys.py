"""Configuration keys: the fields of a flat dataclass as flags, TOML and --set give them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import ConfigError


def key(default: Any, help: str, *, flag: bool = True) -> Any:
    """A field with its help text; `flag=False` keeps it out of the flags (TOML and --set reach it)."""
    return dataclasses.field(default=default, metadata={"help": help, "flag": flag})


class KeySet:
    """The keys of one kind of configuration.

    Args:
        kind: a dataclass whose fields `key` made.
        command: whose --keys lists them.
    """

    def __init__(self, kind: Any, command: str) -> None:
        self.kind, self.command = kind, command
        self.fields: Mapping[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(kind)}

    @cached_property
    def types(self) -> Mapping[str, Any]:
        return get_type_hints(self.kind)

    def choices(self, name: str) -> tuple[str, ...]:
        """The values a key is limited to, or () where any value of its type may be tried."""
        return get_args(self.types[name]) if get_origin(self.types[name]) is Literal else ()

    def check_type(self, name: str, value: Any) -> None:
        """Raise ConfigError for a key that is none, or a value of another type."""
        if name not in self.fields:
            near = difflib.get_close_matches(name, self.fields, n=1)
            raise ConfigError(
                "unknown configuration key",
                got=repr(name),
                allowed=f"the keys that `msgdas {self.command} --keys` lists",
                next=f"perhaps {near[0]}" if near else f"msgdas {self.command} --keys",
            )
        hint = str if self.choices(name) else self.types[name]
        right = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            right = True
        if not right:
            raise ConfigError(
                f"{name} has the wrong type",
                got=f"{value!r} ({type(value).__name__})",
                allowed=hint.__name__,
                next=f"{name} = {self.fields[name].default!r} is the default",
            )

    def check_choices(self, config: Any) -> None:
        """Raise ConfigError for the first value that is none of those its key is limited to."""
        for name, field in self.fields.items():
            allowed = self.choices(name)
            if allowed and getattr(config, name) not in allowed:
                raise ConfigError(
                    f"unknown value of {name}",
                    got=repr(getattr(config, name)),
                    allowed=", ".join(allowed),
                    next=f"--{name} {allowed[0]}" if field.metadata["flag"] else f"--set {name}={allowed[0]}",
                )

    def parse(self, name: str, text: str) -> Any:
        """The value that `text` stands for under key `name`, as flags and --set give it."""
        if name not in self.fields:
            self.check_type(name, text)
        hint = str if self.choices(name) else self.types[name]
        words = {"true": True, "false": False}
        try:
            value = words[text.lower()] if hint is bool else hint(text)
        except (KeyError, ValueError):
            value = text
        self.check_type(name, value)
        return value

    def listing(self, config: Any) -> str:
        """All keys with that configuration's values, as a TOML file that --config takes."""
        lines = []
        for name, value in dataclasses.asdict(config).items():
            text = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
            lines.append(f"# {self.fields[name].metadata['help']}\n{name} = {text}")
        return "\n".join(lines)
