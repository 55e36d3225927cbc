"""A network as a torch.export program and as ONNX, with a batch of any size, each read back and compared.

Shape suffixes: B batch, C channels or classes, H height, W width.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from .exported import Comparison, Exported

INPUT, OUTPUT = "images", "logits"


def program_of(subject: Exported, compared: Comparison) -> ExportedProgram:
    """The network's inference on images [B, 3, S, S] for any B."""
    shapes = ({0: Dim("batch")},)
    return torch.export.export(subject.network, (compared.images_BCHW,), dynamic_shapes=shapes)


def write_program(program: ExportedProgram, subject: Exported, path: Path, compared: Comparison) -> float:
    """Write the .pt2 file, read it again, compare; the largest error. Raises GateError as `Comparison.check`."""
    torch.export.save(program, path, extra_files={"metadata.json": _json(subject)})
    return compared.check(path.name, torch.export.load(path).module()(compared.images_BCHW))


def write_onnx(program: ExportedProgram, subject: Exported, path: Path, compared: Comparison) -> float:
    """Write the ONNX file, run it in onnxruntime, compare; the largest error. Raises GateError likewise."""
    import onnxruntime

    made = torch.onnx.export(
        program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False, optimize=True
    )
    assert made is not None
    made.model.metadata_props.update(subject.metadata())
    made.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits_BC,) = session.run(None, {INPUT: compared.images_BCHW.numpy()})
    return compared.check(path.name, torch.from_numpy(logits_BC))


def _json(subject: Exported) -> str:
    return json.dumps(subject.metadata())
