"""A checkpoint's files, as far as they can be told from without torch.

RUN/checkpoints/step-NNNNNNNNNN/ holds state.pt and manifest.json (format, version, step, configuration,
SHA-256 and size of state.pt).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

FOLDER, STATE, MANIFEST = "checkpoints", "state.pt", "manifest.json"
# Before the name of a checkpoint while it is written, and while another of the same step takes its place.
UNFINISHED, REPLACED = ".tmp-", ".old-"
# The largest state whose SHA-256 is taken where a folder is only looked at.
MAX_DIGESTED_BYTES = 64 << 20


class DamagedError(Exception):
    """A checkpoint that is to be passed over."""


def manifest_of(folder: Path) -> dict[str, Any]:
    """What manifest.json of a checkpoint says. Raises DamagedError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{MANIFEST} cannot be read ({error})") from None
    keys = {"format": int, "version": str, "step": int, "config": dict, "bytes": int, "sha256": str}
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(k), t) for k, t in keys.items()):
        raise DamagedError(f"{MANIFEST} lacks {', '.join(keys)}")
    return manifest


def folders_of(run: Path) -> list[Path]:
    """Checkpoint folders, the newest first by number; names that are no number are not ours."""
    found = [
        (int(path.name.removeprefix("step-")), path)
        for path in (run / FOLDER).glob("step-*")
        if path.name.removeprefix("step-").isdecimal()
    ]
    return [path for _, path in sorted(found, reverse=True)]


def digest_of(path: Path) -> str:
    """SHA-256 in hexadecimal. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(run: Path) -> list[str]:
    """A line for each checkpoint of a run folder that is half written or damaged, the newest first.

    A state of more than 64 MiB is held against its size alone.
    """
    lines = [
        f"checkpoint step-{path.name.removeprefix(UNFINISHED)} is half written: a save was cut off, or is under way"
        for path in sorted((run / FOLDER).glob(f"{UNFINISHED}*"), reverse=True)
    ]
    for folder in folders_of(run):
        try:
            _look_at(folder)
        except DamagedError as fault:
            lines.append(f"checkpoint {folder.name} is damaged: {fault}")
    return lines


def _look_at(folder: Path) -> None:
    """Raises DamagedError."""
    manifest, state = manifest_of(folder), folder / STATE
    try:
        size_bytes = state.stat().st_size
        digested = size_bytes <= MAX_DIGESTED_BYTES
        if size_bytes != manifest["bytes"] or (digested and digest_of(state) != manifest["sha256"]):
            raise DamagedError(f"{STATE} is not the file that was written (size or SHA-256 differ)")
    except OSError as error:
        raise DamagedError(f"{STATE} cannot be read ({error.strerror})") from None
