"""Archives written here by their formats' own rules and read back: bytes, labels, order, damage."""

from __future__ import annotations

import io
import re
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from msgdas.engine.cli import main
from msgdas.engine.errors import DataError
from msgdas.engine.images.archives import load_archives
from msgdas.engine.images.data import load
from msgdas.engine.images.records import RECORDIO_MAGIC, RECORDIO_MAGIC_BYTES, recordio, tfrecord, webdataset
from msgdas.engine.search.halves import open_halves
from msgdas.engine.settings.config import SearchConfig
from PIL import Image

google_crc32c = pytest.importorskip("google_crc32c")
COUNT = 8


def jpeg(number: int) -> bytes:
    stored = io.BytesIO()
    Image.new("RGB", (48, 40), (20 * number, 60, 90)).save(stored, "JPEG")
    return stored.getvalue()


JPEGS = [jpeg(number) for number in range(COUNT)]
LABELS = [number % 2 + 9 for number in range(COUNT)]


def write_tar(path: Path, *, cls: bool = True, numbers: range = range(COUNT)) -> Path:
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            parts = {f"shard/c{LABELS[number]}/{number:04}.jpg": JPEGS[number]}
            if cls:
                parts = {f"{number:04}.jpg": JPEGS[number], f"{number:04}.cls": f"{LABELS[number]}\n".encode()}
            for name, content in reversed(parts.items()) if number % 3 else parts.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(image: bytes, label: int, *, packed: bool) -> bytes:
    integers = field(1, varint(label)) if packed else varint(1 << 3) + varint(label)
    features = {
        b"image/height": field(3, field(1, varint(40))), b"image/encoded": field(1, field(1, image)),
        b"image/class/label": field(3, integers), b"image/ratio": field(2, field(1, struct.pack("<f", 1.2))),
    }  # fmt: skip
    entries = b"".join(field(1, field(1, name) + field(2, value)) for name, value in features.items())
    return field(1, entries)


def masked(content: bytes) -> bytes:
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def framed(content: bytes) -> bytes:
    head = struct.pack("<Q", len(content))
    return head + masked(head) + content + masked(content)


def write_tfrecord(path: Path) -> Path:
    records = (example(JPEGS[number], LABELS[number], packed=number % 2 == 0) for number in range(COUNT))
    path.write_bytes(b"".join(framed(record) for record in records))
    return path


def write_recordio(path: Path, images: list[bytes] | None = None) -> Path:
    """As dmlc-core writes: a record with the magic number in it, at a multiple of four bytes, is cut there."""
    found = b""
    for number, image in enumerate(images or JPEGS):
        flag = number % 2
        head = struct.pack("<IfQQ", flag, 0 if flag else LABELS[number], number, 0)
        content = head + (struct.pack("<f", LABELS[number]) if flag else b"") + image
        parts, begin = [], 0
        for at in range(0, len(content) - 3, 4):
            if content[at : at + 4] == RECORDIO_MAGIC_BYTES:
                parts.append(content[begin:at])
                begin = at + 4
        parts.append(content[begin:])
        for place, part in enumerate(parts):
            kind = 0 if len(parts) == 1 else 1 if place == 0 else 3 if place == len(parts) - 1 else 2
            found += struct.pack("<II", RECORDIO_MAGIC, kind << 29 | len(part)) + part + bytes(-len(part) % 4)
    path.write_bytes(found)
    return path


WRITERS = {
    "webdataset:": (write_tar, webdataset, "train-0.tar"), "tfrecord:": (write_tfrecord, tfrecord, "train-0-of-1"),
    "recordio:": (write_recordio, recordio, "train.rec"),
}  # fmt: skip


@pytest.mark.parametrize("prefix", WRITERS)
def test_images_and_labels_are_read_back_in_any_order(tmp_path: Path, prefix: str) -> None:
    write, reader, name = WRITERS[prefix]
    records = reader([write(tmp_path / name)])
    # By number, not by text: 10 comes after 9.
    assert records.classes == ("9", "10")
    assert [int(records.classes[place]) for place in records.labels_N] == LABELS
    for number in (5, 0, 7, 3):
        assert records.read(number) == JPEGS[number]
        assert str(tmp_path / name) in records.name_of(number)


def test_a_tar_without_labels_takes_its_folders(tmp_path: Path) -> None:
    records = webdataset([write_tar(tmp_path / "a.tar", cls=False)])
    assert records.classes == ("c10", "c9")
    assert records.read(2) == JPEGS[2]


def test_a_label_may_be_negative(tmp_path: Path) -> None:
    labels = (-1 & (1 << 64) - 1, 3)
    (tmp_path / "a").write_bytes(b"".join(framed(example(JPEGS[0], label, packed=True)) for label in labels))
    assert tfrecord([tmp_path / "a"]).classes == ("-1", "3")


def test_a_record_with_the_magic_number_in_it_is_whole(tmp_path: Path) -> None:
    """Cut where it stands at a multiple of four of the record, twice in one image and once at its end."""
    images = list(JPEGS)
    images[2] = RECORDIO_MAGIC_BYTES + b"abcd" + RECORDIO_MAGIC_BYTES + b"xyz"
    images[4] = b"1234" + RECORDIO_MAGIC_BYTES
    records = recordio([write_recordio(tmp_path / "a.rec", images)])
    assert [records.read(number) for number in range(COUNT)] == images


@pytest.mark.parametrize("prefix", WRITERS)
def test_archives_are_data_sets_with_parts(tmp_path: Path, prefix: str) -> None:
    write, _, name = WRITERS[prefix]
    write(tmp_path / name)
    with pytest.raises(DataError, match="names no files of the test part"):
        load_archives(f"{prefix}{tmp_path}", test=True, image=32)
    write(tmp_path / name.replace("train", "val"))
    config = SearchConfig(data=f"{prefix}{tmp_path}", image=32, crop="resized", batch=2, workers=1, loader="torch")
    train, test = load(config), load(config, "test")
    assert train.labels.tolist() == test.labels.tolist() == [label - 9 for label in LABELS]
    assert train.statistics == test.statistics
    pixels = train.gather(torch.arange(COUNT))
    assert pixels.shape == (COUNT, 3, 32, 32)
    assert [round(level / 20) for level in pixels[:, 0].double().mean((1, 2)).tolist()] == list(range(COUNT))
    with open_halves(config) as halves:
        assert halves.w.at(1).images_BCHW.shape == (2, 3, 32, 32)


def test_a_file_and_a_pattern_are_all_training(tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", numbers=range(4 * shard, 4 * shard + 4))
    assert len(load_archives(f"webdataset:{tmp_path / '1.tar'}", test=False, image=16).labels) == 4
    assert len(load_archives(f"webdataset:{tmp_path}/*.tar", test=False, image=16).labels) == 8
    with pytest.raises(DataError, match="names no files of the test part"):
        load_archives(f"webdataset:{tmp_path}", test=True, image=16)
    one = load_archives(f"webdataset:{tmp_path}", test=False, image=16)
    assert one.read(6) == JPEGS[6]


def test_classes_are_drawn(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(COUNT):
            member = tarfile.TarInfo(f"c{number % 4}/{number}.jpg")
            member.size = len(JPEGS[number])
            archive.addfile(member, io.BytesIO(JPEGS[number]))
    drawn = load_archives(f"webdataset:{tmp_path}", test=False, image=16, num_classes=2, seed=1)
    assert len(drawn.classes) == 2 and sorted(drawn.labels.tolist()) == [0, 0, 1, 1]
    for place in range(4):
        assert f"({drawn.classes[int(drawn.labels[place])]}/" in drawn.name_of(place)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :]


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a tar that ends early": ("webdataset:", lambda content: content[: len(JPEGS[0]) // 2 + 512]),
    "a tar's head": ("webdataset:", lambda content: flipped(content, 3)),
    "no tar": ("webdataset:", lambda content: b"PK" + bytes(2000)),
    "a record's length": ("tfrecord:", lambda content: flipped(content, 2)),
    "a record's content": ("tfrecord:", lambda content: flipped(content, 300)),
    "a TFRecord that ends early": ("tfrecord:", lambda content: content[:-9]),
    "an example without image": ("tfrecord:", lambda content: content + framed(field(1, b""))),
    "no example": ("tfrecord:", lambda content: content + framed(b"\xff" * 20)),
    "a RecordIO that ends early": ("recordio:", lambda content: content[:-9]),
    "no RecordIO": ("recordio:", lambda content: flipped(content, 1)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_names_the_file_and_the_byte(tmp_path: Path, damage: str) -> None:
    prefix, spoil = DAMAGE[damage]
    write, reader, name = WRITERS[prefix]
    path = write(tmp_path / name)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{re.escape(str(path))} is damaged at byte \d+; got .+\. Next: fetch"):
        reader([path])


def test_an_archive_that_shrinks_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar")
    records = webdataset([path])
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=rf"{re.escape(str(path))} is damaged at byte \d+; got \d+ of \d+ bytes"):
        records.read(7)


def test_a_bad_image_in_an_archive_is_named(tmp_path: Path) -> None:
    images = list(JPEGS)
    images[3] = b"no image at all"
    write_recordio(tmp_path / "a.rec", images)
    with pytest.raises(DataError, match=r"cannot read the image .*a\.rec \(record, byte \d+\)"):
        load_archives(f"recordio:{tmp_path / 'a.rec'}", test=False, image=16)


def test_nothing_there_is_one_line_and_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for prefix in WRITERS:
        assert main(["search", "--data", f"{prefix}{tmp_path / 'none'}", "--out", str(tmp_path / prefix[:-1])]) == 3
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1 and "names no files of the training part" in said


def test_one_class_is_too_few(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", numbers=range(1))
    with pytest.raises(DataError, match="too few classes; got 1 images of 1 classes"):
        load_archives(f"webdataset:{tmp_path}", test=False, image=16)
    assert np.array_equal(webdataset([write_tar(tmp_path / "b.tar")]).labels_N, [0, 1] * 4)
