"""Checkpoints that survive a kill, a flipped bit and a hostile file.

A checkpoint (see checkpoint_files.py) appears whole by a rename or not at all.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._weights_only_unpickler import UnpicklingError  # type: ignore[attr-defined]

from ...profiles.errors import in_words
from ..errors import CheckpointError, RunFolderError
from ..settings.config import SearchConfig
from ..settings.train_config import TrainConfig
from .checkpoint_files import (
    FOLDER,
    MANIFEST,
    REPLACED,
    STATE,
    UNFINISHED,
    DamagedError,
    digest_of,
    folders_of,
    manifest_of,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

FORMAT = 1
# They say where and how fast, not what is computed.
FREE_KEYS = {
    "data_root", "download", "keep", "checkpoint_every", "recipe", "workers", "prefetch", "dist_timeout_s",
    "scale_skips",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that passed every check.

    Attributes:
        step: number of W steps done.
        state: plain containers and tensors.
        path: its folder.
        warnings: a line for each newer checkpoint that had to be passed over.
    """

    step: int
    state: dict[str, Any]
    path: Path
    warnings: tuple[str, ...]

    def require_images(self, fingerprint: str, *, verb: str) -> None:
        """CheckpointError where the run's images are not those of that fingerprint; `verb` begins one anew."""
        made_with = self.state["fingerprint"]
        if made_with != fingerprint:
            raise CheckpointError(
                f"checkpoint {self.path} was made with other images", got=fingerprint, allowed=made_with,
                next=f"put the data back, or {verb} anew without --resume",
            )  # fmt: skip


def save(run: Path, step: int, state: dict[str, Any], config: SearchConfig | TrainConfig) -> Path:
    """Write a checkpoint and drop all but the newest `config.keep`.

    Raises:
        OSError: where the disk is full or not writable; older checkpoints are untouched then, and the caller
            decides whether the search goes on.
    """
    root = run / FOLDER
    root.mkdir(exist_ok=True)
    clean(run)
    temporary, final = root / f"{UNFINISHED}{step:010d}", root / f"step-{step:010d}"
    try:
        temporary.mkdir()
        # Through our own file object: given a path, torch reports a full disk without its error number.
        with open(temporary / STATE, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        manifest = {
            "format": FORMAT,
            "version": version("msgdas"),
            "step": step,
            "config": dataclasses.asdict(config),
            "bytes": (temporary / STATE).stat().st_size,
            "sha256": digest_of(temporary / STATE),
        }
        with open(temporary / MANIFEST, "w", encoding="utf-8") as text:
            json.dump(manifest, text, indent=2)
            text.flush()
            os.fsync(text.fileno())
        _sync_folder(temporary)
        replaced = root / f"{REPLACED}{final.name}"
        if final.exists():
            os.replace(final, replaced)
        os.replace(temporary, final)
        _sync_folder(root)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError:
        clean(run)
        raise
    for old in folders_of(run)[config.keep :]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def keep(
    run: Path, step: int, state: dict[str, Any], config: SearchConfig | TrainConfig, *, verb: str, last: bool
) -> str | None:
    """Write a checkpoint; a full disk ends a run only where nothing would come after. The warning of one that goes on.

    Args:
        run, step, state, config: see `save`.
        verb: the command that goes on with it, `search` or `train`.
        last: whether nothing comes after.

    Raises:
        RunFolderError: the last one cannot be saved.
    """
    try:
        save(run, step, state, config)
    except OSError as error:
        room = _room(run, state) if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        if last:
            raise RunFolderError(
                f"cannot save the checkpoint of step {step}", got=f"{error.strerror or error}{room}",
                allowed="room on the disk", next=f"free some, then msgdas {verb} --resume {run}",
            ) from None  # fmt: skip
        return f"warning: no checkpoint at step {step} ({error}{room}); the run goes on"
    return None


class _Counter(io.BytesIO):
    """Counts what is written into it, and keeps nothing."""

    size_bytes = 0

    def write(self, content: Buffer, /) -> int:
        self.size_bytes += memoryview(content).nbytes
        return memoryview(content).nbytes


def _room(run: Path, state: dict[str, Any]) -> str:
    """What a checkpoint needs and what its disk has; "" where that cannot be told."""
    counter = _Counter()
    torch.save(state, counter)
    try:
        free_bytes = shutil.disk_usage(run).free
    except OSError:
        return ""
    return f"; {in_words(counter.size_bytes)} needed, {in_words(free_bytes)} free"


def clean(run: Path) -> None:
    """Remove what a killed process left half written; a checkpoint that it was about to replace comes back."""
    root = run / FOLDER
    for leftover in root.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for replaced in root.glob(f"{REPLACED}*"):
        final = root / replaced.name.removeprefix(REPLACED)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.replace(replaced, final)


def load(run: Path, config: SearchConfig | TrainConfig) -> Checkpoint | None:
    """The newest good checkpoint, or None where none was ever written.

    Raises:
        CheckpointError: for one of another configuration or a newer format, and where all are damaged:
            a search never starts from scratch by itself.
    """
    warnings: list[str] = []
    folders = folders_of(run)
    for folder in folders:
        try:
            return _read(folder, config, tuple(warnings))
        except DamagedError as fault:
            warnings.append(f"checkpoint {folder} is passed over: {fault}")
    if folders:
        raise CheckpointError(
            f"no checkpoint of {run} can be read", got="; ".join(warnings), allowed="one good checkpoint",
            next=f"msgdas {config.command} with another --out",
        )  # fmt: skip
    return None


def _read(folder: Path, config: SearchConfig | TrainConfig, warnings: tuple[str, ...]) -> Checkpoint:
    manifest = manifest_of(folder)
    if manifest["format"] > FORMAT:
        raise CheckpointError(
            f"checkpoint {folder} is of a newer format",
            got=f"format {manifest['format']} by msgdas {manifest['version']}",
            allowed=f"format {FORMAT}, this is msgdas {version('msgdas')}",
            next="pip install --upgrade msgdas",
        )
    _check_config(folder, manifest["config"], config)
    state = folder / STATE
    try:
        if state.stat().st_size != manifest["bytes"] or digest_of(state) != manifest["sha256"]:
            raise DamagedError("state.pt is not the file that was written (size or SHA-256 differ)")
        loaded = torch.load(state, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError) as error:
        raise DamagedError(f"state.pt cannot be read ({error})") from None
    except UnpicklingError:
        raise DamagedError("state.pt holds something else than tensors and plain values, and was not run") from None
    if not isinstance(loaded, dict):
        raise DamagedError("state.pt holds no state")
    return Checkpoint(int(manifest["step"]), loaded, folder, warnings)


def _check_config(folder: Path, stored: dict[str, Any], config: SearchConfig | TrainConfig) -> None:
    mine = dataclasses.asdict(config)
    different = [
        f"{key} {stored.get(key)!r} instead of {mine.get(key)!r}"
        for key in sorted({*mine, *stored} - FREE_KEYS)
        if stored.get(key) != mine.get(key)
    ]
    if different:
        raise CheckpointError(
            f"checkpoint {folder} is of another configuration", got=", ".join(different),
            allowed="the configuration of the run folder", next=f"msgdas {config.command} with another --out",
        )  # fmt: skip


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
