"""`python -m msgdas.bench kernels`: time of the C++ kernels, and what to expect of the Triton kernels without a GPU.

Part `cpu` times each C++ kernel and plain PyTorch for the same job in turn, and compares medians; a job whose two
results differ gets no figure. Part `traffic` counts in Triton's interpreter the bytes that each Triton kernel moves,
against the least it must. Part `predictions` is a roofline of an H100: nothing of it is timed. With a GPU, `make gpu`
times the Triton kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ..engine.errors import ConfigError, GateError, NoDeviceError
from ..kernels import native, roofline
from ..profiles.errors import one_line
from . import command
from .gate import Gate
from .native import TOLERANCE, cases, error, times_ms
from .results import Row, provenance, row, show_and_keep

PARTS = ("cpu", "traffic", "predictions")
BRANCHES = 4


def cpu_rows(size: Mapping[str, int], channels: Sequence[int], rounds: int, facts: dict[str, Any]) -> Iterator[Row]:
    """Milliseconds of single calls, plain PyTorch's and ours.

    Raises:
        GateError: for the first job whose results differ.
        NoDeviceError: where the kernels were not built.
    """
    missing = native.why_not()
    if missing is not None:
        raise NoDeviceError(f"no figures of C++ kernels: {missing}", next=f"{command.PROGRAM} kernels --parts traffic")
    for width in channels:
        for case in cases(width, size["side"], size["batch"]):
            found = error(case)
            gate = Gate(found <= TOLERANCE, {"float32": found}, f"differs from PyTorch by {found:.1e}")
            gate.require(case.name)
            plain, ours = times_ms(case, rounds)
            config = {**size, "channels": width, "instructions": native.instruction_set()}
            yield row("kernels", case.name, config, {"plain_ms": plain, "native_ms": ours}, gate, facts)


def traffic_rows(facts: dict[str, Any]) -> Iterator[Row]:
    """Bytes that each Triton kernel moves in one pass over each of the ledger's cells.

    Raises:
        GateError: for an access out of bounds, a race, or more bytes than a kernel's budget allows.
    """
    done = subprocess.run(
        [sys.executable, "-m", "msgdas.kernels.ledger", "--json"], env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise GateError("the traffic ledger is red", got=one_line(done.stderr[-300:]),
                          next="python -m msgdas.kernels.ledger")  # fmt: skip
    gate = Gate(True, {}, "no access out of bounds, no race; python -m msgdas.kernels.ledger")
    for line in done.stdout.splitlines():
        found = json.loads(line)
        figures = {"moved_bytes": [found["moved"]], "least_bytes": [found["least"]]}
        yield row("traffic", found["kernel"], {"cell": found["cell"]}, figures, gate, facts)


def prediction_rows(facts: dict[str, Any]) -> Iterator[Row]:
    """The roofline's lines."""
    gate = Gate(True, {}, "a prediction")
    for one in roofline.predictions(BRANCHES):
        config = {"device": "H100 SXM5", "batch": one.batch, "channels": one.channels, "side": one.side,
                  "branches": BRANCHES, "bound": one.bound}  # fmt: skip
        yield row("prediction", one.kernel, config, {"predicted_us": [one.predicted_us]}, gate, facts)


def table_line(one: Row) -> str:
    """What people read of a row."""
    config, figures = one["config"], one["figures"]
    if one["kind"] == "kernels":
        plain, ours = figures["plain_ms"]["median"], figures["native_ms"]["median"]
        return f"{one['name']:52} {config['channels']:4} {plain:10.3f} {ours:8.3f} {plain / ours:7.1f}x"
    if one["kind"] == "traffic":
        moved, least = figures["moved_bytes"]["median"], figures["least_bytes"]["median"]
        return f"{one['name']:26} {config['cell']:22} {moved:12.0f} {least:12.0f} {moved / least:7.3f}"
    return (
        f"{one['name']:26} {config['batch']:5} {config['channels']:4} {config['side']:4} "
        f"{figures['predicted_us']['median']:9.1f} {config['bound']:>9}"
    )


def table(found: Sequence[Row]) -> str:
    """What people read of rows, each kind under its head."""
    lines = []
    for number, one in enumerate(found):
        if not number or found[number - 1]["kind"] != one["kind"]:
            lines.append(HEADS[one["kind"]])
        lines.append(table_line(one))
    return "\n".join(lines).lstrip("\n")


HEADS = {
    "kernels": f"{'C++ kernel':52} {'C':>4} {'PyTorch ms':>10} {'C++ ms':>8} {'faster':>8}",
    "traffic": f"\n{'Triton kernel, interpreter':26} {'cell':22} {'bytes moved':>12} {'least':>12} {'ratio':>7}",
    "prediction": f"\n{'PREDICTION, H100, bf16':26} {'batch':>5} {'C':>4} {'side':>4} {'us':>9} {'bound by':>9}",
}


def main(argv: Sequence[str]) -> int:
    made = command.parser("kernels", __doc__ or "")
    made.add_argument("--parts", default=",".join(PARTS), metavar="A,B",
                      help="of cpu, traffic, predictions (default: all)")  # fmt: skip
    made.add_argument("--channels", type=int, nargs="+", default=(16, 64), help="default: 16 64")
    made.add_argument("--side", type=int, default=32, help="default: 32")
    command.add_sizes(made, batch=16, rounds=51, threads=1)
    made.add_argument("--set", choices=native.SETS, help="use at most this instruction set")
    arguments = made.parse_args(argv)
    parts = arguments.parts.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ConfigError("unknown part", got=unknown[0], allowed=", ".join(PARTS), next="--parts cpu")
    torch.set_num_threads(arguments.threads)
    if arguments.set is not None:
        native.limit_instruction_set(native.SETS.index(arguments.set))
    facts = provenance(command.again("kernels", argv), threads=arguments.threads)
    size = {"side": arguments.side, "batch": arguments.batch}
    sources = {
        "cpu": lambda: cpu_rows(size, arguments.channels, arguments.rounds, facts),
        "traffic": lambda: traffic_rows(facts),
        "predictions": lambda: prediction_rows(facts),
    }
    shown: set[str] = set()

    def text(one: Row) -> str:
        head = "" if one["kind"] in shown else HEADS[one["kind"]] + "\n"
        shown.add(one["kind"])
        return head + table_line(one)

    found = (one for part in parts for one in sources[part]())
    show_and_keep(found, text, as_json=arguments.json, out=arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(command.answer(main))
