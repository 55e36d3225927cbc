"""Images in archives: webdataset tars, TFRecord files and MXNet RecordIO, read by number in any order.

An archive is gone through once, from header to header, when it is opened; images stay where they are. Every read opens
its file anew, so that several threads may ask at once.
"""

from __future__ import annotations

import mmap
import os
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .filelist import ENDINGS

RECORDIO_MAGIC = 0xCED7230A
RECORDIO_MAGIC_BYTES = struct.pack("<I", RECORDIO_MAGIC)
# flag, label, two ids (mxnet.recordio.IRHeader).
RECORDIO_HEADER = struct.Struct("<IfQQ")
# Names of features as TensorFlow's ImageNet scripts write them.
IMAGE_FEATURE, LABEL_FEATURE = b"image/encoded", b"image/class/label"

Content = Callable[[str, int, int], bytes]


@dataclass(frozen=True, slots=True)
class Record:
    """One image of an archive: where it begins, its bytes there, and its label as written."""

    file: str
    offset: int
    size: int
    label: str
    key: str


class Records:
    """Labelled images of some archives.

    Args:
        records: in the order of their numbers.
        content: reads the image of (file, offset, size).

    Attributes:
        classes: the labels that occur, numbers in their own order.
        labels_N: int64, places in `classes`.
    """

    def __init__(self, records: Sequence[Record], content: Content) -> None:
        found = {record.label for record in records}
        numbers = all(label.lstrip("-").isdigit() for label in found)
        self.classes = tuple(sorted(found, key=int) if numbers else sorted(found))
        place = {label: number for number, label in enumerate(self.classes)}
        self.labels_N: NDArray[np.int64] = np.array([place[record.label] for record in records], dtype=np.int64)
        self._records, self._content = tuple(records), content

    def __len__(self) -> int:
        return len(self._records)

    def read(self, number: int) -> bytes:
        """Raises DataError for a record that is cut off or damaged; it names the file and the byte."""
        record = self._records[number]
        return self._content(record.file, record.offset, record.size)

    def name_of(self, number: int) -> str:
        record = self._records[number]
        return f"{record.file} ({record.key}, byte {record.offset})"


def webdataset(files: Sequence[Path]) -> Records:
    """Tars of samples KEY.jpg with a label in KEY.cls, or else in the key's folder.

    Raises:
        DataError: for a tar that cannot be read, or an image without a label.
    """
    return _records(files, _tar_records, "webdataset", _part)


def tfrecord(files: Sequence[Path]) -> Records:
    """TFRecord files of tf.train.Example with image/encoded and image/class/label; checksums are checked.

    Raises:
        DataError: for a damaged file or an example without these features, and where google-crc32c is missing.
    """
    if find_spec("google_crc32c") is None:
        raise DataError(
            "the checksums of TFRecord files need google-crc32c", got="it is not installed", allowed="google-crc32c",
            next="pip install 'msgdas[tfrecord]'",
        )  # fmt: skip
    return _records(files, _tf_records, "tfrecord", _part)


def recordio(files: Sequence[Path]) -> Records:
    """MXNet RecordIO files (im2rec's) with one label per image.

    Raises:
        DataError: for a damaged file.
    """
    return _records(files, _mx_records, "recordio", _mx_content)


READERS: Mapping[str, tuple[Callable[[Sequence[Path]], Records], str]] = {
    "webdataset:": (webdataset, "*.tar"), "tfrecord:": (tfrecord, "*"), "recordio:": (recordio, "*.rec"),
}  # fmt: skip


def _records(files: Sequence[Path], walk: Callable[[str], Iterator[Record]], kind: str, content: Content) -> Records:
    found = [record for file in files for record in _walked(walk, str(file))]
    labels = {record.label for record in found}
    if len(labels) < 2:
        raise DataError(
            f"the {kind} files hold too few classes", got=f"{len(found)} images of {len(labels)} classes",
            allowed="images of two classes or more", next=f"check {files[0]}",
        )  # fmt: skip
    return Records(found, content)


def _walked(walk: Callable[[str], Iterator[Record]], file: str) -> Iterator[Record]:
    try:
        yield from walk(file)
    except OSError as error:
        raise DataError(
            f"cannot read {file}", got=error.strerror or str(error), allowed="a file that can be read",
            next="check the path",
        ) from None  # fmt: skip


def _damaged(file: str, offset: int, what: str) -> NoReturn:
    raise DataError(
        f"{file} is damaged at byte {offset}", got=what, allowed="a whole file",
        next="fetch this file again, or leave it out",
    )  # fmt: skip


def _part(file: str, offset: int, size: int) -> bytes:
    try:
        with open(file, "rb", buffering=0) as opened:
            opened.seek(offset)
            content = opened.read(size)
    except OSError as error:
        _damaged(file, offset, error.strerror or str(error))
    if len(content) < size:
        _damaged(file, offset, f"{len(content)} of {size} bytes")
    return content


def _tar_records(file: str) -> Iterator[Record]:
    total = os.path.getsize(file)
    image: tarfile.TarInfo | None = None
    label: str | None = None
    at, current = 0, ""

    def sample() -> Iterator[Record]:
        if image is None:
            return
        named = label if label is not None else os.path.basename(os.path.dirname(current))
        if not named:
            _damaged(file, image.offset, f"{image.name} has neither {current}.cls nor a folder")
        yield Record(file, image.offset_data, image.size, named, image.name)

    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                at = member.offset
                if member.offset_data + member.size > total:
                    _damaged(file, at, f"{member.name} is cut off")
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if key != current:
                    yield from sample()
                    current, image, label = key, None, None
                if f".{ending.lower()}" in ENDINGS:
                    image = member
                elif ending == "cls":
                    label = _part(file, member.offset_data, member.size).decode("utf-8", "replace").strip()
            yield from sample()
    except tarfile.TarError as error:
        _damaged(file, at, str(error) or type(error).__name__)


def _tf_records(file: str) -> Iterator[Record]:
    import google_crc32c

    def masked(content: bytes) -> int:
        crc = google_crc32c.value(content)
        return int((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    with open(file, "rb") as opened:
        total = os.path.getsize(file)
        if not total:
            return
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as view:
            offset = 0
            while offset < total:
                head = view[offset : offset + 12]
                if len(head) < 12:
                    _damaged(file, offset, f"{len(head)} bytes of a record's head of 12")
                length, crc = struct.unpack("<QI", head)
                if masked(head[:8]) != crc:
                    _damaged(file, offset, "a wrong checksum of a record's length")
                begin, end = offset + 12, offset + 12 + length
                tail = view[end : end + 4]
                if len(tail) < 4:
                    _damaged(file, offset, f"a record of {length} bytes, {total - begin} are left")
                if masked(view[begin:end]) != struct.unpack("<I", tail)[0]:
                    _damaged(file, offset, "a wrong checksum of a record")
                yield _example(file, view, begin, end)
                offset = end + 4


def _example(file: str, view: mmap.mmap, begin: int, end: int) -> Record:
    """Image and label of a tf.train.Example."""
    image: tuple[int, int] | None = None
    label: int | None = None
    try:
        for features in _fields(view, begin, end, 1):
            for entry in _fields(view, *features, 1):
                ((key_at, key_end),) = _fields(view, *entry, 1)
                key = view[key_at:key_end]
                if key not in (IMAGE_FEATURE, LABEL_FEATURE):
                    continue
                ((value_at, value_end),) = _fields(view, *entry, 2)
                if key == IMAGE_FEATURE:
                    ((list_at, list_end),) = _fields(view, value_at, value_end, 1)
                    (image,) = _fields(view, list_at, list_end, 1)
                else:
                    ((list_at, list_end),) = _fields(view, value_at, value_end, 3)
                    label = _first_integer(view, list_at, list_end)
    except (ValueError, IndexError):
        image = None
    if image is None or label is None:
        wanted = f"{IMAGE_FEATURE.decode()} and {LABEL_FEATURE.decode()}"
        _damaged(file, begin, f"an example without one value each of {wanted}")
    return Record(file, image[0], image[1] - image[0], str(label), "example")


def _varint(view: mmap.mmap, at: int) -> tuple[int, int]:
    """A protobuf varint and where the next field begins."""
    value = shift = 0
    while shift < 70:
        byte = view[at]
        at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a varint of more than ten bytes")


def _fields(view: mmap.mmap, at: int, end: int, wanted: int) -> list[tuple[int, int]]:
    """Begin and end of a message's length-delimited fields of that number; ValueError where it is no message."""
    found = []
    while at < end:
        tag, at = _varint(view, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(view, at)
        elif kind == 2:
            size, at = _varint(view, at)
            if tag >> 3 == wanted:
                found.append((at, at + size))
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
    if at != end:
        raise ValueError("a field reaches over its message")
    return found


def _first_integer(view: mmap.mmap, at: int, end: int) -> int:
    """Of an Int64List, packed or not."""
    tag, at = _varint(view, at)
    if tag & 7 == 2:
        _, at = _varint(view, at)
    value, _ = _varint(view, at)
    return value - (1 << 64) if value >> 63 else value


def _mx_records(file: str) -> Iterator[Record]:
    total, offset = os.path.getsize(file), 0
    while offset < total:
        begin = offset
        flag, size, offset = _mx_part(file, begin, total)
        while flag not in (0, 3):
            flag, more, offset = _mx_part(file, offset, total)
            size += more + 4
        if size < RECORDIO_HEADER.size:
            _damaged(file, begin, f"a record of {size} bytes")
        labels, label, _, _ = RECORDIO_HEADER.unpack(_part(file, begin + 8, RECORDIO_HEADER.size))
        if labels == 1:
            (label,) = struct.unpack("<f", _part(file, begin + 8 + RECORDIO_HEADER.size, 4))
        if labels > 1 or label != int(label):
            _damaged(file, begin, f"{labels} labels, the first {label:g}, where one whole number is wanted")
        if size > RECORDIO_HEADER.size + 4 * labels:
            yield Record(file, begin, offset - begin, str(int(label)), "record")


def _mx_part(file: str, offset: int, total: int) -> tuple[int, int, int]:
    """Flag and size of one part of a record, and where the next begins: parts are padded to four bytes."""
    magic, word = struct.unpack("<II", _part(file, offset, 8))
    size = word & ((1 << 29) - 1)
    end = offset + 8 + -(-size // 4) * 4
    if magic != RECORDIO_MAGIC or end > total:
        _damaged(file, offset, "no record's magic number" if magic != RECORDIO_MAGIC else "a record that is cut off")
    return word >> 29, size, end


def _mx_content(file: str, offset: int, size: int) -> bytes:
    """The image of a record: parts are joined by the magic number that they were cut at (dmlc-core's recordio)."""
    stored, at, parts = _part(file, offset, size), 0, []
    while at < len(stored):
        length = struct.unpack_from("<I", stored, at + 4)[0] & ((1 << 29) - 1)
        parts.append(stored[at + 8 : at + 8 + length])
        at += 8 + -(-length // 4) * 4
    record = RECORDIO_MAGIC_BYTES.join(parts)
    return record[RECORDIO_HEADER.size + 4 * struct.unpack_from("<I", record)[0] :]
