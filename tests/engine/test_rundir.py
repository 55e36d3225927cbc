"""The run folder: one owner, atomic files, forgiving readers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgdas.engine.atomic import write_atomically
from msgdas.engine.errors import ConfigError, RunFolderError
from msgdas.engine.run.rundir import MetricsWriter, RunFolder, default_path, keep_until, read_metrics
from msgdas.engine.settings.config import from_json
from msgdas.engine.settings.recipes import demo


def test_create_and_open(tmp_path):
    config = demo(k=3, seed=4)
    folder = RunFolder.create(tmp_path / "a" / "run", config, {"msgdas": "x"})
    again = RunFolder.open(folder.path, from_json)
    assert again.config == config
    assert json.loads((folder.path / "environment.json").read_text()) == {"msgdas": "x"}


@pytest.mark.parametrize("name", ["with space", "ünïcode", "a" * 100])
def test_fault_46_any_name_will_do(tmp_path, name):
    RunFolder.create(tmp_path / name, demo(), {})
    assert RunFolder.open(tmp_path / name, from_json).config == demo()


def test_fault_14_refuses_what_is_not_its_own(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years")
    with pytest.raises(RunFolderError, match=r"not empty.*--resume"):
        RunFolder.create(tmp_path / "full", demo(), {})
    assert (tmp_path / "full" / "thesis.tex").read_text() == "years"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder.create(tmp_path / "file", demo(), {})
    with pytest.raises(RunFolderError, match="cannot write"):
        RunFolder.create(Path("/proc/msgdas"), demo(), {})
    with pytest.raises(RunFolderError, match="no run folder"):
        RunFolder.open(tmp_path / "nothing", from_json)
    (tmp_path / "full" / "config.json").write_text('{"k": ')
    with pytest.raises(RunFolderError, match="damaged"):
        RunFolder.open(tmp_path / "full", from_json)
    (tmp_path / "full" / "config.json").write_text('{"kk": 2}')
    with pytest.raises(ConfigError, match="unknown configuration key"):
        RunFolder.open(tmp_path / "full", from_json)


HOLDER = """
    import sys, time
    from pathlib import Path
    from msgdas.engine.settings.config import from_json
    from msgdas.engine.run.rundir import RunFolder
    with RunFolder.open(Path(sys.argv[1]), from_json).lock():
        print("held", flush=True)
        time.sleep(60)
"""


def test_fault_14_a_folder_belongs_to_one_search(tmp_path):
    folder = RunFolder.create(tmp_path / "run", demo(), {})
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RunFolderError, match=rf"running search or training.*process {holder.pid} on"),
            folder.lock(),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with folder.lock():
        assert str(os.getpid()) in (folder.path / "LOCK").read_text()


def test_fault_46_default_names_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = default_path("demo")
    first.mkdir(parents=True)
    assert not default_path("demo").exists()


def test_atomic_write_leaves_the_old_file_and_no_rubbish_when_it_fails(tmp_path):
    path = tmp_path / "x.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"


@given(st.binary(max_size=200))
def test_fault_13_reader_never_raises(data):
    path = Path(os.devnull)
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        path = Path(file.name)
        assert isinstance(read_metrics(path), list)


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.integers() | st.floats(allow_nan=False) | st.none())), st.data()
)
def test_fault_13_reader_gets_every_whole_row_of_any_prefix(rows, data):
    import tempfile

    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    cut = data.draw(st.integers(0, len(text)))
    with tempfile.NamedTemporaryFile() as file:
        file.write(text[:cut])
        file.flush()
        found = read_metrics(Path(file.name))
    whole = text[:cut].count(b"\n")
    assert found[:whole] == rows[:whole] and len(found) <= whole + 1


def test_fault_13_a_full_disk_does_not_end_a_search(capsys):
    writer = MetricsWriter(Path("/dev/full"))
    for step in range(3):
        writer.append({"step": step})
    writer.close()
    assert writer.lost_rows == 3
    assert capsys.readouterr().err.count("warning: cannot write /dev/full") == 1


def test_resume_keeps_the_rows_it_will_not_write_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"kind": "step", "step": s} for s in (1, 2)] + [{"kind": "epoch", "step": 2}, {"kind": "step", "step": 3}]
    for closed, expected in ((True, 3), (False, 2)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "st')
        keep_until(path, 2, closed)
        assert read_metrics(path) == rows[:expected]
