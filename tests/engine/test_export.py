"""Exported files against the network: five genotypes, every format; `msgdas export` on a trained run."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from msgdas.engine.cli import main
from msgdas.engine.errors import CheckpointError, GateError
from msgdas.engine.export import export as export_module
from msgdas.engine.export.export import FORMATS, write_all
from msgdas.engine.export.exported import Comparison, Exported, exported, read
from msgdas.engine.export.model_card import model_card
from msgdas.engine.export.standalone import standalone_source
from msgdas.engine.images.data import load
from msgdas.engine.network.network import Network
from msgdas.engine.run.rundir import RunFolder
from msgdas.engine.settings.recipes import demo as search_demo
from msgdas.engine.settings.train_config import demo
from msgdas.engine.spaces.genotype import Genotype, from_arch, from_layers
from msgdas.engine.spaces.genotype_text import load_any, parse_tuple_text
from msgdas.engine.spaces.space import StemKind
from msgdas.engine.training.student import Student
from msgdas.engine.training.trained import trained
from msgdas.engine.training.trainer import train

pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

CHAIN = ("k3_e1", "skip", "k3_e1_g2", "k5_e3", *["skip"] * 17, "k5_e6")
OTHERS = "('conv_7x1_1x7', 0), ('sep_conv_7x7', 1), ('none', 2), ('avg_pool_3x3', 0)"
SUBJECTS: dict[str, tuple[Genotype, int, StemKind]] = {
    "darts": (load_any("DARTS_V2"), 3, "cifar"),
    "others": (
        parse_tuple_text(f"Genotype(normal=[{OTHERS}], normal_concat=[3], reduce=[{OTHERS}], reduce_concat=[2, 3])"),
        3,
        "cifar",
    ),
    "imagenet": (load_any("PC_DARTS_cifar"), 3, "imagenet"),
    "nasbench201": (
        from_arch("|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|skip_connect~2|"),
        3,
        "cifar",
    ),
    "fbnet": (from_layers("fbnet", CHAIN), 22, "cifar"),
}
CLASSES = ("one", "two's", "three", "four", "five")


def subject_of(name: str) -> Exported:
    """With weights and running statistics far from their first values."""
    genotype, layers, stem = SUBJECTS[name]
    network = Network(genotype, channels=4, layers=layers, classes=len(CLASSES), stem=stem).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor_name, tensor in network.state_dict().items():
            if "norm" in tensor_name and tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
    network.requires_grad_(False)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    return Exported(f"net_{name}", network, genotype, 4, layers, stem, 32, CLASSES, mean, std, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files of all subjects, and what they compute in a process that never saw this package.

    A batch of one, where they were made with three.
    """
    folder = tmp_path_factory.mktemp("export")
    for name in SUBJECTS:
        write_all(subject_of(name), folder, tuple(kind for kind in FORMATS if kind != "timm" or name == "darts"))
    torch.save(images_of_one(), folder / "images.pt")
    code = (
        "import importlib, sys, torch, onnxruntime\n"
        "images = torch.load('images.pt', weights_only=True)\n"
        "torch.set_num_threads(1)\n"
        "for name in sys.argv[1:]:\n"
        "    found = {'python': importlib.import_module(name).load(f'{name}.safetensors')(images).detach()}\n"
        "    assert 'timm' not in sys.modules and 'safetensors' not in sys.modules\n"
        "    session = onnxruntime.InferenceSession(f'{name}.onnx')\n"
        "    found['onnx'] = torch.from_numpy(session.run(None, {'images': images.numpy()})[0])\n"
        "    found['torch-export'] = torch.export.load(f'{name}.pt2').module()(images).detach()\n"
        "    torch.save(found, f'{name}-logits.pt')\n"
        "assert not any(name.startswith('msgdas.') for name in sys.modules)\n"
    )
    names = [f"net_{name}" for name in SUBJECTS]
    subprocess.run([sys.executable, "-c", code, *names], check=True, cwd=folder)
    return folder


def images_of_one() -> torch.Tensor:
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_file_computes_what_the_network_does(name: str, folder: Path) -> None:
    wanted = subject_of(name).network(images_of_one())
    assert wanted.abs().max() > 0.01
    found = torch.load(folder / f"net_{name}-logits.pt", weights_only=True)
    found["safetensors"] = read(folder / f"net_{name}.safetensors")[0](images_of_one()).detach()
    assert set(found) == {"python", "onnx", "torch-export", "safetensors"}
    for logits in found.values():
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_timm_makes_the_network_with_other_classes_and_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    import timm

    with warnings.catch_warnings():
        # Its check had registered it.
        warnings.filterwarnings("ignore", "Overwriting net_darts in registry", UserWarning)
        importlib.import_module("net_darts_timm")
    wanted = subject_of("darts")
    whole = timm.create_model("net_darts", pretrained=True).eval()
    torch.testing.assert_close(whole(images_of_one()), wanted.network(images_of_one()), rtol=1e-4, atol=1e-5)
    assert whole.pretrained_cfg["mean"] == wanted.mean and whole.num_classes == 5
    other = timm.create_model("net_darts", pretrained=True, num_classes=7).eval()
    assert other(images_of_one()).shape == (1, 7)
    weights = other.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in whole.state_dict().items() if "classifier" not in key)
    features = timm.create_model("net_darts", pretrained=True, num_classes=0).eval()
    assert features(images_of_one()).shape == (1, whole.num_features)


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_relu(subject: Exported) -> str:
        return standalone_source(subject).replace("self.depthwise(F.relu(x_BCHW))", "self.depthwise(x_BCHW)")

    subject = subject_of("darts")
    with pytest.raises(GateError):
        Comparison(subject).check("x", subject.network(Comparison(subject).images_BCHW) + 1e-3)
    monkeypatch.setattr(export_module, "standalone_source", without_relu)
    with pytest.raises(GateError, match=r"net_darts.py computes something else"):
        write_all(subject, tmp_path, ("safetensors", "python"))
    assert not list(tmp_path.iterdir())


def test_weights_of_another_genotype_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "net_darts.safetensors"
    about = read(path)[1]
    other = tmp_path / "other.safetensors"
    metadata = {name: value if name == "format" else json.dumps(value) for name, value in about.items()}
    save_file(load_file(path), other, {**metadata, "genotype": json.dumps(load_any("PDARTS").to_json_dict())})
    with pytest.raises(CheckpointError, match="no network of msgdas"):
        read(other)
    code = "from net_darts import load; import sys; load(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(other)], cwd=folder, capture_output=True, text=True)
    assert "ValueError" in done.stderr and "another genotype" in done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two steps with an auxiliary head and an average."""
    config = demo(
        genotype=json.dumps(load_any("DARTS_V2").to_json_dict()), channels=4, layers=3, limit=32, batch=16, epochs=1,
        eval_images=65, auxiliary=0.4, ema=0.5, threads=1, checkpoint_every=1,
    )  # fmt: skip
    return train(config, out=tmp_path_factory.mktemp("train") / "run-1").path


def test_a_run_is_exported_with_what_was_judged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--format", "python,card", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"msgdas_run_1.safetensors", "msgdas_run_1.py", "msgdas_run_1.md"}
    assert all(name in shown for name in names)
    network, facts = read(tmp_path / "msgdas_run_1.safetensors")
    config, found = trained(run)
    student = Student(config, 10, torch.device("cpu"))
    student.load_state_dict(found.state["student"])
    images = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(network(images), student.judged_logits(images).detach(), rtol=1e-4, atol=1e-5)
    assert not any("auxiliary" in name for name in network.state_dict())
    data = load(config, "test")
    assert tuple(facts["classes"]) == data.classes and tuple(facts["mean"]) == data.statistics.mean
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert facts["training"]["top1"] == last["val_accuracy"]
    card = (tmp_path / "msgdas_run_1.md").read_text()
    for words in (f"top-1 {last['val_accuracy']:.2%}", "65 test images", "| seed | 0 |", "from its abstract", "MiB"):
        assert words in card, words
    assert "not finished" not in card


def test_weights_of_mid_epoch_have_no_accuracy(run: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(run, half)
    shutil.rmtree(half / "checkpoints" / "step-0000000002")
    subject = exported(half)
    assert subject.training["step"] == 1 and subject.training["top1"] is None
    card = model_card(subject, (), 0)
    assert "were not judged" in card and "not finished: 0 of 1 epochs" in card


def test_wrong_input_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = RunFolder.create(tmp_path / "search", search_demo(), {}).path
    untrained = RunFolder.create(tmp_path / "untrained", trained(run)[0], {}).path
    cases: list[tuple[list[Any], int, str]] = [
        ([run, "--format", "tflite"], 2, "unknown format"),
        ([run, "--name", "a-b"], 2, "Python name"),
        ([run, "--out", run / "config.json"], 4, "cannot write"),
        ([search], 2, "not of a training"),
        ([untrained], 5, "no checkpoint yet"),
        ([tmp_path / "none"], 4, "no run folder"),
    ]
    for words, code, said in cases:
        assert main(["export", *map(str, words)]) == code, words
        text = capsys.readouterr().err
        assert said in text and text.count("\n") == 1 and "Next: " in text, text
    monkeypatch.setattr(export_module, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    assert main(["export", str(run), "--format", "onnx", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'msgdas[export]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
