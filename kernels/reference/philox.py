"""Counter-based random numbers: Philox4x32-10, bit for bit those of `triton.language.rand`.

A draw is a function of (seed, offset) alone, so a resumed search, another process and a GPU kernel all see
the same noise. Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF
KEY_A, KEY_B = 0x9E3779B9, 0xBB67AE85
ROUND_A, ROUND_B = 0xD2511F53, 0xCD9E8D57
NUM_ROUNDS = 10
# Just under 2**-31, so that the largest 31-bit integer still maps below 1 in fp32 (Triton's constant).
UNIFORM_SCALE = 4.6566127342e-10


def philox_bits(seed: int | Tensor, offsets: Tensor) -> Tensor:
    """The first of the four 32-bit words of each counter.

    Args:
        seed: 0 to 2**63 - 1, or an int64 tensor [] with one; its two halves are the key.
        offsets: int64, any shape, non-negative; the 64-bit counters.

    Returns:
        int64 tensor of the same shape with values in [0, 2**32).
    """
    c0, c1 = offsets & MASK32, (offsets >> 32) & MASK32
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = seed & MASK32, (seed >> 32) & MASK32
    for _ in range(NUM_ROUNDS):
        # int64 products wrap, but their 64 bits are those of the unsigned product.
        product_a, product_b = c0 * ROUND_A, c2 * ROUND_B
        c0 = ((product_b >> 32) & MASK32) ^ c1 ^ k0
        c2 = ((product_a >> 32) & MASK32) ^ c3 ^ k1
        c1, c3 = product_b & MASK32, product_a & MASK32
        k0, k1 = (k0 + KEY_A) & MASK32, (k1 + KEY_B) & MASK32
    return c0


def philox_uniform(seed: int | Tensor, offsets: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), fp32, shape of `offsets`: Triton's `tl.rand(seed, offsets)`.

    0 is a possible value; who takes a logarithm clips first.
    """
    bits = philox_bits(seed, offsets)
    signed = torch.where(bits >= 1 << 31, bits - (1 << 32), bits)
    folded = torch.where(signed < 0, -signed - 1, signed)
    return folded.to(torch.float32) * UNIFORM_SCALE
