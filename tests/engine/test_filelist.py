"""File lists: what is found in a tree, what is written down, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgdas.engine.errors import DataError
from msgdas.engine.images.filelist import Difference, Entry, FileList, escaped, unescaped
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

HEAD = "# msgdas file list 1\n# root\t/photos\n# class\tcat\n# class\tdog\n"


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    touch(
        *(root / "cat" / name for name in ("b.jpg", "a.JPEG", "notes.txt", "deep/c.webp", "deep-er/d.png")),
        *(root / "dog" / name for name in ("10.jpg", "9.jpg")),
        root / ".hidden" / "e.jpg",
        root / "f.jpg",
    )
    return root


def test_a_tree_is_listed_as_torchvision_lists_it(tree: Path) -> None:
    found = FileList.scan(tree)
    assert found.classes == ("cat", "dog")
    numbers = {"cat": 0, "dog": 1}
    theirs = make_dataset(str(tree), numbers, extensions=IMG_EXTENSIONS)
    assert list(zip(found.paths(), found.labels(), strict=True)) == theirs
    assert len(theirs) == 6
    assert found.counts() == [4, 2]


def test_a_link_back_ends_the_walk_there_and_other_links_are_followed(tree: Path, tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "g.jpg")
    (tree / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    (tree / "dog" / "up").symlink_to(tree / "dog")
    (tree / "dog" / "around").symlink_to(tree)
    assert [path for path, label in FileList.scan(tree).entries if label] == [
        "dog/10.jpg",
        "dog/9.jpg",
        "dog/more/g.jpg",
    ]


@given(st.binary(min_size=1) | st.text(st.characters(exclude_categories=["Cs"])).map(str.encode))
def test_fault_46_every_name_survives(name_bytes: bytes) -> None:
    name = os.fsdecode(name_bytes)
    escaped(name).encode()
    assert "\n" not in escaped(name) and "\t" not in escaped(name) and not escaped(name).startswith("#")
    assert unescaped(escaped(name)) == name


def test_a_list_survives_with_its_odd_names(tmp_path: Path) -> None:
    odd = ("cat/# 1.jpg", "cat/a\tb\nc\\d.jpg", os.fsdecode(b"cat/\xff\xe4.jpg"), "cat/\u2028ü.jpg", "#dog/1.jpg")
    files = FileList(tmp_path, ("cat", "#dog"), tuple(Entry(path, int(path[0] == "#")) for path in odd))
    files.write(tmp_path / "list")
    found = FileList.read(tmp_path / "list")
    assert found == files
    assert found.checksum == files.checksum
    assert files.at([1, 0]).checksum != files.checksum
    assert FileList(Path("/other"), files.classes, files.entries).checksum == files.checksum


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":1 "),
        ("cat/1.jpg\t0\n", ":1 "),
        ("# msgdas file list 2\n", "allowed '# msgdas file list 1'"),
        (HEAD + "cat/1.jpg 0\n", ":5 "),
        (HEAD + "cat/1.jpg\t0\ncat/1.jpg\t1\n", ":6 is no line of a file list; got cat/1.jpg again"),
        (HEAD + "cat/1.jpg\t2\n", "got label '2'; allowed 0 to 1"),
        (HEAD + "cat/1.jpg\t²\n", "got label '²'"),
        (HEAD + "cat/1.jpg\t-1\n", "got label '-1'"),
        (HEAD + "../cat/1.jpg\t0\n", ":5 "),
        (HEAD + "/etc/1.jpg\t0\n", ":5 "),
        (HEAD + "cat/\\q.jpg\t0\n", "escape"),
        (HEAD + "cat/\\\t0\n", "escape"),
        (HEAD + "cat/1.jpg\t0\ncat/2.j", ":6 is no line of a file list; got a line that is cut off"),
        (HEAD + "cat/1.jpg\t0\n# class\tbird\n", ":6 "),
        (HEAD, ":5 is no line of a file list; got 2 classes, 0 images"),
        (HEAD.replace("# root\t/photos\n", "") + "cat/1.jpg\t0\n", "no root"),
    ],
)
def test_another_file_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(DataError) as caught:
        FileList.read(tmp_path / "list")
    assert str(tmp_path / "list") in str(caught.value) and said in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(HEAD.encode() + b"cat/\xff.jpg\t0\n")
    with pytest.raises(DataError, match=r":5 .*utf-8"):
        FileList.read(tmp_path / "list")


def test_a_list_that_cannot_be_read_or_written(tmp_path: Path, tree: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        FileList.read(tmp_path / "none")
    with pytest.raises(DataError, match="No such file"):
        FileList.scan(tree).write(tmp_path / "none" / "list")


def test_some_classes_are_numbered_anew(tree: Path) -> None:
    touch(tree / "ant" / "1.jpg")
    found = FileList.scan(tree).of_classes(["dog", "ant"])
    assert found.classes == ("ant", "dog")
    assert found.entries == (Entry("ant/1.jpg", 0), Entry("dog/10.jpg", 1), Entry("dog/9.jpg", 1))


def test_the_difference_of_two_listings_names_files(tree: Path) -> None:
    before = FileList.scan(tree)
    (tree / "dog" / "9.jpg").rename(tree / "dog" / "8.jpg")
    touch(tree / "ant" / "1.jpg")
    found = before.difference(FileList.scan(tree))
    assert found == Difference(("dog/9.jpg",), ("ant/1.jpg", "dog/8.jpg"), ())
    assert str(found) == "1 missing (dog/9.jpg), 2 new (ant/1.jpg, dog/8.jpg)"
    assert not any(before.difference(before))
    moved = FileList(before.root, before.classes, tuple(Entry(path, 0) for path, _ in before.entries))
    assert str(before.difference(moved)) == "2 relabelled (dog/10.jpg, dog/9.jpg)"
