"""`msgdas data check`: real files of every bad kind, resumed, with workers that die."""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from msgdas.engine.cli import main
from msgdas.engine.errors import DataError
from msgdas.engine.images.data import load
from msgdas.engine.images.datacheck import check
from msgdas.engine.images.examining import Examiners, examine
from msgdas.engine.images.filelist import FileList
from msgdas.engine.settings.config import SearchConfig
from PIL import Image

COMMAND = [sys.executable, "-c", "from msgdas.engine.cli import run\nif __name__ == '__main__': run()", "data", "check"]
SEARCH = [
    "search", "demo", "--channels", "4", "--layers", "3", "--image", "8", "--batch", "4", "--epochs", "1",
    "--warmup", "0", "--set", "threads=1",
]  # fmt: skip


def picture(path: Path, seed: int, mode: str = "RGB", size: int = 48, **keywords: object) -> Path:
    """A file of noise, which no two seeds share."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **keywords)
    return path


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Classes a and b with ten good images each, c with bad ones alone, d empty; and a val part."""
    root = tmp_path / "photos"
    for number, name in enumerate("ab"):
        for n in range(10):
            picture(root / "train" / name / f"{n}.jpg", 100 * number + n)
        picture(root / "val" / name / "0.jpg", 900 + number)
    a, b, c = (root / "train" / name for name in "abc")
    upright = Image.Exif()
    upright[274] = 6
    cut(picture(a / "cut.jpg", 20), 0.6)
    cut(picture(a / "cut.png", 21), 0.6)
    cut(picture(a / "cut.webp", 22), 0.6)
    picture(a / "p n g.jpg", 23, format="PNG")
    picture(a / "gif.jpg", 24, format="GIF")
    picture(a / "cmyk.jpg", 25, "CMYK")
    picture(a / "gray.jpg", 26, "L")
    picture(a / "turned.jpg", 27, exif=upright)
    (a / "deep.png").parent.mkdir(exist_ok=True)
    Image.new("I;16", (9, 9)).save(a / "deep.png")
    Image.new("F", (9, 9)).save(a / "float.tif")
    (b / "empty.jpg").touch()
    (b / "random.jpg").write_bytes(np.random.default_rng(5).bytes(3000))
    (b / "copy.jpg").write_bytes((b / "0.jpg").read_bytes())
    (b / "of a.jpg").write_bytes((a / "1.jpg").read_bytes())
    (b / "of val.jpg").write_bytes((root / "val" / "a" / "0.jpg").read_bytes())
    (c / "broken.jpg").parent.mkdir()
    (c / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "train" / "d").mkdir()
    (root / "val" / "b" / "empty.png").touch()
    return root


def test_fault_34_every_kind_is_named_and_the_clean_list_is_searched(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clean.list"
    assert main(["data", "check", str(photos), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {kind: sorted(paths) for kind, paths in found["left_out"].items()} == {
        "empty": ["b/empty.jpg"],
        "truncated": ["a/cut.jpg", "a/cut.png", "a/cut.webp"],
        "not an image": ["b/random.jpg", "c/broken.jpg"],
        "another type": ["a/gif.jpg"],
        "damaged": ["a/float.tif"],
        "also in val": ["b/of val.jpg"],
        "copy in its class": ["b/copy.jpg"],
        "copy in another class": ["a/1.jpg", "b/of a.jpg"],
    }
    assert found["left_out"]["copy in its class"] == {"b/copy.jpg": "b/0.jpg"}
    assert found["left_out"]["also in val"] == {"b/of val.jpg": "val/a/0.jpg"}
    assert found["left_out"]["another type"] == {"a/gif.jpg": "GIF"}
    assert found["bad_val"] == {"empty": {"b/empty.png": "0 bytes"}}
    assert found["odd"] == {
        "gray": ["train/a/deep.png", "train/a/gray.jpg"],
        "CMYK": ["train/a/cmyk.jpg"],
        "EXIF rotation": ["train/a/turned.jpg"],
        "another ending": ["train/a/p n g.jpg"],
    }
    assert (found["empty_classes"], found["differing_classes"]) == (["c", "d"], ["c", "d"])
    assert found["images"] == {"train": 36, "val": 3} and found["kept"] == 24
    files = FileList.read(out)
    assert files.classes == ("a", "b") and files.counts() == [14, 10]

    data = f"imagefolder:{photos}"
    assert main([*SEARCH, "--data", data, "--out", str(tmp_path / "dirty")]) == 3
    assert main([*SEARCH, "--data", data, "--set", f"data_list={out}", "--out", str(tmp_path / "run")]) == 0
    assert load(SearchConfig(data=data, data_list=str(out), image=8), "test").classes == ("a", "b")


def test_the_summary_names_the_first_paths(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(7):
        (photos / "train" / "a" / f"zero{number}.jpg").touch()
    assert main(["data", "check", str(photos), "--out", str(tmp_path / "list"), "--workers", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "empty 8 a/zero0.jpg, a/zero1.jpg, a/zero2.jpg, ..." in said
    assert "images/s" in said and "classes without a good image: 2 (c, d)" in said
    assert f"clean list {tmp_path / 'list'}: 24 of 43 images, 2 classes" in said


def test_whatever_is_cut_off_is_seen_at_an_eighth_of_the_size_too(tmp_path: Path) -> None:
    """The draft that the check decodes fails for the same cuts as the whole image."""
    kinds = ({}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}, {"subsampling": 2, "restart_marker_rows": 1})
    for number, keywords in enumerate(kinds):
        path = picture(tmp_path / f"{number}.jpg", number, size=96, **keywords)
        content = path.read_bytes()
        assert not examine(str(path)).bad
        for end in range(0, len(content), 101):
            path.write_bytes(content[:end])
            assert examine(str(path)).bad in ("empty", "truncated", "not an image"), end


def test_another_check_takes_what_is_known_and_sees_what_changed(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "list"
    first = check(photos, out=out, workers=1)
    assert first.examined == 39
    with open(f"{out}.state", "a") as state:
        state.write('["train/a/2.jpg", 12')
    cut(photos / "train" / "a" / "3.jpg", 0.5)
    (photos / "train" / "b" / "random.jpg").unlink()
    second = check(photos, out=out, workers=1)
    assert second.examined == 1
    assert set(second.left_out["truncated"]) == {*first.left_out["truncated"], "a/3.jpg"}
    assert check(photos, out=out, workers=1).examined == 0
    os.utime(photos / "train" / "a" / "4.jpg")
    found = (photos / "train" / "a" / "5.jpg").stat()
    with open(f"{out}.state", "a") as state:
        verdict = ["train/a/5.jpg", found.st_size, found.st_mtime_ns, "took too long", "", [], ""]
        state.write(json.dumps(verdict) + "\n")
    assert check(photos, out=out, workers=1).examined == 2
    assert check(photos / "train", out=out, workers=1).examined == 35


def test_a_killed_check_goes_on(tmp_path: Path) -> None:
    root, out = tmp_path / "photos", tmp_path / "list"
    for n in range(40):
        picture(root / "ab"[n % 2] / f"{n}.png", n, size=500)
    running = subprocess.Popen([*COMMAND, str(root), "--out", str(out), "--workers", "1"], stdout=subprocess.DEVNULL)
    state = Path(f"{out}.state")
    deadline = time.monotonic() + 60
    while not state.exists() or state.read_text().count("\n") < 8:
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.005)
    running.kill()
    running.wait()
    assert not out.exists()
    found = check(root, out=out, workers=1)
    assert 0 < found.examined < 40
    assert len(found.clean.entries) == 40


def kill_readers(pipe: Path, times: int, then: Path | None) -> threading.Thread:
    """Kills the worker that reads the pipe, as often as that; before the last time `then` takes the pipe's place."""

    def kill() -> None:
        for left in reversed(range(times)):
            while True:
                try:
                    writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
                    break
                except OSError:  # Nobody reads it yet.
                    time.sleep(0.005)
            if then is not None and not left:
                os.replace(then, pipe)
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            gone = select.poll()
            gone.register(writer, select.POLLERR)
            while not gone.poll(1000):
                pass
            os.close(writer)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.parametrize(("deaths", "bad"), [(1, ""), (2, "worker died")])
def test_fault_37_a_worker_that_dies_twice_at_a_file_names_it_and_the_others_are_examined(
    tmp_path: Path, deaths: int, bad: str
) -> None:
    os.mkfifo(tmp_path / "0.jpg")
    paths = [str(tmp_path / "0.jpg"), *(str(picture(tmp_path / f"{n}.jpg", n)) for n in (1, 2))]
    killer = kill_readers(Path(paths[0]), deaths, None if bad else picture(tmp_path / "later" / "0.jpg", 0))
    with Examiners(1) as examiners:
        found = dict(examiners.verdicts(paths))
    killer.join()
    assert [found[path].bad for path in paths] == [bad, "", ""]


def test_fault_38_a_file_that_takes_too_long_is_named_and_the_others_are_examined(tmp_path: Path) -> None:
    """A pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe.jpg")
    paths = [str(tmp_path / "pipe.jpg"), *(str(picture(tmp_path / f"{n}.jpg", n)) for n in range(3))]
    with Examiners(1, patience_s=2) as examiners:
        found = dict(examiners.verdicts(paths))
    assert [found[path].bad for path in paths] == ["took too long", "", "", ""]
    assert found[paths[0]].detail == "over 2 s"


def test_folders_and_places_that_will_not_do(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        assert main(["data", *words]) == 3
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "Next: " in error
        return error

    assert "No such file" in said("check", str(tmp_path / "none"), "--out", str(tmp_path / "list"))
    (tmp_path / "bare").mkdir()
    assert "too few class folders" in said("check", str(tmp_path / "bare"), "--out", str(tmp_path / "list"))
    assert "cannot write" in said("check", str(photos), "--out", str(tmp_path / "none" / "list"))
    assert "is no file list" in said("check", str(photos), "--out", str(photos / "train" / "a" / "0.jpg"))
    assert "Is a directory" in said("check", str(photos), "--out", str(tmp_path))
    for name in ("a", "b"):
        for path in (photos / "train" / name).iterdir():
            path.write_bytes(b"")
    error = said("check", str(photos), "--out", str(tmp_path / "list"))
    assert "fewer than two classes with a good image; got 35 empty" in error
    assert not (tmp_path / "list").exists()
    assert main(["data", "chekc", str(photos)]) == 2
    assert main(["data", "check", str(photos), "--workers", "-1"]) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read(photos: Path, tmp_path: Path) -> None:
    (photos / "train" / "a").chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        check(photos, out=tmp_path / "list")
    (photos / "train" / "a").chmod(0o700)


def test_a_full_disk_ends_the_check_in_one_line(photos: Path, tmp_path: Path) -> None:
    """/dev/full takes the state; the list lands on no disk."""
    (tmp_path / "list.state").symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left"):
        check(photos, out=tmp_path / "list", workers=1)


def test_photographs(shared_data: Path, tmp_path: Path) -> None:
    found = check(shared_data / "caltech101_20", out=tmp_path / "list")
    assert found.images == {"train": 1000, "val": 300}
    assert not found.left_out and not found.bad_val
    assert FileList.read(tmp_path / "list").checksum == FileList.scan(shared_data / "caltech101_20" / "train").checksum
