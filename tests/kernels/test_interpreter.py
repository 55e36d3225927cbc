"""The interpreter's bf16, as shipped and as mended."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from msgdas.kernels import backend
from torch import Tensor

pytestmark = pytest.mark.skipif(not backend.interpreting(), reason="kernels are compiled here")


@triton.jit
def round_kernel(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + i).to(tl.bfloat16))


@triton.jit
def product_kernel(a, b, y, N: tl.constexpr):
    i = tl.arange(0, N)
    place = i[:, None] * N + i[None, :]
    tl.store(y + place, tl.dot(tl.load(a + place), tl.load(b + place)))


def rounded(x: Tensor) -> Tensor:
    y = torch.empty_like(x, dtype=torch.bfloat16)
    round_kernel[(1,)](x, y, N=x.numel())
    return y


def product(a: Tensor, b: Tensor) -> Tensor:
    y = torch.empty(a.shape)
    product_kernel[(1,)](a, b, y, N=a.shape[0])
    return y


def values() -> Tensor:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * torch.logspace(-40, 38, 4096)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8])
    x[: len(special)] = special
    return x


def matrices() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 16, 16, generator=generator).bfloat16()
    return a, b


def test_bf16_is_rounded_as_torch_rounds():
    torch.testing.assert_close(rounded(values()), values().bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_bf16_matrices_are_multiplied_by_value():
    a, b = matrices()
    torch.testing.assert_close(product(a, b), a.float() @ b.float(), rtol=1e-6, atol=1e-6)


def test_the_mend_is_still_needed():
    from msgdas.kernels import interpreter

    a, b = matrices()
    with interpreter.unmended():
        rounds = torch.equal(rounded(values()).nan_to_num(), values().bfloat16().nan_to_num())
        multiplies = torch.allclose(product(a, b), a.float() @ b.float(), rtol=1e-3)
    assert not rounds, "Triton's interpreter rounds to bf16 now: MendedBuilder.cast_impl can go"
    assert not multiplies, "Triton's interpreter multiplies bf16 now: MendedBuilder.create_dot can go"
