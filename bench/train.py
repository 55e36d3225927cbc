"""`python -m msgdas.bench train`: a training step of a derived network against the same one in plain eager NCHW.

Both take the same images, drop-path and auxiliary head; CPU time of the process, in turn, so that other processes
matter little. No figure without the gate: gradients of both against plain autograd in fp64, in a small network.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.network.network import Network
from ..engine.settings.train_config import TrainConfig
from ..engine.spaces.genotype_text import load_any
from ..engine.training.student import Student
from ..profiles.meter import measure
from . import command
from .gate import Gate
from .results import Row, provenance, row, show_and_keep

LAYOUTS = {"plain eager NCHW": "contiguous", "msgdas": "channels_last"}
# Of a parameter's gradient, relative, in fp32; plain autograd's own is about 5e-6.
ALLOWED = 1e-3


def student_of(name: str, layout: str, *, channels: int, layers: int, batch: int) -> Student:
    """A network in its training, in the last of 600 epochs: with drop-path and auxiliary head."""
    config = TrainConfig(
        genotype=json.dumps(load_any(name).to_json_dict()), channels=channels, layers=layers, batch=batch,
        layout="channels_last" if layout == "channels_last" else "contiguous", device="cpu",
    )  # fmt: skip
    return Student(config, 10, torch.device("cpu"))


def gradient_gate(name: str) -> Gate:
    """Gradients of both layouts against fp64."""
    truth = Network(load_any(name), channels=8, layers=3, classes=10, auxiliary=True).train()
    images, labels = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    errors = {}
    wide = _gradients(copy.deepcopy(truth).double(), images.double(), labels)
    for title, memory in (("NCHW", torch.contiguous_format), ("msgdas", torch.channels_last)):
        network = copy.deepcopy(truth).to(memory_format=memory)
        ours = _gradients(network, images.contiguous(memory_format=memory), labels)
        errors[title] = max(
            float((mine.double() - right).norm() / right.norm().clamp(min=1e-9))
            for mine, right in zip(ours, wide, strict=True)
        )
    passed = all(error <= ALLOWED for error in errors.values())
    return Gate(passed, errors, f"gradients against fp64 within {ALLOWED:g}: {errors}")


def _gradients(network: Network, images_BCHW: Tensor, labels_B: Tensor) -> list[Tensor]:
    logits, auxiliary = network.training_logits(images_BCHW)
    assert auxiliary is not None
    loss = F.cross_entropy(logits, labels_B) + F.cross_entropy(auxiliary, labels_B)
    return list(torch.autograd.grad(loss, list(network.parameters())))


def measured(
    students: dict[str, Student], images_BCHW: Tensor, labels_B: Tensor, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """CPU seconds of a step and MiB of its peak, of each in turn; the first round warms up."""
    found: dict[str, dict[str, list[float]]] = {name: {"step_cpu_s": [], "peak_mib": []} for name in students}
    for number in range(rounds + 1):
        for name, student in students.items():
            begin = time.process_time()
            student.step(images_BCHW, labels_B, number, student.config.epochs - 1)
            if number:
                found[name]["step_cpu_s"].append(time.process_time() - begin)
    for name, student in students.items():
        # The graph's storages only: the same weights and momentum live before in both.
        _, peak = measure(partial(student.step, images_BCHW, labels_B, 0, student.config.epochs - 1), student.device)
        found[name]["peak_mib"].append(peak.bytes / 2**20)
    return found


def line(found: Row) -> str:
    figures: dict[str, Any] = found["figures"]
    return (
        f"{found['name']:18} {figures['step_cpu_s']['median']:>12.3f} {figures['peak_mib']['median']:>10.1f} "
        f"{figures['faster']['median']:>9.2f} {figures['of_memory']['median']:>9.2f}"
    )


def header(config: Mapping[str, Any]) -> str:
    size = f"C={config['channels']}, {config['layers']} cells, batch {config['batch']}"
    return (
        f"a training step of {config['genotype']}, {size}, {config['threads']} thread(s), medians of rounds\n"
        f"{'network':18} {'CPU s/step':>12} {'peak MiB':>10} {'faster':>9} {'of memory':>9}"
    )


def table(rows: Sequence[Row]) -> str:
    return "\n".join([header(rows[0]["config"]), *map(line, rows)])


def main(argv: Sequence[str]) -> int:
    made = command.parser("train", __doc__)
    made.add_argument("--genotype", default="DARTS_V2", metavar="NAME", help="published cell (default: DARTS_V2)")
    command.add_sizes(made, channels=36, layers=20, batch=16, rounds=5, threads=1)
    arguments = made.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    gate = gradient_gate(arguments.genotype)
    size = {"channels": arguments.channels, "layers": arguments.layers, "batch": arguments.batch}
    students = {name: student_of(arguments.genotype, layout, **size) for name, layout in LAYOUTS.items()}
    random = torch.Generator().manual_seed(0)
    images = torch.randn(arguments.batch, 3, 32, 32, generator=random)
    labels = torch.randint(10, (arguments.batch,), generator=random)
    found = measured(students, images, labels, arguments.rounds)
    plain = next(iter(found.values()))
    for figures in found.values():
        pairs = zip(plain["step_cpu_s"], figures["step_cpu_s"], strict=True)
        figures["faster"] = [before / after for before, after in pairs]
        figures["of_memory"] = [figures["peak_mib"][0] / plain["peak_mib"][0]]
    config = {**size, "genotype": arguments.genotype, "threads": arguments.threads, "image": 32}
    facts = provenance(command.again("train", argv), threads=arguments.threads)
    if not arguments.json:
        print(header(config))
    rows = (row("train", name, config, figures, gate, facts) for name, figures in found.items())
    show_and_keep(rows, line, as_json=arguments.json, out=arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(command.answer(main))
