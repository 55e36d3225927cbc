"""The run folder: what the verbs hand to each other. Nothing here imports torch.

A folder belongs to one search or training at a time. Files are written beside their place and then renamed, so a reader
sees the old or the new one; metrics.jsonl alone grows line by line, and its readers forgive a partial line.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..atomic import write_atomically
from ..errors import RunFolderError
from ..settings.config import SearchConfig
from ..settings.train_config import TrainConfig

CONFIG, ENVIRONMENT, METRICS, GENOTYPE, PLAN, PROBE, COST, LOCK = (
    "config.json", "environment.json", "metrics.jsonl", "genotype.json", "plan.json", "probe.json", "cost.json", "LOCK",
)  # fmt: skip
# Of a file that `read_object` reads.
MAX_JSON_BYTES = 1 << 20

Config = TypeVar("Config", SearchConfig, TrainConfig)


def default_path(recipe: str) -> Path:
    """runs/RECIPE-YYYYMMDD-HHMMSS in UTC, with a number behind it where that exists."""
    base = Path("runs") / f"{recipe}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


class RunFolder(Generic[Config]):
    """A run folder that exists and has a configuration.

    Attributes:
        path: the folder.
        config: of the search or the training that it belongs to.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config: Config = config

    @classmethod
    def create(cls, path: Path, config: Config, environment: dict[str, Any]) -> RunFolder[Config]:
        """A new run folder with config.json and environment.json.

        Raises:
            RunFolderError: where the path exists and is not an empty folder, or cannot be written to.
        """
        resume = f"msgdas {config.command} --resume {path}, or another --out"
        try:
            if path.exists() and not path.is_dir():
                raise RunFolderError(f"{path} is a file", allowed="a new or empty folder", next="another --out")
            if path.is_dir() and any(path.iterdir()):
                raise RunFolderError(
                    f"run folder {path} is not empty", got="a folder with files", allowed="a new or empty folder",
                    next=resume,
                )  # fmt: skip
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(path / CONFIG, config.to_json())
            write_atomically(path / ENVIRONMENT, json.dumps(environment, indent=2))
        except OSError as error:
            raise RunFolderError(
                f"cannot write to the run folder {path}", got=error.strerror, allowed="a writable place",
                next="another --out",
            ) from None  # fmt: skip
        return cls(path, config)

    @classmethod
    def open(cls, path: Path, read: Callable[[str], Config]) -> RunFolder[Config]:
        """An existing run folder; `read` makes its configuration out of config.json.

        Raises:
            RunFolderError: where there is none, or its configuration cannot be read.
            ConfigError: where its configuration is not one of this version, or of another command.
        """
        text, _ = _read_config(path)
        try:
            return cls(path, read(text))
        except TypeError as error:
            raise _damaged(path, error) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder; the kernel lets go of it when the process ends, however it ends.

        Raises:
            RunFolderError: where a running process holds it, or the folder cannot be written to.
        """
        try:
            file = open(self.path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise RunFolderError(
                f"cannot lock the run folder {self.path}", got=error.strerror, allowed="a writable folder",
                next="another --out",
            ) from None  # fmt: skip
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise RunFolderError(
                    f"run folder {self.path} belongs to a running search or training", got=holder,
                    allowed="one process per folder",
                    next="wait for it, stop it, or another --out",
                ) from None  # fmt: skip
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield
            file.truncate(0)

    def write_json(self, name: str, value: Any) -> Path:
        write_atomically(self.path / name, json.dumps(value, indent=2) + "\n")
        return self.path / name

    def read_metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.path / METRICS)


def is_training(path: Path) -> bool:
    """Whether a run folder is of a training rather than of a search. Raises RunFolderError as `RunFolder.open`."""
    return "genotype" in _read_config(path)[1]


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """The text and the values of config.json; raises RunFolderError where it is missing or no JSON object."""
    try:
        text = (path / CONFIG).read_text(encoding="utf-8")
        values = json.loads(text)
    except OSError as error:
        raise RunFolderError(
            f"{path} is no run folder", got=f"{CONFIG}: {error.strerror}",
            allowed="a folder that a search or a training wrote", next="msgdas search demo",
        ) from None  # fmt: skip
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(values, dict):
        raise _damaged(path, f"a {type(values).__name__}")
    return text, values


def _damaged(path: Path, got: object) -> RunFolderError:
    return RunFolderError(
        f"{path / CONFIG} is damaged", got=str(got), allowed="the JSON that was written there", next="another --out"
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file, without lines that are not whole objects; [] where there is no file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        except RecursionError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} where there is none."""
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class MetricsWriter:
    """Appends rows to metrics.jsonl, each at once on disk's side of the process.

    A full disk does not end a search: lost rows are counted and named once on standard error.

    Attributes:
        lost_rows: rows that could not be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost_rows = 0
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def append(self, row: dict[str, Any]) -> None:
        line = json.dumps(row).encode() + b"\n"
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError("partial write")
        except OSError as error:
            if not self.lost_rows:
                print(f"warning: cannot write {self.path} ({error}); the work goes on", file=sys.stderr)
            self.lost_rows += 1

    def close(self) -> None:
        self._file.close()


def keep_until(path: Path, step: int, epoch_closed: bool) -> None:
    """Drop the rows of metrics.jsonl that a resumed search will write again.

    Rows up to `step` stay; an epoch row of `step` itself only if the epoch had been closed, and rows about
    later steps never. A partial last line goes too.
    """

    def stays(row: dict[str, Any]) -> bool:
        at = row.get("step", 0)
        if row.get("kind") == "epoch":
            return at < step or (at == step and epoch_closed)
        return at <= step

    rows = [row for row in read_metrics(path) if stays(row)]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
