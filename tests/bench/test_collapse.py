"""Skip-connects over time, from real searches of seconds."""

from __future__ import annotations

import json

from msgdas.bench.collapse import KINDS, main, table_text


def test_every_kind_is_searched_once_and_counted_each_epoch(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    words = ["--spaces", "s2", "--seeds", "0", "--epochs", "2", "--limit", "32", "--channels", "2", "--layers", "3"]
    words += ["--image", "8", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    assert main(words) == 0
    assert "s2, dropblock" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["dbi"] for row in rows] == list(KINDS)
    for row in rows:
        operations = [operation for operation, _ in row["genotype"]["normal"]]
        assert len(row["skips"]) == 2 and row["skips"][-1] == operations.count("skip_connect")
        assert set(operations) <= {"skip_connect", "sep_conv_3x3"}
    written = out.read_text()
    main(words)
    assert out.read_text() == written


def test_the_table_averages_over_seeds():
    rows = [
        {"space": "s1", "dbi": "off", "seed": seed, "skips": [0, 2, 4, 6 + seed], "val_accuracy": [0.5]}
        for seed in range(3)
    ]
    line = table_text(rows).splitlines()[1]
    assert "7.0 +- 1.0" in line and "2.0 +- 0.0" in line and " 3 " in line
