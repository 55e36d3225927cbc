"""`msgdas export`: a trained network as files that others load; none is kept that computes something else.

Shape suffixes: B batch, C classes.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ...profiles.meter import measure
from ..errors import ConfigError, RunFolderError
from .exported import Comparison, Exported, exported, read
from .model_card import model_card
from .programs import program_of, write_onnx, write_program
from .standalone import standalone_source, timm_source

# In the order in which they are written: a stand-alone file reads the weights, timm's entry the stand-alone file.
FORMATS = ("safetensors", "torch-export", "onnx", "python", "timm", "card")
_SUFFIXES = {
    "safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx", "python": ".py", "timm": "_timm.py",
    "card": ".md",
}  # fmt: skip
# timm is no condition of its file, only of its check.
_PACKAGES = {"safetensors": ("safetensors",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
# What a format's file reads beside it.
_NEEDED = {"python": ("safetensors",), "timm": ("safetensors", "python")}


def export(run: Path, *, out: Path | None = None, formats: str = "all", name: str = "") -> str:
    """Write the network of a training's newest good checkpoint; what `msgdas export` prints.

    Args:
        run: the training's run folder.
        out: folder of the files; RUN/export by default.
        formats: of FORMATS, joined by commas; `all` leaves timm's check out where timm is not installed.
        name: see `exported`.

    Raises:
        EngineError: as `exported` and `write_all`.
    """
    wanted = _chosen(formats)
    return write_all(exported(run, name), out or run / "export", wanted)


def write_all(subject: Exported, folder: Path, formats: tuple[str, ...]) -> str:
    """Write files into the folder, each checked in a temporary place and then renamed; a line for each.

    Raises:
        ConfigError: a package is missing.
        RunFolderError: the folder cannot be written to.
        GateError: a file's logits differ from the network's; that file and later ones are not kept.
    """
    _check_packages(formats)
    compared = Comparison(subject)
    lines = [f"{subject.name}: {len(subject.classes)} classes, input [B, 3, {subject.image}, {subject.image}]"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as temporary:
            lines += _write(subject, Path(temporary), folder, formats, compared)
    except OSError as error:
        raise RunFolderError(
            f"cannot write to {folder}", got=error.strerror or str(error), allowed="a writable folder with room",
            next="another --out",
        ) from None  # fmt: skip
    return "\n".join([*lines, f"in {folder}"])


def _write(
    subject: Exported, temporary: Path, folder: Path, formats: tuple[str, ...], compared: Comparison
) -> list[str]:
    program = program_of(subject, compared) if {"torch-export", "onnx"} & set(formats) else None
    lines: list[str] = []
    written: list[str] = []
    for kind in formats:
        path = temporary / (subject.name + _SUFFIXES[kind])
        if kind == "card":
            path.write_text(model_card(subject, written, _inference_bytes(subject)), encoding="utf-8")
            said = "the model card"
        elif kind in ("torch-export", "onnx"):
            assert program is not None
            write = write_program if kind == "torch-export" else write_onnx
            said = _compared(write(program, subject, path, compared))
        else:
            said = {"safetensors": _weights, "python": _python, "timm": _timm}[kind](subject, path, compared)
        written.append(path.name)
        lines.append(f"  {path.name:<40}{path.stat().st_size / 1024:>12,.1f} KiB  {said}")
    for name in written:
        os.replace(temporary / name, folder / name)
    return lines


def _weights(subject: Exported, path: Path, compared: Comparison) -> str:
    from safetensors.torch import save

    # Through our own file object: safetensors' file is for its owner's eyes only.
    path.write_bytes(save(subject.weights(), subject.metadata()))
    return _compared(compared.check(path.name, _logits(read(path)[0], compared)))


def _python(subject: Exported, path: Path, compared: Comparison) -> str:
    path.write_text(standalone_source(subject), encoding="utf-8")
    network = _imported(path, lambda module: module.load(path.with_suffix(".safetensors")))
    return _compared(compared.check(path.name, _logits(network, compared)))


def _timm(subject: Exported, path: Path, compared: Comparison) -> str:
    path.write_text(timm_source(subject), encoding="utf-8")
    if find_spec("timm") is None:
        return "not compared, timm is not installed"

    def create(_: ModuleType) -> torch.nn.Module:
        import timm

        return timm.create_model(subject.name, pretrained=True).eval()

    with warnings.catch_warnings():
        # A second export of one process.
        warnings.filterwarnings("ignore", "Overwriting .* in registry", UserWarning)
        network = _imported(path, create)
    return _compared(compared.check(path.name, _logits(network, compared)))


def _imported(path: Path, then: Callable[[ModuleType], torch.nn.Module]) -> torch.nn.Module:
    """What `then` makes of the module in the file, imported as a user does, from its folder; nothing stays imported."""
    names = [source.stem for source in path.parent.glob("*.py")]
    # An earlier export of that name, which would be compared in this one's place.
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(path.parent))
    try:
        importlib.invalidate_caches()
        return then(importlib.import_module(path.stem))
    finally:
        sys.path.remove(str(path.parent))
        sys.dont_write_bytecode = bytecode
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(others)


@torch.no_grad()
def _logits(network: torch.nn.Module, compared: Comparison) -> Tensor:
    return network(compared.images_BCHW)


def _compared(error: float) -> str:
    return f"within {error:.1e} of fp64"


def _inference_bytes(subject: Exported) -> int:
    image = torch.zeros(1, 3, subject.image, subject.image)

    @torch.no_grad()
    def run() -> Tensor:
        return subject.network(image)

    return measure(run, torch.device("cpu"))[1].bytes


def _chosen(text: str) -> tuple[str, ...]:
    """The formats in the order in which they are written, with what they read beside them."""
    asked = set(text.split(",")) if text != "all" else set(FORMATS)
    unknown = sorted(asked - set(FORMATS))
    if unknown:
        raise ConfigError("unknown format", got=repr(unknown[0]), allowed=f"all, {', '.join(FORMATS)}",
                          next="--format all")  # fmt: skip
    asked |= {needed for kind in asked for needed in _NEEDED.get(kind, ())}
    return tuple(kind for kind in FORMATS if kind in asked)


def _check_packages(formats: tuple[str, ...]) -> None:
    for kind in formats:
        missing = [name for name in _PACKAGES.get(kind, ()) if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"format {kind} needs a package", got=f"no {', '.join(missing)}", allowed="the extra `export`",
                next="pip install 'msgdas[export]'",
            )  # fmt: skip
