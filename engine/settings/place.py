"""Where torchrun put this process. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True, slots=True)
class Place:
    """Where torchrun put this process.

    Attributes:
        rank, world: of all processes, on all machines.
        local_rank, local_world: of those of this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place:
        """From RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; a process alone where RANK is not set.

        Raises:
            ConfigError: for numbers that torchrun does not give.
        """
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        texts = [environment.get(name, fallback) for name, fallback in zip(names, ("", "", "0", "1"), strict=True)]
        given = ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
        if not all(text.isascii() and text.isdecimal() for text in texts):
            raise _environment_error(given)
        place = cls(*map(int, texts))
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if place.world > 1 and name not in environment]
        if not place.rank < place.world or not place.local_rank < place.local_world <= place.world or missing:
            raise _environment_error(", ".join([given, *(f"no {name}" for name in missing)]))
        return place


def _environment_error(got: str) -> ConfigError:
    return ConfigError(
        "the environment names processes as torchrun does not", got=got, allowed="what torchrun sets",
        next="torchrun --nproc-per-node 2 -m msgdas.engine search ..., or unset RANK",
    )  # fmt: skip
