"""The progress display: live on a terminal, plain lines elsewhere, and never the end of a search."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
from pathlib import Path

import pytest
from msgdas.engine.run.progress import Progress, cell_lines
from msgdas.engine.settings.recipes import demo
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
from runs import rows

TITLE = "demo · msg · K=2 · subgraphs"
REPLAY = """
    import json, sys, time
    from pathlib import Path
    from msgdas.engine.run.progress import Progress
    with Progress(24, sys.argv[3]) as progress:
        progress.note("run folder [red]runs/demo[/red]")
        for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            getattr(progress, row["kind"])(row)
            time.sleep(float(sys.argv[2]))
        print("a warning", file=sys.stderr)
    print("summary")
"""
ANSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def written():
    return list(rows(demo(epochs=3, warmup=1), steps_per_epoch=8))


@pytest.fixture(scope="module")
def replay(tmp_path_factory, written):
    """The command that shows the rows: (pause in seconds, title) to words."""
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    return lambda pause_s=0.0, title=TITLE: [
        sys.executable, "-W", "error", "-c", textwrap.dedent(REPLAY), str(path), str(pause_s), title,
    ]  # fmt: skip


def environment(**extra):
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    return {**kept, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **extra}


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def show(progress, row, clock, seconds):
    clock.now += seconds
    getattr(progress, row["kind"])(row)


def test_cell_lines():
    genotype = {
        "normal": [["sep_conv_3x3", 0], ["skip_connect", 1], ["dil_conv_5x5", 2], ["max_pool_3x3", 0]],
        "normal_concat": [2, 3],
        "reduce": [["sep_conv_7x7", 0], ["none", 1]],
        "reduce_concat": [2],
    }
    assert cell_lines(genotype) == [
        "normal: 2<-sep3(0) skip(1) | 3<-dil5(2) max3(0)",
        "reduce: 2<-sep_conv_7x7(0) none(1)",
    ]
    arch = "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
    assert cell_lines({"arch": arch}) == ["cell: 1<-conv3(0) | 2<-conv1(0) avg3(1) | 3<-skip(0) none(1) skip(2)"]


def test_a_chain_has_layers_left_out_and_no_skip_connects(capsys):
    row = {"epoch": 0, "val_loss": 1.0, "val_accuracy": 0.5, "skips": {"chain": 3}}
    with Progress(24, TITLE) as progress:
        progress.epoch(row)
    line = capsys.readouterr().out.splitlines()[-1]
    assert "3 layers left out" in line and "skip" not in line


def test_plain_lines_at_the_start_every_ten_seconds_and_every_epoch(written, capsys):
    clock = Clock()
    with Progress(24, TITLE, clock=clock) as progress:
        for row in written:
            show(progress, row, clock, 4 if row["kind"] == "step" else 0)
        progress.note("a note")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{TITLE}: 24 steps"
    assert [line.split(",")[0] for line in lines if line.startswith("step")] == [
        f"step {step}/24" for step in (3, 6, 11, 14, 19, 22)
    ]
    done = [line for line in lines if line.startswith("epoch")]
    assert [line.split(",")[0] for line in done] == ["epoch 1 done", "epoch 2 done", "epoch 3 done"]
    epochs = [row for row in written if row["kind"] == "epoch"]
    assert f"validation accuracy {epochs[0]['val_accuracy']:.1%}" in done[0]
    assert [f"  {line}" for line in cell_lines(epochs[-1]["genotype"])] == lines[-3:-1]
    assert lines[-1] == "a note"
    first = next(row for row in written if row["kind"] == "step" and row["step"] == 3)
    facts = (f"loss {first['loss']:.3f}", f"accuracy {first['accuracy']:.1%}", "samples/s", "tau 10.00", "epoch 1")
    shown = next(line for line in lines if line.startswith("step 3/"))
    assert all(fact in shown for fact in facts) and "alpha loss" not in shown


def test_largest_peak_of_each_phase_stays(written, capsys):
    with Progress(24, TITLE) as progress:
        for phase, mib in (("weight", 40), ("weight", 44), ("weight", 42), ("alpha", 2048)):
            progress.memory({"kind": "memory", "phase": phase, "peak_bytes": mib << 20})
        progress.epoch(written[-1])
    assert "peak of alpha step 2.00 GiB, peak of weight step 44.0 MiB" in capsys.readouterr().out


def test_time_to_go_leaves_out_the_first_step(written):
    clock = Clock()
    steps = [row for row in written if row["kind"] == "step"]
    progress = Progress(24, TITLE, console=Console(file=io.StringIO()), clock=clock)
    assert progress.remaining_s is None
    show(progress, steps[0], clock, 1000)
    assert progress.remaining_s is None
    for row in steps[1:5]:
        show(progress, row, clock, 2)
    assert progress.remaining_s == pytest.approx(2 * (24 - 5))
    for row in steps[5:]:
        show(progress, row, clock, 2)
    assert progress.remaining_s is None


def test_time_to_go_of_a_resumed_search(written):
    clock = Clock()
    progress = Progress(24, TITLE, 16, console=Console(file=io.StringIO()), clock=clock)
    for row in [row for row in written if row["kind"] == "step" and row["step"] > 16][:3]:
        show(progress, row, clock, 5)
    assert progress.remaining_s == pytest.approx(5 * (24 - 19))


@pytest.mark.parametrize("extra", [{}, {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "20"}, {"NO_COLOR": "1"}])
def test_no_control_codes_where_there_is_no_terminal(replay, extra):
    result = subprocess.run(replay(), capture_output=True, env=environment(**extra), check=True, timeout=60)
    lines = result.stdout.decode().splitlines()
    assert b"\x1b" not in result.stdout and b"\r" not in result.stdout
    assert lines[0] == f"{TITLE}: 24 steps" and lines[1] == "run folder [red]runs/demo[/red]" and lines[-1] == "summary"
    assert result.stderr == b"a warning\n"


def test_text_that_the_stream_cannot_hold(replay):
    words = replay(title="\x1b[31mred\udcff·\n")
    result = subprocess.run(words, capture_output=True, env=environment(PYTHONIOENCODING="ascii"), timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == b"?[31mred???: 24 steps"


def test_fault_49_reader_that_leaves(replay):
    process = subprocess.Popen(replay(0.02), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().decode() == f"{TITLE}: 24 steps\n"
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == b"a warning\n"
    process.stderr.close()


def test_fault_49_no_standard_output(replay):
    words = ["sh", "-c", 'exec "$@" >&-', "sh", *replay()]
    result = subprocess.run(words, stderr=subprocess.PIPE, env=environment(), timeout=60)
    assert (result.returncode, result.stderr) == (0, b"a warning\n")


def test_fault_49_full_disk_behind_standard_output_is_said_once(replay):
    with open("/dev/full", "wb") as full:
        result = subprocess.run(replay(), stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=60)
    assert result.returncode == 0
    assert result.stderr.count(b"cannot show the progress") == 1 and b"Traceback" not in result.stderr


def on_terminal(words, columns, lines, stderr=None, **extra):
    """(exit code, everything written) of a command whose standard output is a terminal of that size."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=stderr or theirs, env=environment(**extra))
    os.close(theirs)
    output = b""
    while True:
        try:
            chunk = os.read(ours, 1 << 16)
        except OSError:
            break
        if not chunk:
            break
        output += chunk
    os.close(ours)
    return process.wait(60), output


def test_live_display_on_a_terminal(replay, written):
    code, output = on_terminal(replay(0.02), 110, 40)
    assert code == 0 and b"Traceback" not in output
    text = ANSI.sub(b"", output).decode()
    assert "run folder [red]runs/demo[/red]" in text
    frames = text.split(TITLE)[1:]
    assert len(frames) > 3 and "after the first epoch" in frames[0]
    last_step = [row for row in written if row["kind"] == "step"][-1]
    epoch = written[-1]
    facts = (
        "step 24/24", "100%", f"loss {last_step['loss']:.3f}", f"tau {last_step['tau']:.2f}", "peak of alpha step",
        "RSS", f"validation accuracy {epoch['val_accuracy']:.1%}", *cell_lines(epoch["genotype"]),
    )  # fmt: skip
    for fact in facts:
        assert fact in frames[-1], fact
    assert any("ETA 0:0" in frame for frame in frames)
    assert text.rstrip().endswith("summary")
    hidden, shown = output.find(b"\x1b[?25l"), output.find(b"\x1b[?25h")
    assert 0 <= hidden < shown < output.find(b"run folder"), "a killed search would leave no cursor"
    assert output.rfind(b"\x1b[?25h") > output.rfind(b"\x1b[?25l")


def test_no_color(replay):
    colour = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7]|48)[;m]")
    assert colour.search(on_terminal(replay(), 100, 30)[1])
    code, output = on_terminal(replay(), 100, 30, NO_COLOR="1")
    assert code == 0 and b"step 24/24" in output
    assert not colour.search(output)


@pytest.mark.parametrize(("columns", "lines"), [(20, 10), (1, 1), (3, 2), (300, 3)])
def test_fault_49_tiny_terminals(replay, columns, lines):
    code, output = on_terminal(replay(), columns, lines)
    assert code == 0 and b"Traceback" not in output and b"summary" in output


def test_dumb_terminal_gets_plain_lines(replay):
    code, output = on_terminal(replay(), 80, 24, TERM="dumb")
    assert code == 0 and b"\x1b" not in output and b"epoch 3 done" in output


def test_standard_error_in_a_file_stays_there(replay, tmp_path):
    with open(tmp_path / "errors", "wb") as errors:
        code, output = on_terminal(replay(), 80, 24, stderr=errors)
    assert code == 0 and b"a warning" not in output
    assert (tmp_path / "errors").read_bytes() == b"a warning\n"


def test_every_width(written):
    for width in range(1, 130):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=True, width=width, height=12, color_system=None)
        with Progress(24, TITLE, console=console) as progress:
            for row in written[-4:]:
                getattr(progress, row["kind"])(row)
        lines = ANSI.sub(b"", stream.getvalue().encode()).decode().replace("\r", "\n").split("\n")
        assert max(map(len, lines)) <= width


def test_close_twice_and_notes_around(capsys):
    progress = Progress(2, TITLE)
    progress.note("before")
    with progress:
        progress.close()
        progress.close()
    progress.note("after")
    assert capsys.readouterr().out.splitlines() == ["before", f"{TITLE}: 2 steps", "after"]
