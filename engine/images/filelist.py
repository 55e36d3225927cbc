r"""Lists of labelled images under one folder: found in a tree of class folders, or written down in a file.

The file is UTF-8 text, a header and one image per line; a label is the number of a class in the header's order:

    # msgdas file list 1
    # root<TAB>/data/imagenet/train
    # class<TAB>n01440764
    # class<TAB>n01443537
    n01440764/n01440764_18.JPEG<TAB>0

In names, a backslash, tab, line feed, carriage return and a leading `#` are written `\\`, `\t`, `\n`, `\r` and `\#`,
and a byte that is no UTF-8 as `\xNN`. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple, NoReturn

from ..atomic import write_atomically
from ..errors import DataError

HEADER = "# msgdas file list"
VERSION = 1
# The endings that torchvision's ImageFolder takes.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Paths that an error names.
NAMED = 3

_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_MEANINGS = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r", "#": "#"}
_TO_ESCAPE = re.compile(r"^#|[\\\t\n\r\udc80-\udcff]")
_ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|(.?))", re.DOTALL)


class Entry(NamedTuple):
    """An image: its path below the root, with `/` between folders, and the number of its class."""

    path: str
    label: int


class Difference(NamedTuple):
    """What a later listing has and an earlier one had not: paths, sorted."""

    missing: tuple[str, ...]
    new: tuple[str, ...]
    relabelled: tuple[str, ...]

    def __str__(self) -> str:
        """`2 missing (a/1.jpg, a/2.jpg), 1 new (b/7.jpg)`."""
        return ", ".join(f"{len(paths)} {kind} ({some(paths)})" for kind, paths in self._asdict().items() if paths)


@dataclass(frozen=True)
class FileList:
    """Labelled images below one folder.

    Attributes:
        root: that folder.
        classes: names in the order of the labels.
        entries: the images, in the order of the data set.
    """

    root: Path
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]

    @classmethod
    def scan(cls, root: Path) -> FileList:
        """All images of a tree ROOT/CLASS/**/IMAGE, sorted by class, folder and name as torchvision's ImageFolder.

        Classes are the sorted names of ROOT's folders; hidden ones are left out. Files are those with one of
        `ENDINGS`, in any case. Links to folders are followed, except back to where they lie.

        Raises:
            DataError: for a folder that is missing or cannot be read, or fewer than two class folders. A class
                without images is none: see `check_filled`.
        """
        classes = class_folders(root)
        return cls(root, classes, tuple(entry for n, name in enumerate(classes) for entry in _images_of(root, name, n)))

    @classmethod
    def read(cls, path: Path) -> FileList:
        """The list in that file.

        Raises:
            DataError: for a file that cannot be read or is no such list; it names file and line.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"cannot read the file list {path}", got=error.strerror,
                allowed="a list that `msgdas data check` wrote", next="msgdas data check DIR --out LIST",
            ) from None  # fmt: skip
        return _parse(path, content)

    def write(self, path: Path) -> None:
        """Replace `path` by this list, atomically; the root is written as an absolute path.

        Raises:
            DataError: where it cannot be written.
        """
        try:
            write_atomically(path, self._text())
        except OSError as error:
            raise DataError(
                f"cannot write the file list {path}", got=error.strerror or str(error),
                allowed="a folder that can be written to, with room on its disk", next="free some, or another place",
            ) from None  # fmt: skip

    @cached_property
    def checksum(self) -> str:
        """64-bit BLAKE2b of classes and entries, in hexadecimal; where the root lies does not change it."""
        digest = hashlib.blake2b(digest_size=8)
        for line in self._lines():
            digest.update(line.encode())
        return digest.hexdigest()

    def paths(self) -> list[str]:
        """Of all images, the root included."""
        root = os.fspath(self.root)
        return [os.path.join(root, path) for path, _ in self.entries]

    def labels(self) -> list[int]:
        return [label for _, label in self.entries]

    def counts(self) -> list[int]:
        """Images of each class."""
        found = Counter(self.labels())
        return [found[number] for number in range(len(self.classes))]

    def check_filled(self) -> None:
        """Raise DataError for the first class without images."""
        for name, count in zip(self.classes, self.counts(), strict=True):
            if not count:
                raise DataError(
                    f"class folder {self.root / name} has no images", got="0 images",
                    allowed=f"one or more files ending in {' '.join(ENDINGS)}", next="add images to it, or remove it",
                )  # fmt: skip

    def check_present(self) -> None:
        """Raise DataError where files of the list are not below its root."""
        folders = {os.path.dirname(path) for path, _ in self.entries}
        there = {folder: _names(self.root / folder) for folder in folders}
        missing = [path for path, _ in self.entries if os.path.basename(path) not in there[os.path.dirname(path)]]
        if missing:
            raise DataError(
                f"a file list names files that are not in {self.root}", got=f"{len(missing)} missing: {some(missing)}",
                allowed="files that are there", next=f"msgdas data check {self.root} --out LIST",
            )  # fmt: skip

    def without(self, paths: Collection[str]) -> FileList:
        """This list less the images of those paths (below the root); classes stay."""
        return FileList(self.root, self.classes, tuple(entry for entry in self.entries if entry.path not in paths))

    def at(self, numbers: Collection[int]) -> FileList:
        """The images of those numbers, in that order; classes stay."""
        return FileList(self.root, self.classes, tuple(self.entries[number] for number in numbers))

    def of_classes(self, names: Collection[str]) -> FileList:
        """The images of some classes, which are numbered anew in their old order."""
        kept = tuple(name for name in self.classes if name in names)
        numbers = {self.classes.index(name): number for number, name in enumerate(kept)}
        entries = (Entry(path, numbers[label]) for path, label in self.entries if label in numbers)
        return FileList(self.root, kept, tuple(entries))

    def difference(self, later: FileList) -> Difference:
        """What became of this list in a later one; classes are compared by name."""
        before = {path: self.classes[label] for path, label in self.entries}
        after = {path: later.classes[label] for path, label in later.entries}
        both = before.keys() & after.keys()
        return Difference(
            tuple(sorted(before.keys() - both)), tuple(sorted(after.keys() - both)),
            tuple(sorted(path for path in both if before[path] != after[path])),
        )  # fmt: skip

    def _text(self) -> str:
        head = f"{HEADER} {VERSION}\n# root\t{escaped(os.path.abspath(self.root))}\n"
        return head + "".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield from (f"# class\t{escaped(name)}\n" for name in self.classes)
        yield from (f"{escaped(path)}\t{label}\n" for path, label in self.entries)


def some(paths: Collection[str]) -> str:
    """The first few of them, for a message."""
    shown = [escaped(path) for path in islice(paths, NAMED)]
    return ", ".join(shown + ["..."] * (len(paths) > NAMED))


def escaped(name: str) -> str:
    """A name as a line of text holds it."""

    def written(found: re.Match[str]) -> str:
        character = found[0]
        if "\udc80" <= character <= "\udcff":
            # What os.fsdecode makes of a byte that is no UTF-8.
            return f"\\x{ord(character) & 0xFF:02x}"
        return _ESCAPES.get(character, "\\#")

    return _TO_ESCAPE.sub(written, name)


def unescaped(text: str) -> str:
    """The name that `escaped` wrote. Raises ValueError for an escape that it does not write."""

    def meant(found: re.Match[str]) -> str:
        if found[1]:
            byte = int(found[1], 16)
            if byte < 0x80:
                raise ValueError(f"escape {found[0]!r}")
            return chr(0xDC00 + byte)
        if found[2] not in _MEANINGS:
            raise ValueError(f"escape {found[0]!r}")
        return _MEANINGS[found[2]]

    return _ESCAPED.sub(meant, text)


def class_folders(root: Path) -> tuple[str, ...]:
    """Sorted names of the folders in `root`, hidden ones left out.

    Raises:
        DataError: for a folder that is missing or cannot be read, or fewer than two class folders.
    """
    example = "imagefolder:DIR with DIR/cat/1.jpg, DIR/dog/1.jpg or DIR/train/cat/1.jpg"
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"cannot read the image folder {root}", got=error.strerror, allowed="a folder of class folders",
            next=example,
        ) from None  # fmt: skip
    if len(names) < 2:
        raise DataError(
            f"too few class folders in {root}", got=", ".join(names) or "none", allowed="two or more", next=example
        )
    return tuple(names)


def training_root(folder: Path) -> Path:
    """Where the class folders of the training part are."""
    return folder / "train" if (folder / "train").is_dir() else folder


def drawn_classes(names: Collection[str], count: int, *, seed: int) -> tuple[str, ...]:
    """`count` of the names in their order, those whose BLAKE2b hash with the seed is smallest (ours); 0 for all.

    More classes of the same seed hold the fewer ones.

    Raises:
        DataError: for fewer names than that.
    """
    if count > len(names):
        raise DataError(
            "the data set has fewer classes than num_classes asks for",
            got=f"{len(names)} classes, num_classes {count}",
            allowed=f"2 to {len(names)}", next=f"--set num_classes={len(names)}",
        )  # fmt: skip

    def rank(name: str) -> bytes:
        return hashlib.blake2b(repr((seed, "classes", name)).encode(), digest_size=8).digest()

    kept = set(sorted(names, key=rank)[:count]) if count else set(names)
    return tuple(name for name in names if name in kept)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _images_of(root: Path, name: str, number: int) -> Iterator[Entry]:
    def unreadable(error: OSError) -> NoReturn:
        raise DataError(
            f"cannot read the image folder {error.filename}", got=error.strerror,
            allowed="folders that can be read and entered", next=f"chmod -R u+rX {root}",
        ) from None  # fmt: skip

    found = []
    for folder, below, files in os.walk(root / name, followlinks=True, onerror=unreadable):
        below[:] = [part for part in below if not _leads_back(os.path.join(folder, part))]
        found.append((os.path.relpath(folder, root), sorted(files)))
    for folder, files in sorted(found):
        for file in files:
            if file.lower().endswith(ENDINGS):
                yield Entry(os.path.join(folder, file).replace(os.sep, "/"), number)


def _leads_back(folder: str) -> bool:
    """Whether it is a link to a folder that it lies in."""
    if not os.path.islink(folder):
        return False
    here, there = (os.path.join(os.path.realpath(path), "") for path in (os.path.dirname(folder), folder))
    return here.startswith(there)


def _parse(path: Path, content: bytes) -> FileList:
    """The list in those bytes, of file `path`. Raises DataError."""

    def wrong(number: int, got: str, allowed: str) -> DataError:
        return DataError(
            f"{path}:{number} is no line of a file list", got=got, allowed=allowed,
            next="msgdas data check DIR --out LIST",
        )  # fmt: skip

    lines = content.split(b"\n")
    first = lines[0].decode(errors="replace")
    if first != f"{HEADER} {VERSION}":
        raise wrong(1, repr(first[:60]), repr(f"{HEADER} {VERSION}"))
    if lines.pop():
        raise wrong(len(lines) + 1, "a line that is cut off", "a line feed at its end")
    root: Path | None = None
    classes: list[str] = []
    entries: list[Entry] = []
    seen: set[str] = set()
    for number, line in enumerate(lines[1:], 2):
        try:
            key, tab, value = line.decode().partition("\t")
            if key in ("# root", "# class"):
                value = unescaped(value)
            else:
                key = unescaped(key) if not key.startswith("#") else "#"
        except ValueError as error:
            raise wrong(number, str(error)[:80], "UTF-8 with the escapes \\\\ \\t \\n \\r \\# \\xNN") from None
        if key == "# root" and root is None and value:
            root = Path(value)
        elif key == "# class" and value and value not in classes and not entries:
            classes.append(value)
        elif not tab or (key.startswith("#") and line.startswith(b"#")) or not _inside(key):
            raise wrong(number, repr(line.decode()[:60]), "a path below the root, a tab and the number of a class")
        elif not value.isascii() or not value.isdigit() or len(value) > 9 or int(value) >= len(classes):
            raise wrong(number, f"label {value[:20]!r}", f"0 to {len(classes) - 1}")
        elif key in seen:
            raise wrong(number, f"{escaped(key)} again", "each image once")
        else:
            seen.add(key)
            entries.append(Entry(key, int(value)))
    if root is None or len(classes) < 2 or not entries:
        lacking = "no root" if root is None else f"{len(classes)} classes, {len(entries)} images"
        raise wrong(len(lines) + 1, lacking, "a root, two or more classes, one or more images")
    return FileList(root, tuple(classes), tuple(entries))


def _inside(path: str) -> bool:
    """Whether a relative path stays below its root."""
    parts = path.split("/")
    return "" not in parts and ".." not in parts and "\0" not in path
