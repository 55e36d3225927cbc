"""TensorBoard events, read back with TensorBoard's own reader."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from msgdas.engine.run.tensorboard import TensorBoardWriter, scalars
from msgdas.engine.settings.recipes import demo

sys.path.insert(0, str(Path(__file__).parent))
from runs import rows


@pytest.fixture(scope="module")
def written():
    return list(rows(demo(epochs=3, warmup=1), steps_per_epoch=4))


def read(path):
    """{tag: [(step, value), ...]} of everything in the folder's event files."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with warnings.catch_warnings():
        # TensorBoard's reader leaves its files open until it is collected.
        warnings.simplefilter("ignore", ResourceWarning)
        events = event_accumulator.EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        del events
        gc.collect()
    return found


def write(path, some, done_step=None):
    writer = TensorBoardWriter(path, done_step)
    assert writer.active
    for row in some:
        writer.write(row)
    writer.close()
    assert not writer.active


def test_every_number_of_a_row_comes_back(written, tmp_path):
    write(tmp_path, written)
    found = read(tmp_path)
    expected = {}
    for row in written:
        for tag, value in scalars(row):
            expected.setdefault(tag, []).append((row["step"], pytest.approx(value, rel=1e-6)))
    assert found == expected
    steps = [row for row in written if row["kind"] == "step"]
    epochs = [row for row in written if row["kind"] == "epoch"]
    near = pytest.approx
    assert found["loss/weight_step"] == [(row["step"], near(row["loss"], rel=1e-6)) for row in steps]
    assert [step for step, _ in found["loss/alpha_step"]] == list(range(5, 13))
    assert found["accuracy/validation"] == [(row["step"], near(row["val_accuracy"], rel=1e-6)) for row in epochs]
    assert found["skip_connects/normal"] == [(row["step"], row["skips"]["normal"]) for row in epochs]
    assert [step for step, _ in found["memory/peak_bytes_alpha_step"]] == [5, 9]
    assert found["teacher/used"] == [(row["step"], float(row["teacher_used"])) for row in epochs]
    assert {"time/step_s", "time/samples_per_s", "memory/rss_bytes", "schedule/tau"} <= set(found)


def test_resumed_search_hides_what_it_does_again(written, tmp_path):
    write(tmp_path, written)
    again = [row | {"loss": 9.0} for row in written if row["kind"] == "step" and 7 <= row["step"] <= 9]
    write(tmp_path, again, done_step=6)
    found = read(tmp_path)["loss/weight_step"]
    assert [step for step, _ in found] == list(range(1, 10))
    assert [value == 9.0 for _, value in found] == [False] * 6 + [True] * 3


def test_search_begun_again_hides_everything(written, tmp_path):
    write(tmp_path, written)
    write(tmp_path, written[:2])
    assert [step for step, _ in read(tmp_path)["loss/weight_step"]] == [1]


def test_other_rows_are_passed_over(tmp_path):
    write(tmp_path, [{"kind": "event", "step": 3, "what": "resumed", "detail": "time"}])
    assert read(tmp_path) == {}


def test_fault_50_without_tensorboard_there_is_silence(tmp_path):
    code = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "from pathlib import Path\n"
        "from msgdas.engine.run.tensorboard import TensorBoardWriter\n"
        "writer = TensorBoardWriter(Path(sys.argv[1]))\n"
        "assert not writer.active\n"
        "writer.write({'kind': 'step', 'step': 1, 'loss': 1.0})\n"
        "writer.close()\n"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path / "tb")], capture_output=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert not (tmp_path / "tb").exists()


def test_fault_50_a_folder_that_takes_no_events(written, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    writer = TensorBoardWriter(tmp_path / "file" / "tb")
    assert not writer.active
    for row in written:
        writer.write(row)
    writer.close()
    assert capsys.readouterr().err.count("warning: no more TensorBoard events") == 1


def test_import_takes_no_torch():
    code = "import sys, msgdas.engine.run.tensorboard; sys.exit('torch' in sys.modules or 'tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path("/")).returncode == 0
