"""`msgdas data check`: every image of a folder examined, and a list of the good ones."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import DataError
from .examining import BAD, ODD, Examiners, Verdict
from .filelist import HEADER, FileList, some, training_root
from .workers import processors

TRAIN, VAL = "train", "val"
LINE_EVERY_S = 10.0
# First words of the file that a check resumes from.
STATE = "msgdas data check 1"
# What may have been the machine's fault is tried again.
PASSING = ("unreadable", "worker died", "took too long")
IN_VAL, TWICE, CONTRARY = "also in val", "copy in its class", "copy in another class"


@dataclass(frozen=True)
class Report:
    """What a check found. Paths are below `folder`.

    Attributes:
        folder: that was checked.
        out: the file list that was written.
        images: of each part, `train` and where there is one `val`.
        clean: what `out` lists.
        left_out: training images that it does not list, by reason, each with what is known of it.
        bad_val: the same of the val part, which no list is made of.
        odd: images with something to know about, by kind; those of the list are in it.
        empty: classes of the training part that have no image in the list.
        differing: classes that one of train and val lacks.
        examined: images decoded now; the others were known from a check before.
        seconds: for these.
    """

    folder: Path
    out: Path
    images: Mapping[str, int]
    clean: FileList
    left_out: Mapping[str, Mapping[str, str]]
    bad_val: Mapping[str, Mapping[str, str]]
    odd: Mapping[str, tuple[str, ...]]
    empty: tuple[str, ...]
    differing: tuple[str, ...]
    examined: int
    seconds: float

    @property
    def images_per_s(self) -> float:
        return self.examined / self.seconds if self.examined else 0.0

    def to_json(self) -> str:
        values: dict[str, Any] = {
            "folder": str(self.folder), "list": str(self.out), "images": self.images, "kept": len(self.clean.entries),
            "classes": len(self.clean.classes), "left_out": self.left_out, "bad_val": self.bad_val, "odd": self.odd,
            "empty_classes": self.empty, "differing_classes": self.differing, "examined": self.examined,
            "seconds": self.seconds, "images_per_s": self.images_per_s,
        }  # fmt: skip
        return json.dumps(values, indent=2)

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} images in {part}" for part, count in self.images.items())
        known = sum(self.images.values()) - self.examined
        pace = f"{self.examined:,} examined, {self.images_per_s:.0f} images/s" if self.examined else ""
        before = f"{known:,} known from before" if known else ""
        lines = [f"{self.folder}: {counts}; {', '.join(filter(None, (pace, before)))}"]
        for title, found in (("left out", self.left_out), ("bad in val", self.bad_val), ("to know", self.odd)):
            if found:
                lines += [title, *(_line(kind, paths) for kind, paths in found.items())]
        for title, names in (("classes without a good image", self.empty), ("classes not in both", self.differing)):
            if names:
                lines.append(f"{title}: {len(names)} ({some(names)})")
        kept = f"{len(self.clean.entries):,} of {self.images[TRAIN]:,} images, {len(self.clean.classes)} classes"
        lines.append(f"clean list {self.out}: {kept}")
        words = ["msgdas", "search", "--data", f"imagefolder:{self.folder}", "--set", f"data_list={self.out}"]
        return "\n".join((*lines, f"Next: {shlex.join(words)}"))


def _line(kind: str, paths: Mapping[str, str] | tuple[str, ...]) -> str:
    return f"  {kind:22}{len(paths):>9,}  {some(paths)}"


def check(folder: Path, *, out: Path | None = None, workers: int = 0, patience_s: float = 120.0) -> Report:
    """Examine every image of a tree of class folders, or of FOLDER/train and FOLDER/val, and write the good ones down.

    Left out of the list are files that a loader cannot decode (`examining.BAD`), images whose content is in val too,
    all but the first copy of a content within a class, and every copy of one that is in several classes, whose label
    nobody knows. What is merely odd (`examining.ODD`) stays. Classes left without an image are not in the list.

    Verdicts are appended to OUT.state as they come; a later check of the same folder takes those of files whose size
    and time of change are the same.

    Args:
        folder: the tree.
        out: the list; FOLDER's name with `.list` in the current folder by default.
        workers: processes, 0 for one per processor.
        patience_s: longest time for one file.

    Raises:
        DataError: no such folder, no class folders, a folder that cannot be read, a list that cannot be written or
            would replace another file, or fewer than two classes with a good image.
    """
    folder = Path(os.path.abspath(folder.expanduser()))
    out = out or Path(f"{folder.name}.list")
    _check_place(out)
    root = training_root(folder)
    parts = {TRAIN: FileList.scan(root)}
    if root != folder and (folder / VAL).is_dir():
        parts[VAL] = FileList.scan(folder / VAL)
    files = [os.path.join(part.root, path) for part in parts.values() for path, _ in part.entries]
    begin = time.monotonic()
    with _State(Path(f"{out}.state"), folder) as state:
        todo = [path for path in files if path not in state.verdicts]
        _examine_all(todo, state, workers or processors(), patience_s)
    seconds = time.monotonic() - begin
    return _report(folder, out, parts, state.verdicts, len(todo), seconds)


def _check_place(out: Path) -> None:
    """Raise DataError where something else than a file list stands, which the list would replace."""
    try:
        with open(out, encoding="utf-8", errors="replace") as file:
            begin = file.readline(len(HEADER))
    except FileNotFoundError:
        return
    except OSError as error:
        begin = error.strerror or str(error)
    if begin != HEADER:
        raise DataError(
            f"{out} is no file list, and would be lost", got=repr(begin), allowed="a new file, or an older list",
            next="another --out",
        )  # fmt: skip


def _examine_all(todo: list[str], state: _State, workers: int, patience_s: float) -> None:
    bad = 0
    with Examiners(min(workers, len(todo)), patience_s=patience_s) as examiners, _Bar(len(todo)) as bar:
        for number, (path, verdict) in enumerate(examiners.verdicts(state.known_by(todo)), 1):
            state.add(path, verdict)
            bad += bool(verdict.bad)
            bar.show(number, bad)


def _report(
    folder: Path, out: Path, parts: Mapping[str, FileList], verdicts: Mapping[str, Verdict], examined: int,
    seconds: float,
) -> Report:  # fmt: skip
    def verdict_of(part: FileList, path: str) -> Verdict:
        return verdicts[os.path.join(part.root, path)]

    bad: dict[str, dict[str, dict[str, str]]] = {TRAIN: defaultdict(dict), VAL: defaultdict(dict)}
    odd: dict[str, list[str]] = defaultdict(list)
    for name, part in parts.items():
        for path, _ in part.entries:
            verdict = verdict_of(part, path)
            if verdict.bad:
                bad[name][verdict.bad][path] = verdict.detail
            for kind in verdict.odd:
                odd[kind].append(os.path.relpath(part.root / path, folder))
    good = {
        name: part.without({path for found in bad[name].values() for path in found}) for name, part in parts.items()
    }
    train = good[TRAIN]
    held = {verdict_of(good[VAL], path).digest: path for path, _ in good[VAL].entries} if VAL in good else {}
    copies = _copies(train, lambda path: verdict_of(train, path).digest, held)
    bad[TRAIN].update(copies)
    clean, empty = _without_empty(train.without({path for found in copies.values() for path in found}))
    if len(clean.classes) < 2:
        counts = ", ".join(f"{len(found)} {kind}" for kind, found in bad[TRAIN].items())
        raise DataError(
            f"{parts[TRAIN].root} has fewer than two classes with a good image", got=counts or "no images",
            allowed="two or more", next="put whole images there",
        )  # fmt: skip
    clean.write(out)
    classes = {part.classes for part in parts.values()}
    differing = set.symmetric_difference(*map(set, classes)) if len(classes) == 2 else set()
    order = (*BAD, IN_VAL, TWICE, CONTRARY)
    return Report(
        folder, out, {name: len(part.entries) for name, part in parts.items()}, clean,
        _in_order(bad[TRAIN], order), _in_order(bad[VAL], order), {kind: tuple(odd[kind]) for kind in ODD if odd[kind]},
        empty, tuple(sorted(differing)), examined, seconds,
    )  # fmt: skip


def _copies(train: FileList, digest: Callable[[str], str], held: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Images to leave out because others have the same content: by reason, each with one of the others."""
    by_content: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for entry in train.entries:
        by_content[digest(entry.path)].append(entry)
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for content, alike in by_content.items():
        first, others = alike[0][0], alike[1:]
        if content in held:
            found[IN_VAL].update({path: f"{VAL}/{held[content]}" for path, _ in alike})
        elif len({label for _, label in alike}) > 1:
            found[CONTRARY].update({path: others[0][0] if path == first else first for path, _ in alike})
        elif others:
            found[TWICE].update({path: first for path, _ in others})
    return found


def _without_empty(files: FileList) -> tuple[FileList, tuple[str, ...]]:
    """The list with those classes that have images, and the others' names."""
    counts = dict(zip(files.classes, files.counts(), strict=True))
    return files.of_classes([name for name in counts if counts[name]]), tuple(n for n in counts if not counts[n])


def _in_order(found: Mapping[str, dict[str, str]], order: Iterable[str]) -> dict[str, dict[str, str]]:
    return {kind: dict(found[kind]) for kind in order if found.get(kind)}


class _State:
    """Verdicts that outlive the process: a header, then one JSON array a line, appended.

    A line holds path, size in bytes, time of change in ns and the verdict. Another folder's file, or one of another
    version, is replaced. A context manager.

    Attributes:
        verdicts: by path, of files that are as they were.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.verdicts: dict[str, Verdict] = {}
        self._keys: dict[str, tuple[int, int]] = {}
        self._prefix = os.path.join(folder, "")
        header = json.dumps([STATE, os.path.realpath(folder)])
        lines = self._lines(path)
        same = next(lines, "") == header
        if same:
            for line in lines:
                self._take(line)
        try:
            with ExitStack() as stack:
                self._file = stack.enter_context(open(path, "ab" if same else "wb", buffering=0))
                # After a killed process the last line may be half a one.
                self._file.write(b"\n" if same else header.encode() + b"\n")
                stack.pop_all()
        except OSError as error:
            raise DataError(
                f"cannot write {path}, which a check resumes from", got=error.strerror,
                allowed="a folder that can be written to, with room on its disk", next="another --out",
            ) from None  # fmt: skip
        self.lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @staticmethod
    def _lines(path: Path) -> Iterator[str]:
        if not path.is_file():
            return
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                for line in file:
                    yield line.rstrip("\n")
        except OSError:
            return

    def _take(self, line: str) -> None:
        try:
            path, size, changed_ns, bad, detail, odd, digest = json.loads(line)
            self.verdicts.pop(self._prefix + path, None)
            found = os.stat(self._prefix + path)
        except (ValueError, TypeError, OSError):
            return
        if (found.st_size, found.st_mtime_ns) == (size, changed_ns) and bad not in PASSING:
            self.verdicts[self._prefix + path] = Verdict(bad, detail, tuple(odd), digest)

    def known_by(self, paths: Iterable[str]) -> Iterator[str]:
        """The paths, each with its size and time of change taken before it is read."""
        for path in paths:
            try:
                found = os.stat(path)
                self._keys[path] = (found.st_size, found.st_mtime_ns)
            except OSError:
                self._keys[path] = (-1, -1)
            yield path

    def add(self, path: str, verdict: Verdict) -> None:
        self.verdicts[path] = verdict
        values = [path.removeprefix(self._prefix), *self._keys.pop(path), *verdict]
        try:
            self._file.write(json.dumps(values).encode() + b"\n")
        except OSError as error:
            if not self.lost:
                print(f"warning: cannot note what was examined ({error}); the check goes on", file=sys.stderr)
            self.lost = True


class _Bar:
    """How far a check is: a bar on standard error where that is a terminal, else a line every ten seconds."""

    def __init__(self, total: int) -> None:
        self._total, self._begin = total, time.monotonic()
        self._shown = self._begin
        console = Console(stderr=True)
        self._live = Progress(
            TextColumn("images"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._live.add_task("images", total=total, facts="")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, done: int, bad: int) -> None:
        now = time.monotonic()
        facts = f"{done / max(now - self._begin, 1e-9):.0f} images/s, {bad} bad"
        if not self._live.disable:
            self._live.update(self._task, completed=done, facts=facts)
        elif now - self._shown >= LINE_EVERY_S:
            self._shown = now
            print(f"{done}/{self._total} images, {facts}", file=sys.stderr, flush=True)
