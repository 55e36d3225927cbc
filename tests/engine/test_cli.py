"""The command line: its surface, its errors, its speed."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgdas.engine import cli
from msgdas.engine.cli import EXIT_CODES, main, parser
from msgdas.engine.commands.configuration import config_of
from msgdas.engine.settings.config import KEYS, SearchConfig
from msgdas.engine.settings.recipes import RECIPES, demo

GOLDEN = Path(__file__).parent.parent / "golden" / "cli_options.txt"


def surface() -> str:
    commands = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    return "".join(
        f"{name} {option}\n"
        for name, command in commands.items()
        for action in command._actions
        for option in action.option_strings or [action.dest]
    )


def test_the_surface_is_frozen():
    """A new option is a decision: add it to the golden file by hand, and keep `search` under 30 besides --help."""
    assert surface() == GOLDEN.read_text()
    assert surface().count("search --") - 1 < 30


@pytest.mark.alone
def test_help_is_quick_and_does_not_import_torch():
    code = (
        "import sys\nfrom msgdas.engine.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.7


def fails(capsys, *words):
    code = main(list(words))
    error = capsys.readouterr().err
    assert error.startswith("msgdas: ") and error.count("\n") == 1, error
    assert "Traceback" not in error and "Next: " in error, error
    return code, error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search", "--k", "two"], "'two' (str); allowed int"),
        (["search", "dmeo"], "unknown recipe; got 'dmeo'"),
        (["search", "--set", "alhpa_lr=1"], "perhaps alpha_lr"),
        (["search", "--set", "epochs"], "KEY=VALUE"),
        (["search", "--epchs", "3"], "perhaps --epochs"),
        (["search", "--config", "/nothing.toml"], "cannot read the configuration"),
        (["search", "--image", "30"], "a multiple of 4"),
        (["search", "--layers", "8", "--policy", "min,bn"], "allowed 1 or 8"),
        (["search", "--method", "gdas", "--k", "2"], "method gdas fixes k"),
        (["search", "--teacher", "ensemble", "--mode", "union"], "ensemble"),
        (["search", "--mode", "onion"], "subgraphs, union"),
        (["search", "--device", "tpu"], "unknown device"),
        (["search", "--batch", "1"], "batch is out of range"),
        (["search", "--seed", "-1"], "seed is out of range"),
        (["search", "--channels", "7"], "channels must be even"),
        (["search", "--space", "nasbench201", "--layers", "4"], "a multiple of 3"),
        (["search", "--space", "mobile"], "unknown search space"),
        (["search", "demo", "--resume", "x"], "--resume RUN alone"),
        (["drive"], "invalid choice"),
    ],
)
def test_configuration_errors(capsys, words, said):
    code, error = fails(capsys, *words)
    assert code == 2 and said in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--k", "0"], "got 0; allowed 1 to 8"),
        (["--k", "9"], "got 9; allowed 1 to 8"),
        (["cifar10-nasbench201", "--k", "6"], "allowed 1 to 5"),
    ],
)
def test_fault_20_k_out_of_range(capsys, words, said):
    code, error = fails(capsys, "search", *words)
    assert code == 2 and said in error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kk = 2", "unknown configuration key; got 'kk'"),
        ("k = 'two'", "k has the wrong type"),
        ("k = true", "k has the wrong type"),
        ("k = 2.0", "k has the wrong type"),
        ("[model]\nk = 2", "unknown configuration key; got 'model'"),
        ("k = 2\nk = 3", "is not TOML"),
        ("k == 2", "is not TOML"),
        ("recipe = 'domo'", "unknown recipe"),
        ("recipe = 3", "recipe has the wrong type"),
        ("tau_max = nan", "tau_max is out of range"),
    ],
)
def test_fault_47_toml_errors(capsys, tmp_path, text, said):
    path = tmp_path / "c.toml"
    path.write_text(text)
    code, error = fails(capsys, "search", "--config", str(path))
    assert code == 2 and said in error


def test_fault_47_huge_or_binary_toml(capsys, tmp_path):
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert fails(capsys, "search", "--config", str(path))[0] == 2
    path.write_bytes(b"#" * (2 << 20))
    assert "too large" in fails(capsys, "search", "--config", str(path))[1]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["search", "--data", "imagefolder:/nowhere"], 3, "/nowhere"),
        (["search", "--data", "cifar11"], 3, "cifar10"),
        (["search", "--data", "cifar10", "--image", "32", "--set", "data_root=/nowhere"], 3, "--download"),
        (["search", "--resume", "/nowhere"], 4, "no run folder"),
        (["show", "/nowhere.json"], 6, "/nowhere.json"),
        (["search", "--device", "cuda"], 2, "no CUDA device"),
    ],
)
def test_other_errors(capsys, tmp_path, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    found, error = fails(capsys, *words)
    assert found == code and said in error
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_a_plan_says_how_to_search_with_it(capsys, tmp_path):
    """Its words, dtype and schedule included, are what `msgdas search` takes."""
    small = ["--channels", "4", "--layers", "3", "--image", "16", "--epochs", "8", "--warmup", "0"]
    words = ["plan", *small, "--gpu", "rtx-4090", "--k-schedule", "grow", "--methods", "msg", "--out", str(tmp_path)]
    assert main(words) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("to search with it: ")]
    flags = line.partition(" same options and ")[2].split()
    config = config_of(parser().parse_args(["search", *small, *flags]))
    assert (config.dtype, config.k_schedule) == ("bfloat16", "grow") and config.batch == 1024


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["plan", "--gpu", "rtx-4091"], 9, "try rtx-4090"),
        (["plan", "--gpu", "auto"], 9, "--gpu rtx-4090"),
        (["plan", "--budget", "10G"], 9, "write 10GiB (1024 based) or 10GB (1000 based)"),
        (["plan", "--budget", "120%"], 9, "at most 100%"),
        (["plan", "--gpu", "t4", "--budget", "40GiB"], 10, "asked 40.00 GiB, free 15.00 GiB"),
        (["plan", "--gpu", "t4", "--budget", "4MiB"], 10, "needed"),
        (["plan", "--methods", "msg,enas"], 2, "unknown method; got 'enas'"),
        (["plan", "--gpu", "t4", "--dtype", "bfloat16"], 2, "got Tesla T4 is older than the kernels' sm_80"),
        (["plan", "--k", "9"], 2, "allowed 1 to 8"),
        (["search", "--budget", "ten"], 9, "a budget that cannot be read"),
        (["search", "--budget", "1MiB"], 10, "not even K=1"),
    ],
)
def test_errors_of_plans(capsys, tmp_path, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    small = ["--channels", "4", "--layers", "3", "--image", "16", "--batch", "8", "--device", "cpu"]
    found, error = fails(capsys, *words, *small)
    assert found == code and said in error
    assert not list(tmp_path.iterdir())


SMALL = ["--channels", "4", "--layers", "3", "--image", "16", "--space", "nasbench201"]


def test_a_plan_prints_its_table_and_writes_its_chart(capsys, tmp_path):
    assert main(["plan", *SMALL, "--gpu", "t4", "--budget", "2GiB", "--k", "2", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "Tesla T4: 15.00 GiB" in text and "plan: K=2" in text and "K=2: given" in text
    assert all(f"\n{method}" in text for method in ("msg", "darts", "gdas"))
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "plan.png", "plan.svg"}


def test_a_plan_for_programs(capsys, tmp_path):
    words = ["plan", *SMALL, "--gpu", "t4", "--budget", "50%", "--methods", "gdas", "--out", str(tmp_path), "--json"]
    assert main(words) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["budget"] == "50%" and made["budget_bytes"] == made["machine"]["memory_bytes"] // 2
    assert [row["policy"] for row in made["rows"]] == ["min", "nodes", "bn", "all"]
    assert made["plan"]["needed_bytes"] <= 0.95 * made["budget_bytes"]
    assert json.loads((tmp_path / "plan.json").read_text())["plan"] == made["plan"]


def test_a_search_within_a_budget_keeps_its_plan(capsys, tmp_path):
    run = tmp_path / "run"
    words = ["search", *SMALL, "--budget", "6GiB", "--batch", "8", "--k", "2", "--limit", "16", "--epochs", "1",
             "--warmup", "0", "--device", "cpu", "--set", "eval_images=8", "--out", str(run)]  # fmt: skip
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("plan: K=2, batch 8")
    made, config = (json.loads((run / name).read_text()) for name in ("plan.json", "config.json"))
    assert made["plan"]["k"] == config["k"] == 2 and made["plan"]["policy"] == config["policy"]
    peaks = [json.loads(line).get("peak_bytes", 0) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert 0 < max(peaks) <= made["plan"]["peak_bytes"]


def test_every_error_class_has_an_exit_code_of_its_own():
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)
    assert all(0 < code < 128 for code in EXIT_CODES.values())


def test_flags_go_over_toml_over_recipe(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("\ufeffrecipe = 'demo'\nk = 4\nepochs = 9\ntau_max = 5\n", encoding="utf-8")
    words = [
        "search",
        "--config",
        str(path),
        "--epochs",
        "3",
        "--warmup",
        "1",
        "--set",
        "momentum=0.5",
        "--download",
        "true",
    ]
    config = config_of(parser().parse_args(words))
    assert (config.k, config.epochs, config.tau_max, config.momentum, config.download) == (4, 3, 5, 0.5, True)
    assert config.channels == demo().channels


def test_keys_are_a_toml_file_that_gives_the_demo(tmp_path):
    path = tmp_path / "all.toml"
    path.write_text(KEYS.listing(demo()))
    assert config_of(parser().parse_args(["search", "--config", str(path)])) == demo()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_functions_that_give_a_checked_configuration(name):
    config = RECIPES[name](seed=3)
    assert isinstance(config, SearchConfig) and config.seed == 3 and config.recipe == name


def test_fault_49_closed_stdout_is_no_error():
    result = subprocess.run(
        f"{sys.executable} -c 'from msgdas.engine.cli import run; run()' search --keys | head -1",
        shell=True, capture_output=True, text=True,
    )  # fmt: skip
    assert result.stderr == "" and result.stdout.startswith("#")


def test_debug_shows_the_traceback():
    with pytest.raises(cli.ConfigError):
        main(["search", "--k", "0", "--debug"])


@pytest.mark.parametrize(("words", "code"), [(["search", "--keys"], 0), (["search", "--set", "k=0"], 2)])
def test_one_of_many_processes_leaves_before_the_interpreter_ends(words: list[str], code: int) -> None:
    program = (
        "import atexit, sys; atexit.register(print, 'the interpreter ends')\n"
        f"from msgdas.engine.cli import run; sys.argv[1:] = {words!r}; run()"
    )
    for world in ("1", "2"):
        environment = os.environ | {
            "RANK": "0",
            "WORLD_SIZE": world,
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "1",
        }
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert ended.returncode == code, ended.stderr
        assert ("msgdas: k operations are sampled" in ended.stderr) if code else ("recipe =" in ended.stdout)
        assert ("the interpreter ends" in ended.stdout) == (world == "1")
