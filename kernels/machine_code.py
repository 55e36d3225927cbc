"""What a compiled kernel asks of the GPU, read from its machine code: no driver, no GPU.

NVIDIA's disassembler and resource report come with Triton; AMD's figures stand in the assembly's metadata.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
LANES = 32
OUTPUTS = 4  # of one thread in the loop over taps (see `taps`)
# A multiplication of two packed pairs counts twice.
MULTIPLY_ADDS = {"FFMA": 1, "FFMA2": 2, "DFMA": 1}
MATRIX = re.compile(r"[HDIQ]MMA|[HQI]GMMA|UTC\w*MMA")


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one compiled kernel.

    Attributes:
        registers: of a thread; on AMD vector registers, the accumulators among them.
        spill_bytes: stack of a thread.
        shared_bytes: shared memory of a program.
        instructions: in the whole kernel.
        loads, wide_loads: instructions that load from global memory, and those of 128 bits among them.
        matrix: tensor-core instructions.
        per_tap: instructions for one tap of one element in the dearest loop over the rows of a depthwise
            convolution's taps; None where there is no such loop or it was not looked for.
        per_normalised_tap: the same of loops that also apply a BatchNorm to what they read.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: int
    loads: int
    wide_loads: int
    matrix: int
    per_tap: float | None
    per_normalised_tap: float | None


def facts_of(compiled: Any, constants: dict[str, Any], num_warps: int) -> Facts:
    """Read a kernel that `triton.compile` returned; `constants` are those that it was compiled with."""
    if "amdgcn" in compiled.asm:
        return _amd(compiled)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    instructions, labels = _parse(code)
    names = [_name(line) for line in instructions]
    loads = [line for line, name in zip(instructions, names, strict=True) if name == "LDG"]
    on_stack = any(name in ("LDL", "STL") for name in names)
    spill = max(used["STACK"] + used.get("LOCAL", 0), int(on_stack))
    return Facts(
        used["REG"], spill, compiled.metadata.shared, len(instructions), len(loads),
        sum(bool(re.search(r"\.128(?![\dB])", line)) for line in loads),
        sum(bool(MATRIX.fullmatch(name)) for name in names),
        *_per_tap(instructions, labels, constants, num_warps),
    )  # fmt: skip


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / tool), *arguments], capture_output=True, text=True, check=True).stdout


def _parse(code: str) -> tuple[list[str], dict[str, int]]:
    """(instructions, number of the instruction behind each label)."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    return instructions, labels


def _name(instruction: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".")[0]


def inner_loops(instructions: list[str], labels: dict[str, int]) -> Iterator[list[str]]:
    """Bodies of the loops that contain no other loop."""
    spans = []
    for end, instruction in enumerate(instructions):
        target = re.search(r"\bBRA\b.*?(\.L\w+)", instruction)
        if target and labels.get(target[1], end + 1) <= end:
            spans.append((labels[target[1]], end))
    for first, last in spans:
        # The last instruction of a kernel jumps to itself.
        if last > first and not any(first <= a and b <= last for a, b in spans if (a, b) != (first, last)):
            yield instructions[first : last + 1]


def _per_tap(
    instructions: list[str], labels: dict[str, int], constants: dict[str, Any], num_warps: int
) -> tuple[float | None, float | None]:
    """(per_tap, per_normalised_tap): loops are known by their multiply-adds.

    A row of k taps for four outputs of each of a thread's elements has 4 k; where a BatchNorm is folded into the
    load, each of the k + 3 values of a row costs one more.
    """
    if "BP" not in constants or "BC" not in constants:
        return None, None
    elements = constants["BP"] * constants["BC"] / (LANES * num_warps)
    plain, normalised = [], []
    for body in inner_loops(instructions, labels):
        names = Counter(_name(line) for line in body)
        multiply_adds = sum(names[name] * weight for name, weight in MULTIPLY_ADDS.items())
        for k in (3, 5):
            taps = OUTPUTS * k * elements
            if multiply_adds == taps:
                plain.append(len(body) / taps)
            elif multiply_adds == taps + (k + OUTPUTS - 1) * elements:
                normalised.append(len(body) / taps)
    return max(plain, default=None), max(normalised, default=None)


def _amd(compiled: Any) -> Facts:
    text = compiled.asm["amdgcn"]
    used = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)\n", text)}
    body = [line.split()[0] for line in text.splitlines() if re.match(r"\t[a-z]\w+", line)]
    loads = [name for name in body if re.match(r"(global|buffer)_load_", name)]
    return Facts(
        used["vgpr_count"], used["private_segment_fixed_size"] + 4 * used["vgpr_spill_count"],
        compiled.metadata.shared, len(body), len(loads), sum(name.endswith("dwordx4") for name in loads),
        sum(name.startswith("v_mfma") for name in body), None, None,
    )  # fmt: skip
