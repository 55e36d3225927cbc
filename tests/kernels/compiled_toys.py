"""Kernels with known faults and virtues, compiled for sm_90; run as a program where Triton does not interpret."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from typing import Any

import triton
import triton.language as tl
from msgdas.kernels.machine_code import facts_of
from msgdas.kernels.recording import TARGETS
from triton.compiler import ASTSource

WIDE = [["tt.divisibility", 16]]


@triton.jit
def copy_kernel(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + i))


@triton.jit
def crowded_kernel(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    value = tl.load(x + i)
    total = tl.cumsum(value, 0)
    tl.store(y + i, total * tl.sum(value, 0) + value)


@triton.jit
def product_kernel(a, b, y, N: tl.constexpr):
    i = tl.arange(0, N)
    place = i[:, None] * N + i[None, :]
    tl.store(y + place, tl.dot(tl.load(a + place), tl.load(b + place)))


@triton.jit
def taps_kernel(x, w, y, rows, BP: tl.constexpr, BC: tl.constexpr):
    place = tl.arange(0, BP)[:, None] * BC + tl.arange(0, BC)[None, :]
    a0 = tl.zeros((BP, BC), tl.float32)
    a1 = tl.zeros((BP, BC), tl.float32)
    a2 = tl.zeros((BP, BC), tl.float32)
    a3 = tl.zeros((BP, BC), tl.float32)
    for i in range(rows):
        for tap in tl.static_range(3):
            weight = tl.load(w + i * 3 + tap)
            a0 += tl.load(x + place + (i * 8 + tap) * BC) * weight
            a1 += tl.load(x + place + (i * 8 + tap + 1) * BC) * weight
            a2 += tl.load(x + place + (i * 8 + tap + 2) * BC) * weight
            a3 += tl.load(x + place + (i * 8 + tap + 3) * BC) * weight
    tl.store(y + place, a0 + a1 + a2 + a3)


def facts(kernel: Any, signature: dict[str, str], constants: dict[str, int], aligned: bool, **options: int) -> Any:
    places = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature={name: signature.get(name, "constexpr") for name in kernel.arg_names},
        constexprs={places[name]: value for name, value in constants.items()},
        attrs={places[name]: WIDE for name, kind in signature.items() if aligned and kind[0] == "*"},
    )
    compiled = triton.compile(source, target=TARGETS["sm_90"], options={"num_warps": 1, **options})
    return dataclasses.asdict(facts_of(compiled, constants, 1))


def main() -> None:
    copied = {"x": "*fp32", "y": "*fp32"}
    multiplied = {"a": "*bf16", "b": "*bf16", "y": "*fp32"}
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        found = {
            "aligned": facts(copy_kernel, copied, {"N": 1024}, True),
            "unaligned": facts(copy_kernel, copied, {"N": 1024}, False),
            "crowded": facts(crowded_kernel, copied, {"N": 4096}, True, maxnreg=32),
            "product": facts(product_kernel, multiplied, {"N": 32}, True),
            "taps": facts(
                taps_kernel,
                {"x": "*fp32", "w": "*fp32", "y": "*fp32", "rows": "i32"},
                {"BP": 8, "BC": 16},
                True,
            ),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
